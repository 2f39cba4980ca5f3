"""Numbers over many latents, and how uncertain they are: medians, means, paired comparisons.

What belongs here: summaries of one value per latent, with intervals and tests. What is resampled is what a claim
generalises to: latents of one SAE, the documents its latents were judged on (shared by latents, so crossed with
them), or whole SAEs for a claim about layers or kinds of hookpoint. Values of single latents are made in `statistics`.
Every draw follows from a seed; the order of latents does not matter to medians.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped
from scipy import sparse, stats

from latentgloss.statistics.clusters import CHUNK, Evidence, Groups, Ids, Mask, PerLatent, in_chunks
from latentgloss.statistics.intervals import beaten

if TYPE_CHECKING:
    from collections.abc import Callable


Values: TypeAlias = Shaped[np.ndarray, " values"]
Draws: TypeAlias = Float[np.ndarray, " resamples"]
Aggregate: TypeAlias = Literal["median", "mean"]

EXACT = 14
"""Most units whose sign patterns are all enumerated (16,384)."""
NORMAL = 1000
"""Units beyond which the sum under random signs is taken as normal, which it then is."""
WIDE = 2**22
"""Numbers of a table of latents by resamples that are held at once."""


class Median(NamedTuple):
    """A median over latents, its bootstrap interval, and how many latents it is over."""

    value: float
    low: float
    high: float
    n: int


class Crossed(NamedTuple):
    """An aggregate over latents whose judgements share documents, and what its uncertainty is made of."""

    value: float
    low: float
    high: float
    n: int
    sd_latents: float
    """Standard error from the draw of latents, each with its own sampling noise; in the value's unit."""
    sd_documents: float
    """Further standard error from documents that are easy or hard for many latents at once."""


