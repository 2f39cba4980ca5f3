"""Shares of clustered judgements: TPR, TNR, balanced accuracy, and the accuracy of trials.

What belongs here: how uncertain a share is when several judgements have a document or a prompt in common (`clusters`).
The intervals themselves are made in `intervals`; the conventions for blocks of latents are those of `metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Shaped

from latentgloss.statistics.clusters import (
    Groups,
    Ids,
    Mask,
    PerGroup,
    PerLatent,
    Ways,
    alone,
    combined,
    groupings,
    in_chunks,
    share_prompts,
)
from latentgloss.statistics.intervals import Interval, mover, ratio, wilson

if TYPE_CHECKING:
    from collections.abc import Sequence


LEAST_INFLATION = 0.75
"""Least inflation of the variance of a share by clustering. Of the values tried, .5 to 1 in steps, the one that keeps
coverage within .93 to .97."""


class Rates(NamedTuple):
    """The rates of a judge that answers yes or no, with their intervals."""

    tpr: Interval
    tnr: Interval
    balanced_accuracy: Interval


def rate_intervals(
    truth: Mask, prediction: Mask, valid: Mask, cluster: Ids, level: float = 0.95, prompt: Ids | None = None
) -> Rates:
    """TPR, TNR and balanced accuracy = (TPR + TNR) / 2, with intervals for clustered judgements.

    Arrays [latents n] as in `metrics`. TPR and TNR: Wilson at the effective sample size of `clustered_share`. Balanced
    accuracy: MOVER, with the correlation of TPR and TNR over shared documents and prompts. A rate is NaN where its
    class has no valid judgement; its ends are also NaN where the class has fewer than two clusters.
    """

    def compute(truth: Mask, prediction: Mask, valid: Mask, cluster: Ids, prompt: Ids) -> tuple[PerLatent, ...]:
        ways = groupings(cluster, prompt)
        tpr, residual_pos = clustered_share(ways, truth & valid, prediction, level)
        tnr, residual_neg = clustered_share(ways, ~truth & valid, ~prediction, level)
        accuracy = mover([tpr, tnr], [0.5, 0.5], correlation(ways, residual_pos, residual_neg, valid))
        return (*tpr, *tnr, *accuracy)

    parts = in_chunks(compute, truth, prediction, valid, cluster, alone(truth) if prompt is None else prompt)
    return Rates(Interval(*parts[:3]), Interval(*parts[3:6]), Interval(*parts[6:]))


def overlapping_share(said: Mask, valid: Mask, members: Shaped[np.ndarray, "latents n members"]) -> Interval:
    """Share of `said` among `valid` judgements [latents n] that each have several documents, with Wilson's interval.

    `members`: the distinct documents of each judgement [latents n members], which judgements may have in common; a
    negative id is no document. The interval is Wilson's at n / inflation. Answers i and j are taken to correlate by
    ρ o_ij, with o_ij the share of documents that i has in common with j. The inflation is 1 + ρ̂ Σ o_ij / n over i ≠ j,
    between its values at ρ = 0 and ρ = 1. ρ̂ is the slope through zero of the products of residuals on o_ij, corrected
    for the correlation of -1 / (n - 1) that residuals have in any case. Where all answers agree ρ̂ is 1. NaN where no
    judgement is valid. Simulated at 10 and 20 judgements of five documents each: docs/methods.md, Intruder.
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


class OneWay(NamedTuple):
    """What clusters of one kind do to the variance of a share."""

    inflation: PerLatent
    """Variance of the share, relative to that of independent judgements."""
    df: PerLatent
    """Degrees of freedom of the inflation."""
    mean_size: PerLatent
    """m̄: size of the cluster of an average judgement."""
    k: PerLatent
    """Clusters with a judgement that counts."""
    residual: PerGroup
    """Hits of each cluster minus the hits expected from the share."""


def clustered_share(ways: Ways, within: Mask, said: Mask, level: float) -> tuple[Interval, list[PerGroup]]:
    """Share of `said` among `within`, its interval, and the residual hits of each cluster for each of `ways`.

    The interval is Wilson's at n / inflation, with Student's quantile because the inflation is an estimate.

    One kind of clusters: the inflation is 1 + (m̄ - 1) ρ̂. m̄ = Σ m² / n is the size of the cluster of an average
    judgement (exact for unequal sizes). ρ̂ is the ANOVA estimator of the correlation within clusters, with n₀ for
    unequal sizes (Donner, Int. Stat. Rev. 54:67, 1986). ρ̂ may be negative, down to an inflation of `LEAST_INFLATION`;
    cut at 0 it would be too high on average where there is no clustering, and intervals too wide. Where all answers
    agree, ρ̂ cannot be estimated and is taken as 1. Then the effective n is the number of clusters k, and a perfect rate
    has a lower end of about k / (k + 3.84). The degrees of freedom are (k - 1) m̄ / ((m̄ - 1) (1 - ρ̂)²): twice the
    inverse of the squared relative error of the inflation, from the large-sample variance of ρ̂ in normal data. They are
    infinite without clustering, where the interval is Wilson's own, and at ρ̂ = 1, where a cluster is one answer.

    Documents and prompts: the inflations are `combined`, up to the larger m̄, because the parts of an answer that are
    due to its document and to its prompt add up to at most one. The degrees of freedom are Satterthwaite's (Biometrics
    Bull. 2:110, 1946), with the variances of the inflations added in the same way, and at least the smaller of those
    of the two kinds. The ends are NaN where there are fewer than two clusters of a kind.
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
    """Inflation, degrees of freedom and residuals for clusters of one kind (`clustered_share` has the formulas)."""
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
    """Correlation r of two sums of judgements [latents], from their residuals per cluster for each of `ways`.

    r = Σ a_c b_c / √(Σ a_c² Σ b_c²) over the documents c of a latent. Where `counted` judgements share prompts, each
    of the three sums is that over documents plus that over prompts minus that over both, and r is clipped to [-1, 1].
    0 where one of the sums does not vary.
    """
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
