"""Intervals for rates and areas whose judgements come in clusters.

What belongs here: how uncertain a share, a sum of shares or an area is when several judgements share a
document or a prompt (`clusters`). What the numbers mean is in `statistics`, whose conventions for blocks of latents
hold here too. Sources are named per function; between candidates, simulated coverage decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Shaped
from scipy import stats

from latentgloss.statistics.clusters import (
    Evidence,
    Groups,
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

if TYPE_CHECKING:
    from collections.abc import Sequence


LEAST_INFLATION = 0.75
"""Of the variance of a share by clustering. Of .5 to 1 in steps the one whose coverage stays within .93 to .97."""


class Interval(NamedTuple):
    """A value per latent and the ends of its interval, all in the value's unit."""

    value: PerLatent
    low: PerLatent
    high: PerLatent


class Rates(NamedTuple):
    tpr: Interval
    tnr: Interval
    balanced_accuracy: Interval


def wilson(
    share: PerLatent, n: Shaped[np.ndarray, " latents"], level: float = 0.95, df: PerLatent | float = np.inf
) -> Interval:
    """Wilson's score interval (JASA 22:209, 1927) at n, possibly effective, judgements.

    `df` < inf takes Student's quantile instead of the normal one. Never of zero width, not even at 0 or 1.
    """
    q2 = _quantile(level, df) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (share + q2 / (2 * n)) / (1 + q2 / n)
        half = np.sqrt(q2 * (share * (1 - share) / n + q2 / (4 * n**2))) / (1 + q2 / n)
        # At 0 and 1 rounding would put an end a hair inside the share.
        low, high = np.fmin(np.clip(centre - half, 0, 1), share), np.fmax(np.clip(centre + half, 0, 1), share)
    known = np.isfinite(centre)
    return Interval(share, np.where(known, low, np.nan), np.where(known, high, np.nan))


def overlapping_share(said: Mask, valid: Mask, members: Shaped[np.ndarray, "latents n members"]) -> Interval:
    """Share of `said` among `valid` judgements of several documents each, which they may have in common.

    `members`: the documents of each judgement, distinct; negative: none. Wilson's interval at n / inflation. Answers i
    and j are taken to correlate by ρ o_ij, o_ij the share of its documents that i has in common with j: the inflation
    is 1 + ρ̂ Σ o_ij / n over i ≠ j, between its values at ρ = 0 and 1. ρ̂ is the slope through zero of the products of
    residuals on o_ij, without the -1 / (n - 1) that residuals have by themselves; where all answers agree it is 1.
    Simulated at 10 and 20 judgements, five documents each: see docs/methods.md, Intruder.
    """
    n = valid.sum(1)
    share = ratio((valid & said).sum(1), n)
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = (members[:, :, None, :, None] == members[:, None, :, None, :]) & (members >= 0)[:, :, None, :, None]
        pairs = valid[:, :, None] & valid[:, None, :] & ~np.eye(members.shape[1], dtype=bool)
        overlap = pairs * alike.sum((3, 4)) / members.shape[2]
        residual = np.where(valid, said - share[:, None], 0.0)
        variance = (residual**2).sum(1) / n
        products = (overlap * residual[:, :, None] * residual[:, None, :]).sum((1, 2)) / variance
        rho = (products + overlap.sum((1, 2)) / (n - 1)) / (overlap**2).sum((1, 2))
        rho = np.where(variance > 0, np.clip(np.nan_to_num(rho), 0.0, 1.0), 1.0)
        return wilson(share, np.where(n > 0, n / (1 + rho * overlap.sum((1, 2)) / n), np.nan))


