"""Uncertainty over latents × documents: aggregates over latents whose judgements share documents.

What belongs here: the influence of each judgement on the value of its latent, and the interval that follows for a
median or mean over latents. An easy document lifts many latents at once, so documents are resampled for all latents
together. Intervals over latents alone are in `resampling`. Every draw follows from a seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import sparse

from latentgloss.statistics.areas import beaten
from latentgloss.statistics.clusters import CHUNK, Evidence, Groups, Ids, Mask, PerLatent, in_chunks
from latentgloss.statistics.resampling import Draws, Values, resampled_medians

if TYPE_CHECKING:
    from collections.abc import Callable

Aggregate: TypeAlias = Literal["median", "mean"]

WIDE = 2**22
"""Numbers of a table of latents by resamples that are in memory at once."""


class Crossed(NamedTuple):
    """An aggregate over latents whose judgements share documents, with the parts of its uncertainty."""

    value: float
    low: float
    high: float
    n: int
    sd_latents: float
    """Standard error from the draw of latents, each with its own sampling noise; in the unit of the value."""
    sd_documents: float
    """Additional standard error from documents that are easy or hard for many latents at once."""


def influence_on_accuracy(truth: Mask, prediction: Mask, valid: Mask) -> Evidence:
    """By how much each judgement moves its latent's balanced accuracy, to first order [latents n]; rows sum to 0.

    (hit - TPR) / (2 n₊) for a positive, (hit - TNR) / (2 n₋) for a negative, with hit = 1 for a right answer and 0 for
    a wrong one; 0 where `valid` is False, NaN in all columns of a latent without one of the classes.
    """

    def compute(truth: Mask, prediction: Mask, valid: Mask) -> tuple[Evidence]:
        right = prediction == truth
        moves = np.zeros(truth.shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            for within in (truth & valid, ~truth & valid):
                n = within.sum(1, keepdims=True)
                moves += within * (right - (within & right).sum(1, keepdims=True) / n) / (2 * n)
        return (moves,)

    (moves,) = in_chunks(compute, truth, prediction, valid)
    return moves[:, : truth.shape[1]]


def influence_on_auroc(truth: Mask, evidence: Evidence, valid: Mask) -> Evidence:
    """As `influence_on_accuracy`, for AUROC [latents n]: (V - AUROC) / n of the judgement's class.

    V is DeLong's structural component of the judgement. A judgement without evidence (NaN) has an influence of 0.
    """

    def compute(truth: Mask, evidence: Evidence, valid: Mask) -> tuple[Evidence]:
        valid = valid & ~np.isnan(evidence)
        positive, negative = valid & truth, valid & ~truth
        n_pos, n_neg = positive.sum(1, keepdims=True), negative.sum(1, keepdims=True)
        won = beaten(evidence, positive, negative)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = (won * positive).sum(1, keepdims=True) / (n_pos * n_neg)
            own, other = np.where(positive, n_pos, n_neg), np.where(positive, n_neg, n_pos)
            moves = np.where(valid, (won / other - area) / own, 0.0)
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
    """Median or mean of the finite `values`, with a bootstrap interval over latents × documents.

    `influence[i, j]` is by how much judgement j moves value i (`influence_on_…`; for a difference of two values, the
    difference of their influences). `document` has the document of each judgement, numbered *the same way* for all
    latents; each negative number is a document of its own. Latents with a value or influence that is not finite are
    left out.

    A draw of latents includes the sampling noise of each latent, so documents add only what they do to many latents at
    once. One draw of document weights w applies to all latents: value i becomes values_i + Σ_j (w_j - 1) influence_ij,
    and the aggregate moves. Part of this movement is again noise of single latents. It is estimated by giving each
    latent independent noise of the same size, and subtracted: V = V_latents + max(0, V_documents - V_noise), as in
    two-way clustered variances (Cameron, Gelbach & Miller, JBES 29:238, 2011). Multiplying the weights of latents and
    documents instead (Owen, Ann. Appl. Stat. 1:386, 2007) counts that noise three times. The ends are percentiles of
    the resampled aggregates, each with a normal draw of the documents' variance added. They are NaN with fewer than two
    latents or two documents.

    Memory: a copy of the arrays given, and a few times `WIDE` numbers.
    """
    known = np.isfinite(values) & np.isfinite(influence).all(axis=1)
    order = np.argsort(values[known], kind="stable")
    x = values[known][order].astype(np.float64)
    rows = np.flatnonzero(known)[order]
    middle: Callable[..., Float[np.ndarray, "*_"]] = np.median if aggregate == "median" else np.mean
    value = float(middle(x)) if len(x) else np.nan
    ids = document[rows]
    shared = ids >= 0
    phi = np.where(shared, influence[rows], 0.0)  # other documents are part of the latent's own noise
    n_documents = int(ids.max(initial=-1)) + 1
    if len(x) < 2 or (n_documents < 2 and shared.all()):
        return Crossed(value, np.nan, np.nan, len(x), np.nan, np.nan)
    rng = np.random.default_rng(seed)
    draws = (resampled_medians if aggregate == "median" else _resampled_means)(x, rng, resamples)
    extra = 0.0
    if n_documents > 1:
        moved = _moved_by_documents(x, phi, ids, n_documents, middle, rng, document_resamples)
        noise = _moved_by_noise(x, _spread(phi, ids), middle, rng, document_resamples)
        extra = float(np.sqrt(max(0.0, moved.var(ddof=1) - noise.var(ddof=1))))
    low, high = np.quantile(draws + extra * rng.standard_normal(resamples), [(1 - level) / 2, (1 + level) / 2])
    return Crossed(value, float(low), float(high), len(x), float(draws.std(ddof=1)), extra)


def _resampled_means(x: Values, rng: np.random.Generator, resamples: int) -> Draws:
    """Means of `resamples` bootstrap samples of x."""
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
    """Aggregates of x under resampled documents; documents without a judgement are not resampled."""
    latents, n = influence.shape
    ids = np.where(document >= 0, document, 0).astype(np.int32).ravel()
    by_document = sparse.csr_array(
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
        found.append(middle(np.ascontiguousarray((by_document @ more).T) + x, axis=1))
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
    """Standard deviation of each latent's value under resampled documents [latents]."""

    def compute(influence: Evidence, document: Ids) -> tuple[PerLatent]:
        groups = Groups(document)
        return (np.sqrt(groups.total(groups.sum(influence) ** 2)),)

    (sd,) = in_chunks(compute, influence, document)
    return sd
