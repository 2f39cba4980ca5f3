"""Areas under curves of evidence: AUROC with its interval, and AUPRC.

What belongs here: how well evidence ranks activating contexts above others, and DeLong's structural components, which
the interval of an AUROC is made of. Which judgements depend on each other is in `clusters`; the conventions for blocks
of latents are those of `metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from latentgloss.statistics.clusters import (
    Evidence,
    Ids,
    Mask,
    PerGroup,
    PerLatent,
    Shares,
    Ways,
    alone,
    combined,
    groupings,
    in_chunks,
    share_prompts,
)
from latentgloss.statistics.intervals import Interval, quantile, wilson

if TYPE_CHECKING:
    pass


FLAT = 1e-24
"""Variances below this count as zero: rounding leaves 1e-32, and one misplaced pair leaves 1e-20 or more."""


class _Components(NamedTuple):
    """An area, and DeLong's structural components of either class summed within the clusters of each of the ways."""

    area: PerLatent
    positive: list[PerGroup]
    negative: list[PerGroup]


def auroc(
    truth: Mask,
    evidence: Evidence,
    valid: Mask,
    cluster: Ids,
    level: float = 0.95,
    stratum: Ids | None = None,
    share: Shares | None = None,
    prompt: Ids | None = None,
) -> Interval:
    """Area under the ROC curve, with a clustered DeLong interval.

    AUROC = #{(p, q): e_p > e_q} / (n₊ n₋) over pairs of a positive p and a negative q; a tie counts one half.
    Judgements without evidence (NaN) do not count. With `stratum` and `share` (as in `metrics.prevalence_weighted`) it
    is that of the population: Σ W_h AUROC_h over the strata h of negatives. NaN where a class is missing, or a stratum
    with W_h > 0; the ends are also NaN where a class has fewer than two clusters.

    Variance: DeLong's structural components, summed within clusters, with the covariance of the positives and negatives
    of a cluster (Obuchowski, Biometrics 53:567, 1997); `combined` over documents and prompts. The interval is symmetric
    on the logit scale, with Student's t on k - 1 degrees of freedom. k is the number of clusters of the class, and of
    the kind of cluster, that has fewest. Where the variance is zero (perfect separation, or constant evidence) the
    interval is Wilson's at n = k: an AUROC of 1 from 50 documents gives [.93, 1].
    """
    if stratum is None or share is None:
        stratum, share = np.zeros(truth.shape, np.int8), np.ones((len(truth), 1))

    def compute(
        truth: Mask, evidence: Evidence, valid: Mask, cluster: Ids, prompt: Ids, stratum: Ids, share: Shares
    ) -> tuple[PerLatent, ...]:
        ways = groupings(cluster, prompt)
        valid = valid & ~np.isnan(evidence)
        positive, negative = valid & truth, valid & ~truth
        with np.errstate(invalid="ignore", divide="ignore"):
            found = _components(ways, evidence, positive, negative, stratum, share)
            variance, clusters = _variance(ways, found, positive, negative)
            return _logit_interval(found.area, variance, clusters, level)

    prompt = alone(truth) if prompt is None else prompt
    return Interval(*in_chunks(compute, truth, evidence, valid, cluster, prompt, stratum, share))


def _components(
    ways: Ways, evidence: Evidence, positive: Mask, negative: Mask, stratum: Ids, share: Shares
) -> _Components:
    """Σ W_h AUROC_h, and the weighted components of its strata."""
    n_pos = positive.sum(1)
    area = np.zeros(len(evidence))
    of_pos, of_neg = ([np.zeros(len(way.latent)) for way in ways] for _ in range(2))
    for number, weight in enumerate((share / share.sum(1, keepdims=True)).T):
        within = negative & (stratum == number)
        n_neg = within.sum(1)
        won = beaten(evidence, positive, within)
        area_of_stratum = (won * positive).sum(1) / (n_pos * n_neg)
        placement = won / np.where(positive, n_neg[:, None], n_pos[:, None])
        excess = np.nan_to_num(placement - area_of_stratum[:, None])
        area += np.where(weight == 0, 0.0, weight * area_of_stratum)
        for sums, mask, n in ((of_pos, positive, n_pos), (of_neg, within, n_neg)):
            for i, way in enumerate(ways):
                sums[i] += np.nan_to_num(way.spread(weight / n)) * way.sum(excess * mask)
    return _Components(area, of_pos, of_neg)


def _variance(ways: Ways, found: _Components, positive: Mask, negative: Mask) -> tuple[PerLatent, PerLatent]:
    """Obuchowski's variance of the area, and the number of clusters of the class and kind that has fewest."""
    variances: list[PerLatent] = []
    fewest: list[PerLatent] = []
    for way, a, b in zip(ways, found.positive, found.negative, strict=True):
        m_pos, m_neg = way.sum(positive), way.sum(negative)
        k_pos, k_neg, k = (way.total(m > 0) for m in (m_pos, m_neg, m_pos + m_neg))
        variances.append(
            k_pos / (k_pos - 1) * way.total(a**2)
            + k_neg / (k_neg - 1) * way.total(b**2)
            + 2 * k / (k - 1) * way.total(a * b)
        )
        fewest.append(np.minimum(k_pos, k_neg))
    variance, clusters = variances[0], fewest[0]
    if len(ways) > 1:
        variance = np.where(share_prompts(ways, positive | negative), combined(variances), variance)
        clusters = np.minimum(clusters, fewest[1])
    return variance, clusters