def rate_intervals(
    truth: Mask, prediction: Mask, valid: Mask, cluster: Ids, level: float = 0.95, prompt: Ids | None = None
) -> Rates:
    """TPR, TNR (Wilson at the effective sample size) and balanced accuracy (MOVER), with clusters.

    `clustered_share` has the effective sample size. MOVER: Zou & Donner, Stat. Med. 27:1693 (2008), with the
    correlation of TPR and TNR over shared documents and prompts.
    """

    def compute(truth: Mask, prediction: Mask, valid: Mask, cluster: Ids, prompt: Ids) -> tuple[PerLatent, ...]:
        ways = groupings(cluster, prompt)
        tpr, residual_pos = clustered_share(ways, truth & valid, prediction, level)
        tnr, residual_neg = clustered_share(ways, ~truth & valid, ~prediction, level)
        accuracy = mover([tpr, tnr], [0.5, 0.5], correlation(ways, residual_pos, residual_neg, valid))
        return (*tpr, *tnr, *accuracy)

    parts = in_chunks(compute, truth, prediction, valid, cluster, alone(truth) if prompt is None else prompt)
    return Rates(Interval(*parts[:3]), Interval(*parts[3:6]), Interval(*parts[6:]))


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
    """Area under the ROC curve (ties count half) with a clustered DeLong interval.

    With `stratum` and `share` (as in `statistics.prevalence_weighted`) that of the population: Σ W_h AUROC_h over
    strata of negatives, NaN if one that counts is missing.

    Variance: Obuchowski, Biometrics 53:567 (1997), DeLong's structural components summed within clusters,
    with the covariance of positives and negatives of one cluster; `combined` for documents and prompts. The
    interval is symmetric on the logit scale, with Student's t on (clusters of the class and kind that has
    fewest) - 1 degrees of freedom. Where the variance is zero (perfect separation, or evidence that
    never varies) it is Wilson's with that number of clusters as n: AUROC 1 from 50 documents gives [.93, 1].
    """
    if stratum is None or share is None:
        stratum, share = np.zeros(truth.shape, np.int8), np.ones((len(truth), 1))

    def compute(
        truth: Mask, evidence: Evidence, valid: Mask, cluster: Ids, prompt: Ids, stratum: Ids, share: Shares
    ) -> tuple[PerLatent, ...]:
        ways = groupings(cluster, prompt)
        valid = valid & ~np.isnan(evidence)
        positive, negative = valid & truth, valid & ~truth
        n_pos = positive.sum(1)
        area = np.zeros(len(evidence))
        of_pos, of_neg = ([np.zeros(len(way.latent)) for way in ways] for _ in range(2))
        with np.errstate(invalid="ignore", divide="ignore"):
            for number, weight in enumerate((share / share.sum(1, keepdims=True)).T):
                within = negative & (stratum == number)
                n_neg = within.sum(1)
                won = beaten(evidence, positive, within)
                mine = (won * positive).sum(1) / (n_pos * n_neg)
                placement = won / np.where(positive, n_neg[:, None], n_pos[:, None])
                excess = np.nan_to_num(placement - mine[:, None])
                area += np.where(weight == 0, 0.0, weight * mine)
                for sums, mask, n in ((of_pos, positive, n_pos), (of_neg, within, n_neg)):
                    for i, way in enumerate(ways):
                        sums[i] += np.nan_to_num(way.spread(weight / n)) * way.sum(excess * mask)
            variances, fewest = [], []
            for way, a, b in zip(ways, of_pos, of_neg, strict=True):
                m_pos, m_neg = way.sum(positive), way.sum(negative)
                k_pos, k_neg, k = (way.total(m > 0) for m in (m_pos, m_neg, m_pos + m_neg))
                variances.append(
                    k_pos / (k_pos - 1) * way.total(a**2)
                    + k_neg / (k_neg - 1) * way.total(b**2)
                    + 2 * k / (k - 1) * way.total(a * b)
                )
                fewest.append(np.minimum(k_pos, k_neg))
            variance, fewer = variances[0], fewest[0]
            if len(ways) > 1:
                variance = np.where(share_prompts(ways, valid), combined(variances), variance)
                fewer = np.minimum(fewer, fewest[1])
            df = np.where(fewer > 1, fewer - 1, np.nan)
            # Rounding leaves a variance of 1e-32 where it is zero; one misplaced pair leaves 1e-20 or more.
            flat = variance < 1e-24
            half = _quantile(level, df) * np.sqrt(np.where(flat, np.nan, variance)) / (area * (1 - area))
            logit = np.log(area / (1 - area))
            low, high = (stats.logistic.cdf(logit + side * half) for side in (-1, 1))
        fallback = wilson(area, fewer, level, df)
        return area, np.where(flat, fallback.low, low), np.where(flat, fallback.high, high)

    prompt = alone(truth) if prompt is None else prompt
    return Interval(*in_chunks(compute, truth, evidence, valid, cluster, prompt, stratum, share))


