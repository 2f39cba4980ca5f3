"""The logit lens: which output tokens a latent's decoder direction promotes.

What belongs here: the projection of directions of the residual stream onto the vocabulary, without running the model.
Nothing is read or written.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentgloss.errors import SubjectError


class LogitLens:
    """Finds the tokens whose logits a direction of the residual stream raises most. `Subject.lens` makes one.

    logits = (d ∘ g) W_Uᵀ, where d is the direction and g the final norm's gain. The norm's scale is taken as 1. If the
    norm is a LayerNorm (`centred`), the mean of d is subtracted first.
    """

    def __init__(self, unembedding: Float[Tensor, "vocabulary d"], gain: Float[Tensor, " d"], centred: bool) -> None:
        self._unembedding, self._gain, self._centred = unembedding, gain, centred

    def top(
        self, directions: Float[Tensor, "n d"], k: int, *, block: int = 1024
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """The k tokens that each direction raises most, and their logits.

        Returns token ids (int64) and logits (float32), highest first; if the vocabulary has fewer than k tokens, all of
        them. Never holds more than block × vocabulary logits. Raises SubjectError if the directions do not have the
        residual stream's width.
        """
        vocabulary, width = self._unembedding.shape
        if directions.shape[1] != width:
            raise SubjectError(
                f"the directions have width {directions.shape[1]}",
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
