"""Scores compared with null scores: how specific a score is, and how likely it is by chance.

What belongs here: pure functions on scores and null scores. A null score is the score of a latent under the explanation
of another latent, its partner. `explanations.nulls` chooses the partners. Definitions: docs/methods.md. Why p-values
are not stored with the scores: docs/decisions/0009-p-values.md.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

PER_BIN = 200
"""Null scores that a bin of density should hold; p can then be as low as .005."""
MOST_BINS = 10
"""Most bins of density."""


def specificity(
    score: Float[np.ndarray, " latents"], null: Float[np.ndarray, "latents partners"]
) -> Float[np.ndarray, " latents"]:
    """score - mean of the latent's null scores.

    A NaN in `null` is a partner without a score and is left out of the mean. The result is NaN where a latent has no
    null score, or no score.
    """
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
    """One-sided p of each score: (1 + #{null >= score}) / (B + 1), with B the null scores in the score's density bin.

    `density` is any measure of how often a latent fires; only its ranks are used. `null_density` is that of the latent
    that was judged, not of the partner whose explanation was used. There are at most `MOST_BINS` bins, of about equal
    numbers of null scores, at least `per_bin` each; fewer than 2 `per_bin` null scores make one bin. In a bin of B,
    p cannot fall below 1 / (B + 1). Equal densities are always in the same bin, and a density outside the range of
    `null_density` takes the nearest bin. A NaN in `null` or `null_density` leaves that null score out. The result is
    NaN where score or density is NaN, or if there is no null score.
    """
    usable = ~np.isnan(null) & ~np.isnan(null_density)
    null, null_density = null[usable], null_density[usable]
    result = np.full(score.shape, np.nan)
    if not len(null):
        return result
    edges = _edges(null_density, per_bin)
    bin_of_null, bin_of_score = (np.searchsorted(edges, d, side="right") for d in (null_density, density))
    known = ~np.isnan(score) & ~np.isnan(density)
    for number in range(len(edges) + 1):
        pool = np.sort(null[bin_of_null == number])
        inside = known & (bin_of_score == number)
        above = len(pool) - np.searchsorted(pool, score[inside], side="left")
        result[inside] = (1 + above) / (len(pool) + 1)
    return result


def _edges(density: Float[np.ndarray, " nulls"], per_bin: int) -> Float[np.ndarray, " edges"]:
    """The lowest density of each bin but the first. Edges are densities that occur, so equal ones stay together."""
    ordered = np.sort(density)
    n = len(ordered)
    bins = int(np.clip(n // per_bin, 1, MOST_BINS))
    cuts: Int[np.ndarray, " cuts"] = np.arange(1, bins) * n // bins
    edges = np.unique(ordered[cuts])
    kept, last = [], 0
    for edge in edges:  # equal densities can leave a bin short; a short bin is joined with the next
        at = int(np.searchsorted(ordered, edge, side="left"))
        if at - last >= per_bin and n - at >= per_bin:
            kept.append(edge)
            last = at
    return np.array(kept, dtype=np.float64)