def mover(
    parts: Sequence[Interval], weights: Sequence[PerLatent | float], correlation: PerLatent | float = 0.0
) -> Interval:
    """Interval of Σ w_i θ_i within [0, 1], w_i ≥ 0, from the intervals of the θ_i (Zou & Donner 2008).

    `correlation` is that of the first two. A part of weight 0 counts nothing, even where it is NaN.
    """
    zero = np.zeros_like(parts[0].value)
    value, down, up = zero, zero, zero
    for part, weight in zip(parts, weights, strict=True):
        used = np.asarray(weight) != 0
        value = value + np.where(used, weight * part.value, 0.0)
        down = down + np.where(used, (weight * (part.value - part.low)) ** 2, 0.0)
        up = up + np.where(used, (weight * (part.high - part.value)) ** 2, 0.0)
    if np.any(correlation):
        (a, b), (w, x) = parts[:2], weights[:2]
        down = down + 2 * correlation * w * x * (a.value - a.low) * (b.value - b.low)
        up = up + 2 * correlation * w * x * (a.high - a.value) * (b.high - b.value)
    low, high = value - np.sqrt(np.maximum(down, 0.0)), value + np.sqrt(np.maximum(up, 0.0))
    return Interval(value, np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0))


def mover_ratio(top: Interval, bottom: Interval) -> Interval:
    """MOVER-R: interval of θ₁/θ₂ ≥ 0 from independent intervals; no upper end (∞) where θ₂ could be 0.

    Donner & Zou, Stat. Methods Med. Res. 21:347 (2012).
    """
    (a, low_a, high_a), (b, low_b, high_b) = top, bottom
    with np.errstate(invalid="ignore", divide="ignore"):
        under, over = high_b * (2 * b - high_b), low_b * (2 * b - low_b)
        inner, outer = low_a * (2 * a - low_a), high_a * (2 * a - high_a)
        # The lower root is rationalised: `under` passes through zero, where θ₂ is half its upper end.
        low = inner / (a * b + np.sqrt(np.maximum((a * b) ** 2 - under * inner, 0.0)))
        high = (a * b + np.sqrt(np.maximum((a * b) ** 2 - over * outer, 0.0))) / over
        known = ~np.isnan(low_a + low_b)
        low, high = np.where(inner > 0, low, 0.0), np.where(over > 0, high, np.inf)
        return Interval(a / b, np.where(known, low, np.nan), np.where(known, high, np.nan))


class OneWay(NamedTuple):
    """What one kind of clusters does to the variance of a share."""

    inflation: PerLatent
    df: PerLatent
    mean_size: PerLatent
    k: PerLatent
    residual: PerGroup
    """Hits of each cluster above what the share would give it."""


def clustered_share(ways: Ways, within: Mask, said: Mask, level: float) -> tuple[Interval, list[PerGroup]]:
    """Share of `said` among `within`, its interval, and each cluster's residual hits for each of `ways`.

    Effective n = n / inflation. Of one kind of clusters the inflation is 1 + (m̄ - 1) ρ̂. m̄ = Σm²/n is the cluster
    size a judgement sees (exact for unequal sizes); ρ̂ the ANOVA estimator of the intra-cluster correlation (with n₀
    for unequal sizes; Donner, Int. Stat. Rev. 54:67, 1986). It may be negative, down to an inflation of
    `LEAST_INFLATION`: cut at 0 it would be too high on average where there is no clustering, and intervals too wide.
    Where all answers of a class agree, ρ̂ cannot be estimated and is taken as 1: n is the number of clusters k, so a
    perfect rate has a lower end of about k / (k + 3.84). ρ̂ being estimated, Student's t is used; degrees of freedom
    (k - 1) m̄ / ((m̄ - 1) (1 - ρ̂)²) are twice the inverse of the inflation's squared relative error (from the
    large-sample variance of ρ̂ in normal data): infinite without clustering, where the interval is
    Wilson's own, and at ρ̂ = 1, where a cluster is one answer.

    Of documents and prompts it is `combined`, at most the larger m̄: the parts that documents and prompts have in an
    answer add up to one at most. Degrees of freedom after Satterthwaite (Biometrics Bull. 2:110, 1946), the variances
    of the inflations added up in the same way, and not fewer than either kind of clusters has.
    """
    found = [_one_way(groups, within, said) for groups in ways]
    one, n = found[0], within.sum(1)
    inflation, df, enough = one.inflation, one.df, one.k > 1
    with np.errstate(invalid="ignore", divide="ignore"):
        if len(found) > 1:
            two = found[1]
            most = np.maximum(one.mean_size, two.mean_size)
            total = np.clip(combined([way.inflation for way in found]), LEAST_INFLATION, most)
            errors = [np.maximum(way.inflation, LEAST_INFLATION) ** 2 / way.df for way in found]
            error = np.maximum(errors[0] + (errors[1] - errors[2]), np.maximum(errors[0], errors[1]))
            together = two.mean_size > 1
            inflation = np.where(together, total, inflation)
            df = np.where(together, np.maximum(total**2 / error, np.minimum(one.df, two.df)), df)
            enough = enough & (two.k > 1)
        effective = np.where(enough, n / np.maximum(inflation, LEAST_INFLATION), np.nan)
    interval = wilson(ratio((within & said).sum(1), n), effective, level, np.where(enough, df, np.nan))
    return interval, [way.residual for way in found]


