"""The numbers behind scores: thresholds, metrics, rates at the base rate, chance correction.

What belongs here: pure functions from judgements (or from scores) to numbers, vectorised over latents. No
table, no file, no model. Definitions: docs/methods.md, "From judgements to numbers"; sources are named per
function. Intervals of rates and areas are made in `intervals`, medians over latents in `resampling`; both are
offered here too, so that callers need one import.

A block of latents is a set of padded arrays `[latents n]`, one column per judgement, in any order:

- `truth` bool: the latent is active in the context;
- `evidence` float, higher = more active, and/or `prediction` bool, True = "active";
- `valid` bool: False is padding or a judgement without an answer; neither is ever counted;
- `cluster` int: document of the context; judgements of one cluster may depend on each other, those with a
  negative id are clusters of their own. A document may hold positives and negatives; ids are not compared
  between latents;
- `prompt` int: what was judged in one prompt, which is a cluster too; negative or None: judged alone.

What cannot be computed (a class is missing, nothing valid, fewer than two clusters for an interval) is NaN,
never an exception: the caller knows why and says so in the row. Nothing here looks at two latents at once, so
adding latents changes no number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from latentgloss.errors import InputError
from latentgloss.statistics.clusters import Evidence, Ids, Mask, PerLatent, Shares, alone, groupings, in_chunks
from latentgloss.statistics.intervals import (
    Interval,
    Rates,
    auroc,
    clustered_share,
    correlation,
    mover,
    mover_ratio,
    overlapping_share,
    rate_intervals,
    ratio,
    wilson,
)
from latentgloss.statistics.resampling import Median, median_interval, paired_median_gain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


__all__ = [
    "UNINFORMED",
    "AtBaseRate",
    "Confusion",
    "Interval",
    "Median",
    "Rates",
    "auprc",
    "auprc_at_base_rate",
    "auroc",
    "confusion",
    "corrected",
    "coverage",
    "median_interval",
    "overlapping_share",
    "paired_median_gain",
    "prevalence_weighted",
    "rate_intervals",
    "recall_by_decile",
    "shrink",
    "uninformed",
    "wilson",
    "youden_threshold",
]

Column: TypeAlias = Float[np.ndarray, "latents 1"]
Counts: TypeAlias = Int[np.ndarray, " latents"]

FULL_WEIGHT = 20
"""Judgements of the rarer class from which a latent's own threshold is used as it is."""


class Confusion(NamedTuple):
    """Counts of judgements and their rates; a rate is NaN where its class is missing."""

    tp: Counts
    fp: Counts
    tn: Counts
    fn: Counts
    tpr: PerLatent
    tnr: PerLatent
    balanced_accuracy: PerLatent
    f1: PerLatent


class AtBaseRate(NamedTuple):
    """What a judge's answers are worth at the latent's own firing rate."""

    tpr: Interval
    fpr: Interval
    balanced_accuracy: Interval
    precision: Interval
    f1: PerLatent
    unresolved: Bool[np.ndarray, " latents"]


def youden_threshold(evidence: Evidence, truth: Mask, valid: Mask) -> PerLatent:
    """τ per latent, in the evidence's unit: "active" is `evidence >= τ`; maximises TPR - FPR (Youden, 1950).

    τ lies halfway between neighbouring values; of equally good τ the one with the lowest FPR is taken.
    Evidence that tells nothing therefore gets a τ just above its maximum (always "no"). NaN where a class
    is missing.
    """

    def compute(evidence: Evidence, truth: Mask, valid: Mask) -> tuple[PerLatent]:
        n = evidence.shape[1]
        valid = valid & ~np.isnan(evidence)
        order = np.argsort(np.where(valid, evidence, np.nan), axis=1)  # NaN sorts last
        e, t, v = (np.take_along_axis(a, order, 1) for a in (evidence, truth, valid))
        e = e.astype(np.float64)
        # A cut c in 0 … n says "no" left of column c. Counted: negatives and positives left of it.
        left_neg, left_pos = (
            np.pad(np.cumsum(v & of_class, axis=1, dtype=np.int64), ((0, 0), (1, 0))) for of_class in (~t, t)
        )
        n_neg, n_pos, n_valid = left_neg[:, -1:], left_pos[:, -1:], v.sum(1, keepdims=True)
        # J times n_neg n_pos, in integers: rounding must not decide which of two equal J has the lower FPR.
        j = left_neg * n_pos - left_pos * n_neg
        column = np.arange(n + 1)
        inside_a_tie = np.zeros(j.shape, bool)
        inside_a_tie[:, 1:-1] = e[:, 1:] == e[:, :-1]
        j[(inside_a_tie & (column < n_valid)) | (column > n_valid)] = np.iinfo(np.int64).min
        cut = n - np.argmax(j[:, ::-1], axis=1, keepdims=True)  # the last maximum has the lowest FPR
        below, above = (np.take_along_axis(e, np.clip(at, 0, n - 1), 1) for at in (cut - 1, cut))
        middle = below / 2 + above / 2
        middle = np.where(middle > below, middle, above)  # neighbouring floats have nothing between them
        tau = np.where(cut == n_valid, np.nextafter(below, np.inf), middle)
        return (np.where(n_neg * n_pos > 0, tau, np.nan)[:, 0],)

    (tau,) = in_chunks(compute, evidence, truth, valid)
    return tau