def _logit_interval(
    area: PerLatent, variance: PerLatent, clusters: PerLatent, level: float
) -> tuple[PerLatent, PerLatent, PerLatent]:
    """The area and its ends, symmetric on the logit scale; Wilson's where the variance is zero."""
    df = np.where(clusters > 1, clusters - 1, np.nan)
    flat = variance < FLAT
    half = quantile(level, df) * np.sqrt(np.where(flat, np.nan, variance)) / (area * (1 - area))
    logit = np.log(area / (1 - area))
    low, high = (stats.logistic.cdf(logit + side * half) for side in (-1, 1))
    fallback = wilson(area, clusters, level, df)
    return area, np.where(flat, fallback.low, low), np.where(flat, fallback.high, high)


def beaten(evidence: Evidence, positive: Mask, negative: Mask) -> Evidence:
    """How many judgements of the other class each judgement is ranked correctly against [latents n]; a tie counts half.

    For a positive these are the negatives below it, for a negative the positives above it. Divided by the size of the
    other class they are DeLong's structural components. The values are multiples of 1/2, so that sums of them are
    exact. Outside both masks they mean nothing. One sort per latent.
    """
    n = evidence.shape[1]
    order = np.argsort(np.where(positive | negative, evidence, np.nan), axis=1)
    e, pos, neg = (np.take_along_axis(a, order, 1) for a in (evidence, positive, negative))
    differs = e[:, 1:] != e[:, :-1]
    column = np.arange(n, dtype=np.int32)
    first, last = np.zeros(e.shape, np.int32), np.full(e.shape, n - 1, np.int32)
    np.maximum.accumulate(np.where(differs, column[1:], 0), axis=1, out=first[:, 1:])
    np.minimum.accumulate(np.where(differs, column[:-1], n - 1)[:, ::-1], axis=1, out=last[:, -2::-1])
    middle = []  # per class: members left of a run of equal evidence, plus half of the members in it
    for mask in (pos, neg):
        upto = np.pad(np.cumsum(mask, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
        middle.append((np.take_along_axis(upto, first, 1) + np.take_along_axis(upto, last + 1, 1)) / 2)
    found = np.empty(e.shape)
    np.put_along_axis(found, order, np.where(pos, middle[1], pos.sum(1, keepdims=True) - middle[0]), 1)
    return found


def auprc(truth: Mask, evidence: Evidence, valid: Mask, weight: Evidence | None = None) -> PerLatent:
    """Area under the precision-recall curve as average precision, Σ (R_k - R_{k-1}) P_k over distinct evidence.

    R_k and P_k are recall and precision at the k-th highest value of the evidence. There is no interpolation between
    points because it would give precision that no threshold has (Davis & Goadrich, ICML 2006). `weight`: how many
    contexts each judgement stands for, >= 0 [latents n]; without it each stands for one. NaN where a class is missing
    or a weight is not finite.
    """
    weight = np.ones(evidence.shape) if weight is None else weight

    def compute(truth: Mask, evidence: Evidence, valid: Mask, weight: Evidence) -> tuple[PerLatent]:
        valid = valid & ~np.isnan(evidence)
        order = np.argsort(np.where(valid, -evidence, np.nan), axis=1, kind="stable")  # NaN sorts last
        e, t, v, w = (np.take_along_axis(a, order, 1) for a in (evidence, truth, valid, weight))
        n = e.shape[1]
        w = np.where(v, w, 0.0)
        positive = np.where(t, w, 0.0)
        # Cumulative sums run from left to right, so padding does not change even the last digit.
        hits, said = np.cumsum(positive, axis=1), np.cumsum(w, axis=1)
        last = np.full(e.shape, n - 1)  # the column in which a run of equal evidence ends
        column = np.arange(n - 1)
        np.minimum.accumulate(np.where(e[:, 1:] != e[:, :-1], column, n - 1)[:, ::-1], axis=1, out=last[:, -2::-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.take_along_axis(hits, last, 1) / np.take_along_axis(said, last, 1)
            found = np.cumsum(np.where(positive > 0, positive * precision, 0.0), axis=1)[:, -1] / hits[:, -1]
        both = (v & t).any(1) & (v & ~t).any(1)
        # An unknown weight makes the area unknown, even where the weight is not summed.
        return (np.where(both & np.isfinite(said[:, -1]), found, np.nan),)

    (area,) = in_chunks(compute, truth, evidence, valid, weight)
    return area


def auprc_at_base_rate(
    truth: Mask, evidence: Evidence, valid: Mask, stratum: Ids, share: Shares, firing_rate: PerLatent
) -> PerLatent:
    """AUPRC of the population, by inverse-probability weights; arguments as in `metrics.prevalence_weighted`.

    A judged positive stands for π / n₊ of all contexts, a negative of stratum h for (1 - π) W_h / n_h. NaN where a
    class is missing, a stratum with W_h > 0 has no valid judgement, or a share is unknown.
    """
    valid = valid & ~np.isnan(evidence)
    positive = valid & truth
    weight = np.zeros(truth.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight += positive * np.nan_to_num(firing_rate / positive.sum(1), posinf=0.0)[:, None]
        shares = share / share.sum(1, keepdims=True)
        lacking = np.isnan(shares).any(1)
        for h in range(share.shape[1]):
            within = valid & ~truth & (stratum == h)
            n = within.sum(1)
            lacking |= (shares[:, h] > 0) & (n == 0)
            weight += within * np.where(n > 0, (1 - firing_rate) * shares[:, h] / np.maximum(n, 1), 0.0)[:, None]
    return np.where(lacking, np.nan, auprc(truth, evidence, valid, weight))