def _one_way(groups: Groups, within: Mask, said: Mask) -> OneWay:
    size, hits = groups.sum(within), groups.sum(within & said)
    n, k = groups.total(size), groups.total(size > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = groups.total(hits) / n
        of_clusters = groups.total(np.where(size > 0, hits**2 / size, 0.0))
        mean_size = groups.total(size**2) / n
        between = (of_clusters - n * share**2) / (k - 1)
        inside = (groups.total(hits) - of_clusters) / (n - k)
        n0 = (n - mean_size) / (k - 1)
        icc = (between - inside) / (between + (n0 - 1) * inside)
        icc = np.where(np.isfinite(icc), np.minimum(icc, 1.0), 1.0)
        df = (k - 1) * mean_size / ((mean_size - 1) * (1 - np.maximum(icc, 0.0)) ** 2)
        residual = np.nan_to_num(hits - groups.spread(share) * size)
    return OneWay(1 + (mean_size - 1) * icc, df, mean_size, k, residual)


def correlation(ways: Ways, a: Sequence[PerGroup], b: Sequence[PerGroup], counted: Mask) -> PerLatent:
    """Of two sums of judgements, from their clusters' residuals for each of `ways`; 0 where one does not vary."""
    aa, bb, ab = (
        [way.total(x * y) for way, x, y in zip(ways, first, second, strict=True)]
        for first, second in ((a, a), (b, b), (a, b))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        r = ab[0] / np.sqrt(aa[0] * bb[0])
        if len(ways) > 1:
            crossed = (ab[0] + (ab[1] - ab[2])) / np.sqrt(combined(aa) * combined(bb))
            r = np.where(share_prompts(ways, counted), np.clip(crossed, -1, 1), r)
    result: PerLatent = np.nan_to_num(r, nan=0.0, posinf=0.0)
    return result


def beaten(evidence: Evidence, positive: Mask, negative: Mask) -> Evidence:
    """Judgements of the other class on the right side of each, ties half; from one sort per latent.

    Of a positive: negatives below it; of a negative: positives above it. DeLong's structural components are
    these over the size of the other class. Multiples of 1/2, so sums of them are exact. Meaningless outside
    both masks.
    """
    n = evidence.shape[1]
    order = np.argsort(np.where(positive | negative, evidence, np.nan), axis=1)
    e, pos, neg = (np.take_along_axis(a, order, 1) for a in (evidence, positive, negative))
    differs = e[:, 1:] != e[:, :-1]
    column = np.arange(n, dtype=np.int32)
    first, last = np.zeros(e.shape, np.int32), np.full(e.shape, n - 1, np.int32)
    np.maximum.accumulate(np.where(differs, column[1:], 0), axis=1, out=first[:, 1:])
    np.minimum.accumulate(np.where(differs, column[:-1], n - 1)[:, ::-1], axis=1, out=last[:, -2::-1])
    middle = []  # members of a class left of a run of equal values, plus half of those in it
    for mask in (pos, neg):
        upto = np.pad(np.cumsum(mask, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
        middle.append((np.take_along_axis(upto, first, 1) + np.take_along_axis(upto, last + 1, 1)) / 2)
    beaten = np.empty(e.shape)
    np.put_along_axis(beaten, order, np.where(pos, middle[1], pos.sum(1, keepdims=True) - middle[0]), 1)
    return beaten


def ratio(top: Shaped[np.ndarray, " latents"], bottom: Shaped[np.ndarray, " latents"]) -> PerLatent:
    """top / bottom, NaN where there is nothing below."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: PerLatent = np.where(bottom > 0, top / bottom, np.nan)
    return result


def _quantile(level: float, df: PerLatent | float) -> PerLatent | float:
    """Two-sided quantile of Student's t; at df = inf the normal one."""
    quantile: PerLatent | float = stats.t.ppf((1 + level) / 2, df)
    return quantile
