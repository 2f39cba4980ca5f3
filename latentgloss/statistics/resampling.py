"""Medians over latents and paired comparisons, with bootstrap intervals and a sign-flip test.

What belongs here: summaries of one value per latent. What is resampled is what a claim generalises to: latents of one
SAE, or whole SAEs for a claim about layers or kinds of hookpoint. Documents that many latents share are resampled in
`crossed`; the values of single latents come from `metrics`, `rates` and `areas`. Every draw follows from a seed. The
order of latents does not matter to medians.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from latentgloss.statistics.clusters import CHUNK

Values: TypeAlias = Shaped[np.ndarray, " values"]
Draws: TypeAlias = Float[np.ndarray, " resamples"]

EXACT = 14
"""Most units for which all sign patterns are enumerated (16,384 patterns)."""
NORMAL = 1000
"""Units beyond which the sum under random signs counts as normal; it is normal there."""


class Median(NamedTuple):
    """A median over latents, its bootstrap interval, and how many latents it is over."""

    value: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """a - b over the same latents, for both ways of counting failures, and a test."""

    scored: Median
    """Over latents with a score on both sides."""
    eligible: Median
    """Over all latents given; a failure counts as chance."""
    p: float
    """Two-sided p of no difference over `eligible`; NaN if there is no test."""
    reason: str
    """Why there is no test; empty if there is one."""


def median_interval(
    values: Values,
    clusters: Values | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Median:
    """Median of the finite `values`, with a percentile bootstrap interval (Efron, 1979) at `level`.

    Single values are resampled, or whole `clusters` of values (SAEs, for claims about layers). The order of the values
    does not matter. The ends are NaN if there is nothing to resample (fewer than two values, or one cluster), the
    median is NaN if no value is finite.
    """
    known = np.isfinite(values)
    order = np.argsort(values[known], kind="stable")
    x = values[known][order].astype(np.float64)
    rng = np.random.default_rng(seed)
    medians = np.full(1, np.nan)
    if clusters is not None:
        names, labels = np.unique(clusters[known], return_inverse=True)
        if len(names) > 1:
            medians = _resampled_medians_of_clusters(x, labels[order], rng, resamples)
    elif len(x) > 1:
        medians = resampled_medians(x, rng, resamples)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return Median(float(np.median(x)) if len(x) else np.nan, float(low), float(high), len(x))


def paired_median_gain(
    a: Values,
    b: Values,
    failures: Literal["scored", "chance"] = "scored",
    *,
    chance: float = 0.0,
    clusters: Values | None = None,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Median:
    """Median of a - b over the same latents, with its bootstrap interval; NaN in `a` or `b` is a failure.

    `failures`: "scored" leaves out latents with a failure on either side. "chance" takes all latents given (pass the
    eligible ones) and counts a failure as `chance`, the metric's uninformed value. Failures are not random, so a
    comparison shows both.
    """
    if failures == "chance":
        a, b = (np.where(np.isnan(side), chance, side) for side in (a, b))
    return median_interval(a - b, clusters, seed=seed, level=level, resamples=resamples)


def compare(
    a: Values,
    b: Values,
    *,
    chance: float = 0.0,
    clusters: Values | None = None,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Comparison:
    """`paired_median_gain` with both ways of counting failures, and a sign-flip test of no difference.

    Units are latents, or `clusters` of latents. Give SAEs as clusters if the claim is about layers or kinds of
    hookpoint, because the latents of one SAE share its peculiarities. The difference of a unit is the median within it.
    If a and b do not differ, the sign of each difference is that of a fair coin (Fisher's randomisation test), and p is
    the share of sign patterns whose sum is at least as far from 0 as the observed sum. Up to `EXACT` units all patterns
    are enumerated. Up to `NORMAL` units p is (1 + #) / (B + 1) over B random patterns. Beyond, it comes from the normal
    limit. With one unit p is NaN, since it could only be 1; with fewer than six units p cannot reach .05.
    """
    scored, eligible = (
        paired_median_gain(a, b, how, chance=chance, clusters=clusters, seed=seed, level=level, resamples=resamples)
        for how in ("scored", "chance")
    )
    gain = np.subtract(*(np.where(np.isnan(side), chance, side) for side in (a, b)))
    if clusters is not None:
        names, labels = np.unique(clusters, return_inverse=True)
        gain = np.array([np.median(gain[labels == i]) for i in range(len(names))])
    if len(gain) < 2:
        reason = f"{len(gain)} unit(s) to compare: a test needs two or more"
        return Comparison(scored, eligible, np.nan, reason)
    return Comparison(scored, eligible, _sign_flip(gain, seed, resamples), "")


def _sign_flip(x: Values, seed: int, resamples: int) -> float:
    """Two-sided p of a zero mean, by flipping signs. Differences of exactly 0 stay in and favour neither side."""
    n, observed = len(x), abs(x.sum())
    reached = observed * (1 - 1e-12)  # sums of the same values in another order may round differently
    if n <= EXACT:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ x) >= reached))
    if n > NORMAL:
        return float(2 * stats.norm.sf(observed / np.sqrt(np.sum(x**2)))) if observed else 1.0
    rng = np.random.default_rng(seed)
    step, count = max(1, CHUNK // n), 0
    for start in range(0, resamples, step):
        drawn = rng.integers(0, 2, (min(step, resamples - start), n), dtype=np.int8)
        count += int(np.sum(np.abs((1 - 2 * drawn) @ x) >= reached))
    return (1 + count) / (resamples + 1)


def resampled_medians(x: Values, rng: np.random.Generator, resamples: int) -> Draws:
    """Medians of `resamples` bootstrap samples of the ascending `x`, without drawing the samples.

    A resample is n uniform draws u, each of which takes x[⌊n u⌋]. Its median depends on the middle order statistics of
    the u alone, and these follow beta distributions. So the same bootstrap takes O(1) per resample instead of O(n).
    """
    n = len(x)
    m = (n + 1) // 2
    lower = rng.beta(m, n - m + 1, resamples)
    upper = lower if n % 2 else lower + (1 - lower) * rng.beta(1, n - m, resamples)
    first, second = (np.minimum((n * u).astype(np.int64), n - 1) for u in (lower, upper))
    return x[first] / 2 + x[second] / 2


def _resampled_medians_of_clusters(x: Values, labels: Values, rng: np.random.Generator, resamples: int) -> Draws:
    """Medians of `resamples` samples of whole clusters. `x` is ascending; `labels` (0 … k - 1) are in its order."""
    k = int(labels.max()) + 1
    times = rng.multinomial(k, np.full(k, 1 / k), size=resamples)
    medians = np.empty(resamples)
    step = max(1, CHUNK // len(x))
    for start in range(0, resamples, step):
        upto = np.cumsum(times[start : start + step][:, labels], axis=1)
        total = upto[:, -1:]
        first, second = ((upto < rank).sum(1) for rank in ((total + 1) // 2, total // 2 + 1))
        medians[start : start + step] = x[first] / 2 + x[second] / 2
    return medians
