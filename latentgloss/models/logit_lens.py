"""The logit lens: which output tokens a latent's decoder direction promotes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentgloss.errors import SubjectError


class LogitLens:
    """Tokens that directions of the residual stream raise most. `Subject.lens` makes one.

    logits = (d ∘ g) W_Uᵀ with g the final norm's gain (a LayerNorm's centring included), as if the norm's scale were 1.
    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """

    def __init__(self, unembedding: Float[Tensor, "vocabulary d"], gain: Float[Tensor, " d"], centred: bool) -> None:
        self._unembedding, self._gain, self._centred = unembedding, gain, centred

    def top(
        self, directions: Float[Tensor, "n d"], k: int, *, block: int = 1024
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """The k tokens each direction raises most, and by how much.

        Returns token ids (int64) and logits (float32), highest first; of a smaller vocabulary than k, all of it. Never
        holds more than block × vocabulary logits. Raises SubjectError if the directions are not of width d_model.
        """
        vocabulary, width = self._unembedding.shape
        if directions.shape[1] != width:
            raise SubjectError(
                f"directions of width {directions.shape[1]}",
                expected=f"the residual stream's width {width}",
                todo="use the logit lens only at hookpoints that write to the residual stream",
            )
        ids, logits = [], []
        with torch.inference_mode():
            for part in torch.split(directions.to(self._unembedding), block):
                part = part - part.mean(1, keepdim=True) if self._centred else part
                top = ((part * self._gain) @ self._unembedding.T).topk(min(k, vocabulary), dim=1)
                ids.append(top.indices.cpu())
                logits.append(top.values.cpu())
        return torch.cat(ids).numpy(), torch.cat(logits).numpy()