class Comparison(NamedTuple):
    """a - b over the same latents, both ways of counting failures, and a test."""

    scored: Median
    """Over latents that both scored."""
    eligible: Median
    """Over all latents given, a failure counting as chance."""
    p: float
    """Two-sided, of no difference over `eligible`; NaN if there is no test."""
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
    """Median of the finite `values` with its percentile bootstrap interval (Efron, 1979).

    Values are resampled, or whole `clusters` of them (SAEs, for claims about layers). The order of the values
    does not matter. NaN ends where there is nothing to resample: fewer than two values, or one cluster.
    """
    known = np.isfinite(values)
    order = np.argsort(values[known], kind="stable")
    x = values[known][order].astype(np.float64)
    rng = np.random.default_rng(seed)
    medians = np.full(1, np.nan)
    if clusters is not None:
        names, labels = np.unique(clusters[known], return_inverse=True)
        if len(names) > 1:
            medians = _medians_of_clusters(x, labels[order], rng, resamples)
    elif len(x) > 1:
        medians = _medians_of_values(x, rng, resamples)
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

    `scored`: latents that both scored. `chance`: all latents given (pass the eligible ones), a failure
    counting as `chance`, the metric's uninformed value. Failures are not random, so a comparison shows both.
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
    """`paired_median_gain` both ways, and a sign-flip test of no difference.

    Units are latents, or `clusters` of them: give SAEs where the claim is about layers or kinds of hookpoint, for
    latents of one SAE repeat what is peculiar to it. A unit's difference is the median within it. If a and b do not
    differ, its sign is a coin's (Fisher's randomisation): p is the share of sign patterns whose sum is at least as
    far from 0, over all patterns up to `EXACT` units, (1 + #) / (B + 1) over B random ones up to `NORMAL`, and beyond
    from the normal limit. One unit has no
    p: p could not fall below 1. Nor can it reach .05 with fewer than six.
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
        reason = f"{len(gain)} unit(s) compared: nothing to hold a difference against"
        return Comparison(scored, eligible, np.nan, reason)
    return Comparison(scored, eligible, _sign_flip(gain, seed, resamples), "")


def _sign_flip(x: Values, seed: int, resamples: int) -> float:
    """Two-sided p of a zero mean by flipping signs. Differences of exactly 0 stay, and count for neither side."""
    n, observed = len(x), abs(x.sum())
    reached = observed * (1 - 1e-12)  # sums of the same values in another order
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


def _medians_of_values(x: Values, rng: np.random.Generator, resamples: int) -> Draws:
    """Medians of `resamples` bootstrap samples of the sorted `x`, without drawing the samples.

    A resample is n uniform draws u, each taking x[⌊n u⌋]; its median depends on the middle order statistics
    of u alone, and those follow beta distributions: the same bootstrap at O(1) each instead of O(n).
    """
    n = len(x)
    m = (n + 1) // 2
    lower = rng.beta(m, n - m + 1, resamples)
    upper = lower if n % 2 else lower + (1 - lower) * rng.beta(1, n - m, resamples)
    first, second = (np.minimum((n * u).astype(np.int64), n - 1) for u in (lower, upper))
    return x[first] / 2 + x[second] / 2


def _medians_of_clusters(x: Values, labels: Values, rng: np.random.Generator, resamples: int) -> Draws:
    """Medians of `resamples` samples of whole clusters; `x` sorted, `labels` (0 … k - 1) in its order."""
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


def influence_on_accuracy(truth: Mask, prediction: Mask, valid: Mask) -> Evidence:
    """What each judgement moves its latent's balanced accuracy by, to first order: [latents n], rows sum to 0.

    Of a positive (hit - TPR) / (2 n₊), of a negative (hit - TNR) / (2 n₋); 0 where `valid` is not, NaN for a latent
    without one of the classes.
    """

    def compute(truth: Mask, prediction: Mask, valid: Mask) -> tuple[Evidence]:
        right = prediction == truth
        moves = np.zeros(truth.shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            for of in (truth & valid, ~truth & valid):
                n = of.sum(1, keepdims=True)
                moves += of * (right - (of & right).sum(1, keepdims=True) / n) / (2 * n)
        return (moves,)

    (moves,) = in_chunks(compute, truth, prediction, valid)
    return moves[:, : truth.shape[1]]


def influence_on_auroc(truth: Mask, evidence: Evidence, valid: Mask) -> Evidence:
    """As `influence_on_accuracy`, on AUROC: DeLong's structural components, centred, over the size of their class."""

    def compute(truth: Mask, evidence: Evidence, valid: Mask) -> tuple[Evidence]:
        valid = valid & ~np.isnan(evidence)
        positive, negative = valid & truth, valid & ~truth
        n_pos, n_neg = positive.sum(1, keepdims=True), negative.sum(1, keepdims=True)
        won = beaten(evidence, positive, negative)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = (won * positive).sum(1, keepdims=True) / (n_pos * n_neg)
            mine, other = np.where(positive, n_pos, n_neg), np.where(positive, n_neg, n_pos)
            moves = np.where(valid, (won / other - area) / mine, 0.0)
        return (moves,)

    (moves,) = in_chunks(compute, truth, evidence, valid)
    return moves[:, : truth.shape[1]]


