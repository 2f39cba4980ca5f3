"""Quality: how well an SAE reconstructs the activations of a model, as L0 and FVU on a sample of each shard.

What belongs here: figures that are shown with the cache and decide nothing. Reads activations (float [tokens, d]) and
the triples they were encoded to, both on the device that computed them; `facts()` goes into the version's facts.

FVU = Σ‖y − ŷ‖² / Σ‖y − mean(y)‖², with the mean of each sample; L0 = active pairs per token. For an SAE, y is the
activation x that it encodes. For a transcoder, y is what it reconstructs: the output of the module whose input is x.
Where y is not known, there is no FVU but a reason. Figures are over the sample, not over the corpus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.config.entries import INPUT
from latentgloss.errors import SaeError

if TYPE_CHECKING:
    import torch

    from latentgloss.saes.coder import SparseCoder
    from latentgloss.saes.selection import Sparse


QUALITY_SAMPLE = 4096
"""Tokens of a shard, at most, over which FVU and L0 are measured: enough for figures that are only shown."""

NAMED = 50
"""Latents named in the facts, at most."""

ROUNDING = 1e-11
"""Share of the activations' power below which their variance is rounding of the mean: they are constant."""


def reconstructed(coder: SparseCoder, hookpoint: str) -> str | None:
    """The hookpoint whose activations the SAE reconstructs; None if it is not known.

    A transcoder that reads a module's input (`layers.3.mlp@input`) reconstructs that module's output.
    """
    if not coder.transcoder and coder.d_in == coder.d_out:
        return hookpoint
    return hookpoint.removesuffix(INPUT) if hookpoint.endswith(INPUT) else None


class Quality:
    """Sums for FVU (centred) and L0 over samples of tokens."""

    def __init__(self) -> None:
        self.residual = self.total = self.power = self.active = 0.0
        self.n = 0
        self.no_target = ""

    def add(self, x: torch.Tensor, coder: SparseCoder, triples: Sparse, target: torch.Tensor | None) -> None:
        """Adds the first `QUALITY_SAMPLE` tokens of a batch: activations `x` [tokens, d] and their encoding.

        `target`: the activations that are reconstructed, [tokens, d_out]; None if they are not known.
        """
        token, latent, value = triples
        first = token < QUALITY_SAMPLE
        x, token, latent, value = x[:QUALITY_SAMPLE].float(), token[first], latent[first], value[first]
        self.active += len(token)
        self.n += len(x)
        if target is None or target.shape[1] != coder.d_out:
            self.no_target = "the place that the transcoder reconstructs is not known"
            if target is not None:
                self.no_target = f"the transcoder makes width {coder.d_out}, its module has {target.shape[1]}"
            return
        y = target[:QUALITY_SAMPLE].float()
        # Sinks are orders of magnitude larger than other activations, and FVU would measure nothing else.
        norms = y.norm(dim=-1)
        keep = norms <= 10 * norms.median()
        error = (y - coder.decode_sparse(token, latent, value, x))[keep]
        kept = y[keep]
        self.residual += error.square().sum().item()
        self.total += (kept - kept.mean(0)).square().sum().item()
        self.power += kept.square().sum().item()

    def facts(self) -> dict[str, Any]:
        """`sample_fvu`, `sample_l0` and `sample_tokens`; empty if nothing was added.

        `sample_fvu` is None if it is not defined, and then `sample_fvu_reason` says why.
        """
        if not self.n:
            return {}
        if self.no_target or self.total <= ROUNDING * self.power:
            constant = "the activations are the same on every token, so there is no variance to explain"
            reason = self.no_target or constant
            return {"sample_fvu": None, "sample_fvu_reason": reason, **self._counts()}
        return {"sample_fvu": round(self.residual / self.total, 4), **self._counts()}

    def _counts(self) -> dict[str, Any]:
        return {
            "sample_l0": round(self.active / self.n, 2),
            "sample_tokens": self.n,
        }


def zero_rows(coder: SparseCoder) -> dict[str, Any]:
    """Names the latents whose decoder row is zero: their number, and the first `NAMED` ids; empty if there are none."""
    latents = coder.directionless
    return {"zero_decoder_rows": {"count": len(latents), "latents": latents[:NAMED]}} if latents else {}


def zero_rows_error(coder: SparseCoder) -> SaeError | None:
    """The same as a message for people; None if every decoder row has a direction."""
    latents = coder.directionless
    if not latents:
        return None
    named = ", ".join(map(str, latents[:NAMED])) + (", …" if len(latents) > NAMED else "")
    return SaeError(
        f"the decoder row of {len(latents)} of {coder.n_latents} latents is zero ({named})",
        expected="a direction for each latent; these have no neighbours and no top outputs",
        todo="nothing, if the SAE was saved so; otherwise download or copy its files again",
    )
