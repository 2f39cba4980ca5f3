"""Reconstruction quality of an SAE on a sample of each shard: L0 and FVU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from latentgloss.saes.coder import SparseCoder
    from latentgloss.saes.selection import Sparse


QUALITY_SAMPLE = 4096
"""Tokens of a shard, at most, from which FVU and L0 are taken: plenty for figures shown to people."""


class Quality:
    """FVU (centred) and L0 over a sample of tokens: shown beside the cache, decides nothing."""

    def __init__(self) -> None:
        self.residual = self.total = self.active = 0.0
        self.n = 0

    def add(self, x: torch.Tensor, coder: SparseCoder, found: Sparse) -> None:
        token, latent, value = found
        first = token < QUALITY_SAMPLE
        x, token, latent, value = x[:QUALITY_SAMPLE].float(), token[first], latent[first], value[first]
        # Sinks are orders of magnitude larger than the rest and would be all that the figure measures.
        norms = x.norm(dim=-1)
        keep = norms < 10 * norms.median()
        error = (x - coder.decode_sparse(token, latent, value, x))[keep]
        kept = x[keep]
        self.residual += error.square().sum().item()
        self.total += (kept - kept.mean(0)).square().sum().item()
        self.active += len(token)
        self.n += len(x)

    def facts(self) -> dict[str, float]:
        if not self.n:
            return {}
        return {
            "sample_fvu": round(self.residual / self.total, 4),
            "sample_l0": round(self.active / self.n, 2),
            "sample_tokens": self.n,
        }


def norms_of(x: Float[torch.Tensor, "*shape d"]) -> Float32[torch.Tensor, " positions"]:
    import torch

    norms: torch.Tensor = x.norm(dim=-1, dtype=torch.float32).flatten()
    return norms


def on_host(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """The parts one after the other, on the host."""
    import torch

    array: np.ndarray = torch.cat(list(parts)).cpu().numpy()
    return array
