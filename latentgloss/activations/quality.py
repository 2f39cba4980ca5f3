"""Quality: how well an SAE reconstructs the activations of a model, as L0 and FVU on a sample of each shard.

What belongs here: figures that are shown with the cache and decide nothing. Reads activations (float [tokens, d]) and
the triples they were encoded to, both on the device that computed them; `facts()` goes into the version's facts.

FVU = Σ‖x − x̂‖² / Σ‖x − mean(x)‖², with the mean of each sample; L0 = active pairs per token. Figures are over the
sample, not over the corpus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from latentgloss.saes.coder import SparseCoder
    from latentgloss.saes.selection import Sparse


QUALITY_SAMPLE = 4096
"""Tokens of a shard, at most, over which FVU and L0 are measured: enough for figures that are only shown."""


class Quality:
    """Sums for FVU (centred) and L0 over samples of tokens."""

    def __init__(self) -> None:
        self.residual = self.total = self.active = 0.0
        self.n = 0

    def add(self, x: torch.Tensor, coder: SparseCoder, triples: Sparse) -> None:
        """Adds the first `QUALITY_SAMPLE` tokens of a batch: activations `x` [tokens, d] and their encoding."""
        token, latent, value = triples
        first = token < QUALITY_SAMPLE
        x, token, latent, value = x[:QUALITY_SAMPLE].float(), token[first], latent[first], value[first]
        # Sinks are orders of magnitude larger than other activations, and FVU would measure nothing else.
        norms = x.norm(dim=-1)
        keep = norms < 10 * norms.median()
        error = (x - coder.decode_sparse(token, latent, value, x))[keep]
        kept = x[keep]
        self.residual += error.square().sum().item()
        self.total += (kept - kept.mean(0)).square().sum().item()
        self.active += len(token)
        self.n += len(x)

    def facts(self) -> dict[str, float]:
        """`sample_fvu`, `sample_l0` and `sample_tokens`; empty if nothing was added."""
        if not self.n:
            return {}
        return {
            "sample_fvu": round(self.residual / self.total, 4),
            "sample_l0": round(self.active / self.n, 2),
            "sample_tokens": self.n,
        }