def crossed_interval(
    values: PerLatent,
    influence: Evidence,
    document: Ids,
    aggregate: Aggregate = "median",
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
    document_resamples: int = 200,
) -> Crossed:
    """Median or mean of the finite `values`, with a bootstrap over latents × documents.

    `influence[i, j]` is what judgement j moves value i by (`influence_on_…`; of a difference, the difference of the
    two), `document` the *same* numbering of documents for all latents; a negative number is a document of its own.

    A draw of latents carries each latent's own sampling noise with it, so what documents must add is only what they do
    to many latents at once. One draw of document weights w applies to all latents: value i becomes
    values_i + Σ_j (w - 1) influence_ij, and the aggregate moves. Part of that movement is the noise of single latents
    again; it is what independent noise of the same size per latent does to the aggregate, and is taken off:
    V = V_latents + max(0, V_documents - V_noise), as in two-way clustered variances (Cameron, Gelbach & Miller,
    JBES 29:238, 2011). Multiplying the weights of latents and documents instead (Owen, Ann. Appl. Stat. 1:386,
    2007) counts that noise three times. Ends are percentiles of resampled aggregates, each with a normal draw of
    the documents' variance added. NaN ends: fewer than two latents or two documents.

    Memory: that of the arrays given again, and some multiples of `WIDE` numbers.
    """
    known = np.isfinite(values) & np.isfinite(influence).all(axis=1)
    order = np.argsort(values[known], kind="stable")
    x = values[known][order].astype(np.float64)
    rows = np.flatnonzero(known)[order]
    middle: Callable[..., Float[np.ndarray, "*_"]] = np.median if aggregate == "median" else np.mean
    value = float(middle(x)) if len(x) else np.nan
    ids = document[rows]
    shared = ids >= 0
    phi = np.where(shared, influence[rows], 0.0)
    n_documents = int(ids.max(initial=-1)) + 1
    if len(x) < 2 or (n_documents < 2 and shared.all()):
        return Crossed(value, np.nan, np.nan, len(x), np.nan, np.nan)
    rng = np.random.default_rng(seed)
    draws = (_medians_of_values if aggregate == "median" else _means_of_values)(x, rng, resamples)
    extra = 0.0
    if n_documents > 1:
        moved = _moved_by_documents(x, phi, ids, n_documents, middle, rng, document_resamples)
        alone = _moved_by_noise(x, _spread(phi, ids), middle, rng, document_resamples)
        extra = float(np.sqrt(max(0.0, moved.var(ddof=1) - alone.var(ddof=1))))
    low, high = np.quantile(draws + extra * rng.standard_normal(resamples), [(1 - level) / 2, (1 + level) / 2])
    return Crossed(value, float(low), float(high), len(x), float(draws.std(ddof=1)), extra)


def _means_of_values(x: Values, rng: np.random.Generator, resamples: int) -> Draws:
    """Means of bootstrap samples of x."""
    n, step = len(x), max(1, CHUNK // len(x))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate([x[rng.integers(0, n, (size, n))].mean(1) for size in sizes])


def _moved_by_documents(
    x: Values,
    influence: Evidence,
    document: Ids,
    n_documents: int,
    middle: Callable[..., Float[np.ndarray, "*_"]],
    rng: np.random.Generator,
    resamples: int,
) -> Draws:
    """Aggregates of x under resampled documents; those that nobody was judged on are not resampled."""
    latents, n = influence.shape
    ids = np.where(document >= 0, document, 0).astype(np.int32).ravel()
    of = sparse.csr_array(
        (influence.ravel(), ids, np.arange(0, latents * n + 1, n)), shape=(latents, n_documents), copy=False
    )
    occur = np.flatnonzero(np.bincount(ids, minlength=n_documents))
    found = []
    step = max(1, min(32, WIDE // max(latents, n_documents)))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        more = np.zeros((n_documents, size))
        for column in range(size):
            drawn = rng.integers(0, len(occur), len(occur))
            more[occur, column] = np.bincount(drawn, minlength=len(occur)) - 1.0
        found.append(middle(np.ascontiguousarray((of @ more).T) + x, axis=1))
    return np.concatenate(found)


def _moved_by_noise(
    x: Values,
    sd: PerLatent,
    middle: Callable[..., Float[np.ndarray, "*_"]],
    rng: np.random.Generator,
    resamples: int,
) -> Draws:
    """Aggregates of x with independent normal noise on each value."""
    step = max(1, min(32, WIDE // len(x)))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    noise = (rng.standard_normal((size, len(x))) * sd for size in sizes)
    return np.concatenate([middle(x + some, axis=1) for some in noise])


def _spread(influence: Evidence, document: Ids) -> PerLatent:
    """Standard deviation of each latent's own value under resampled documents."""

    def compute(influence: Evidence, document: Ids) -> tuple[PerLatent]:
        groups = Groups(document)
        return (np.sqrt(groups.total(groups.sum(influence) ** 2)),)

    (sd,) = in_chunks(compute, influence, document)
    return sd
