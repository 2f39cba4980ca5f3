"""Explanations of other latents as a yardstick: how specific a score is, and how likely by chance.

What belongs here: pure functions that hold scores against null scores. Which latents are partners is decided where
explanations are made; what the numbers mean is in docs/methods.md, and why p are not stored with the scores in
docs/decisions/0009-p-values.md.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

PER_BIN = 200
"""Nulls a bin of density should hold: p then goes down to .005."""
MOST_BINS = 10


def specificity(
    score: Float[np.ndarray, " latents"], null: Float[np.ndarray, "latents partners"]
) -> Float[np.ndarray, " latents"]:
    """score - mean of the latent's null scores; NaN partners have none and are left out, NaN if there are no others."""
    known = ~np.isnan(null)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, null, 0.0).sum(1) / known.sum(1)
        result: Float[np.ndarray, " latents"] = score - mean
    return result


def pooled_p(
    score: Float[np.ndarray, " latents"],
    density: Float[np.ndarray, " latents"],
    null: Float[np.ndarray, " nulls"],
    null_density: Float[np.ndarray, " nulls"],
    per_bin: int = PER_BIN,
) -> Float[np.ndarray, " latents"]:
    """One-sided p of each score: (1 + #{null >= score}) / (B + 1) among the B null scores of its density bin.

    `density` is any measure of how often latents fire (it is only ranked); `null_density` that of the latent that was
    judged, not of the one whose explanation it was judged by. Bins hold equal numbers of finite nulls, at least
    `per_bin` where there are as many, at most `MOST_BINS` bins; with fewer there is one bin with all of them, and
    p cannot fall below 1 / (B + 1). Latents of one density are never torn apart. A density outside the pool's
    takes the nearest bin. NaN where score or density is, or where there is no null.
    """
    usable = ~np.isnan(null) & ~np.isnan(null_density)
    null, null_density = null[usable], null_density[usable]
    result = np.full(score.shape, np.nan)
    if not len(null):
        return result
    edges = _edges(null_density, per_bin)
    of_null, of_score = (np.searchsorted(edges, d, side="right") for d in (null_density, density))
    known = ~np.isnan(score) & ~np.isnan(density)
    for b in range(len(edges) + 1):
        pool = np.sort(null[of_null == b])
        mine = known & (of_score == b)
        above = len(pool) - np.searchsorted(pool, score[mine], side="left")
        result[mine] = (1 + above) / (len(pool) + 1)
    return result


def _edges(density: Float[np.ndarray, " nulls"], per_bin: int) -> Float[np.ndarray, " edges"]:
    """Least density of each bin but the first. Edges are densities that occur, so ties stay together."""
    ordered = np.sort(density)
    n = len(ordered)
    bins = int(np.clip(n // per_bin, 1, MOST_BINS))
    cuts: Int[np.ndarray, " cuts"] = np.arange(1, bins) * n // bins
    edges = np.unique(ordered[cuts])
    kept, last = [], 0
    for edge in edges:  # ties can leave a bin short: it is joined with the next
        at = int(np.searchsorted(ordered, edge, side="left"))
        if at - last >= per_bin and n - at >= per_bin:
            kept.append(edge)
            last = at
    return np.array(kept, dtype=np.float64)