def shrink(tau: PerLatent, n: Shaped[np.ndarray, " latents"], prior: PerLatent | float) -> PerLatent:
    """τ drawn towards `prior` (the SAE's τ) where few judgements support it.

    A latent's own τ weighs n / 20, at most 1, with n its judgements in the rarer class: shrinkage is for
    fewer than 20 per class, and this way it sets in without a jump. A latent without a τ gets the prior, one without
    a prior keeps its τ.
    """
    weight = np.where(np.isnan(prior), 1.0, np.clip(np.asarray(n) / FULL_WEIGHT, 0.0, 1.0))
    weight = np.where(np.isnan(tau), 0.0, weight)
    # A term of weight 0 must vanish even where it is NaN.
    own, given = np.where(weight > 0, weight * tau, 0.0), np.where(weight < 1, (1 - weight) * prior, 0.0)
    return own + given


def coverage(asked: Mask, valid: Mask) -> PerLatent:
    """Share of the judgements asked for (padding is not) that could be counted."""
    return ratio((asked & valid).sum(1), asked.sum(1))


def confusion(truth: Mask, prediction: Mask, valid: Mask) -> Confusion:
    """Counts and rates. F1 is that of the sample; `prevalence_weighted` has the one at the base rate."""
    yes, no = valid & prediction, valid & ~prediction
    tp, fp, fn, tn = ((a & c).sum(1) for a in (yes, no) for c in (truth, ~truth))
    tpr, tnr = ratio(tp, tp + fn), ratio(tn, tn + fp)
    f1 = np.where(tp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), np.nan)
    return Confusion(tp, fp, tn, fn, tpr, tnr, (tpr + tnr) / 2, f1)


def recall_by_decile(truth: Mask, prediction: Mask, decile: Ids, valid: Mask) -> Float[np.ndarray, "latents deciles"]:
    """TPR within deciles 1 to 10 of the activation (10 the strongest, 0 none): 10 columns, NaN if empty."""
    counted = truth & valid
    within = [counted & (decile == d) for d in range(1, 11)]
    return np.stack([ratio((w & prediction).sum(1), w.sum(1)) for w in within], axis=1)


def auprc(truth: Mask, evidence: Evidence, valid: Mask, weight: Evidence | None = None) -> PerLatent:
    """Area under the precision-recall curve as average precision, Σ (R_k - R_{k-1}) P_k over distinct evidence.

    No interpolation between points: that would promise precision no threshold has (Davis & Goadrich, ICML 2006).
    `weight`: of each judgement, >= 0; how many contexts it stands for.
    """
    weight = np.ones(evidence.shape) if weight is None else weight

    def compute(truth: Mask, evidence: Evidence, valid: Mask, weight: Evidence) -> tuple[PerLatent]:
        valid = valid & ~np.isnan(evidence)
        order = np.argsort(np.where(valid, -evidence, np.nan), axis=1, kind="stable")  # NaN sorts last
        e, t, v, w = (np.take_along_axis(a, order, 1) for a in (evidence, truth, valid, weight))
        n = e.shape[1]
        w = np.where(v, w, 0.0)
        positive = np.where(t, w, 0.0)
        # Cumulative sums run from left to right, so padding changes no last digit.
        hits, said = np.cumsum(positive, axis=1), np.cumsum(w, axis=1)
        last = np.full(e.shape, n - 1)  # column at which a run of equal evidence ends
        column = np.arange(n - 1)
        np.minimum.accumulate(np.where(e[:, 1:] != e[:, :-1], column, n - 1)[:, ::-1], axis=1, out=last[:, -2::-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.take_along_axis(hits, last, 1) / np.take_along_axis(said, last, 1)
            found = np.cumsum(np.where(positive > 0, positive * precision, 0.0), axis=1)[:, -1] / hits[:, -1]
        both = (v & t).any(1) & (v & ~t).any(1)
        # A weight nobody knows makes the area unknown, also where it is not summed.
        return (np.where(both & np.isfinite(said[:, -1]), found, np.nan),)

    (area,) = in_chunks(compute, truth, evidence, valid, weight)
    return area


def prevalence_weighted(
    truth: Mask,
    prediction: Mask,
    valid: Mask,
    cluster: Ids,
    stratum: Ids,
    share: Shares,
    firing_rate: PerLatent,
    level: float = 0.95,
    resolution: float = 0.2,
    prompt: Ids | None = None,
) -> AtBaseRate:
    """FPR, precision and F1 at the latent's firing rate π, from strata that were sampled at other rates.

    FPR = Σ W_h FPR_h; balanced accuracy = (TPR + 1 - FPR) / 2;
    precision = π TPR / (π TPR + (1 - π) FPR); F1 = 2 π TPR / (π TPR + (1 - π) FPR + π).
    `stratum`: the column of `share` a non-activating context belongs to (any value for activating ones).
    `share`: W_h, taken relative to their sum. A stratum with W_h > 0 and no valid judgement makes the rates
    NaN: nobody knows its false positives. Intervals: MOVER over strata, MOVER-R for FPR / TPR.
    `unresolved`: precision's interval is wider than `resolution`, or there is none. A latent that fires once
    in a thousand contexts needs an FPR known to a thousandth; no sample without false positives gives that.
    """

    def compute(
        truth: Mask, said: Mask, valid: Mask, cluster: Ids, prompt: Ids, stratum: Ids, share: Shares, rate: Column
    ) -> tuple[PerLatent, ...]:
        ways = groupings(cluster, prompt)
        within = [valid & ~truth & (stratum == h) for h in range(share.shape[1])]
        tpr, residual_pos = clustered_share(ways, truth & valid, said, level)
        strata = [clustered_share(ways, of, said, level) for of in within]
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = (share / share.sum(1, keepdims=True)).T
            fpr = mover([part for part, _ in strata], list(weights))
            residual_neg = [
                sum(
                    -np.nan_to_num(way.spread(w / of.sum(1))) * residual[i]
                    for of, w, (_, residual) in zip(within, weights, strata, strict=True)
                )
                for i, way in enumerate(ways)
            ]
            tnr = Interval(1 - fpr.value, 1 - fpr.high, 1 - fpr.low)
            accuracy = mover([tpr, tnr], [0.5, 0.5], correlation(ways, residual_pos, residual_neg, valid))
            fall, pi = mover_ratio(fpr, tpr), rate[:, 0]
            # Precision falls as FPR / TPR rises, so the ends change places.
            precision = [1 / (1 + (1 - pi) / pi * r) for r in (fall.value, fall.high, fall.low)]
            f1 = 2 * pi * tpr.value / (pi * tpr.value + (1 - pi) * fpr.value + pi)
        return (*tpr, *fpr, *accuracy, *precision, f1)

    prompt = alone(truth) if prompt is None else prompt
    parts = in_chunks(compute, truth, prediction, valid, cluster, prompt, stratum, share, firing_rate[:, None])
    tpr, fpr, accuracy, precision = (Interval(*parts[i : i + 3]) for i in (0, 3, 6, 9))
    unresolved = ~(precision.high - precision.low <= resolution)
    return AtBaseRate(tpr, fpr, accuracy, precision, parts[12], unresolved)


def auprc_at_base_rate(
    truth: Mask, evidence: Evidence, valid: Mask, stratum: Ids, share: Shares, firing_rate: PerLatent
) -> PerLatent:
    """AUPRC of the population, by inverse-probability weights; arguments as in `prevalence_weighted`.

    A judged positive stands for π / n₊ of all contexts, a negative of stratum h for (1 - π) W_h / n_h.
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


UNINFORMED: Mapping[str, float | Callable[[PerLatent], PerLatent] | None] = {
    "balanced_accuracy": 0.5,
    "auroc": 0.5,
    "auprc": lambda rate: rate,
    "auprc_at_base_rate": lambda rate: rate,
    "f1": lambda rate: 2 * rate / (1 + rate),
    "f1_at_base_rate": lambda rate: 2 * rate / (1 + rate),
    "precision_at_base_rate": lambda rate: rate,
    "accuracy": 0.2,
    "pearson": 0.0,
    "explained_variance": 0.0,
    "tpr": None,
    "tnr": None,
    **{f"recall_decile_{d}": None for d in range(1, 11)},
    "delta_nll_nats": None,
}
"""Best value within reach of a judge that knows nothing, by metric; a function where it depends on the share
of positives (of the sample for `f1` and `auprc`, of the population for `…_at_base_rate`). None: there is no
such value (always-yes has a TPR of 1; nats have no ceiling). `accuracy` is that of finding one in five."""


def uninformed(metric: str, rate: PerLatent) -> PerLatent:
    """The uninformed value of `metric` per latent, NaN if it has none. `rate`: share of positives per latent.

    Raises InputError for a metric that is not in `UNINFORMED`.
    """
    if metric not in UNINFORMED:
        raise InputError(
            f"no metric {metric!r}",
            expected=f"one of {', '.join(sorted(UNINFORMED))}",
            todo="use a metric's name from the data dictionary",
        )
    value = UNINFORMED[metric]
    if callable(value):
        return value(rate)
    return np.full(rate.shape, np.nan if value is None else value)


def corrected(
    value: Float[np.ndarray, "*shape"], uninformed: Float[np.ndarray, "*shape"] | float
) -> Float[np.ndarray, "*shape"]:
    """(s - c) / (1 - c): 0 is within reach of knowing nothing, 1 is perfect, below 0 is worse than chance."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Float[np.ndarray, "*shape"] = (value - uninformed) / (1 - np.asarray(uninformed))
    return result
