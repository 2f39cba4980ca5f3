"""The numbers behind scores: thresholds, rates, rates at the base rate, chance correction.

What belongs here: pure functions from judgements, or from scores, to one number per latent. No table, no file, no
model. Areas are in `areas`, intervals of rates in `rates`, summaries over latents in `resampling`. Definitions:
docs/methods.md, "From judgements to numbers". Each function names its source.

All of `statistics` has these conventions. A block of latents is a set of padded arrays `[latents n]`, one column per
judgement, in any order:

- `truth` bool: the latent is active in the context;
- `evidence` float, higher = more active, and/or `prediction` bool, True = "active";
- `valid` bool: False for padding and for a judgement without an answer, neither of which ever counts;
- `cluster` int: the document of the context. Judgements of one cluster may depend on each other; each judgement with a
  negative id is a cluster of its own. A document may contain positives and negatives. Ids are not compared between
  latents;
- `prompt` int: the prompt in which the judgement was made, which is a cluster too; negative or None: judged alone.

What cannot be computed is NaN, never an exception: a class is missing, nothing is valid, or there are fewer than two
clusters for an interval. The caller knows the reason and writes it into the row. Outside `resampling`, `crossed`,
`specificity` and `multiple_testing`, which summarise over latents, no function looks at two latents at once, so adding
latents changes no number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from latentgloss.errors import InputError
from latentgloss.statistics.clusters import Evidence, Ids, Mask, PerLatent, Shares, alone, groupings, in_chunks
from latentgloss.statistics.intervals import Interval, mover, mover_ratio, ratio
from latentgloss.statistics.rates import clustered_share, correlation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


Column: TypeAlias = Float[np.ndarray, "latents 1"]
Counts: TypeAlias = Int[np.ndarray, " latents"]

FULL_WEIGHT = 20
"""Judgements of the rarer class with which a latent's own threshold is used unchanged."""


class Confusion(NamedTuple):
    """Counts of judgements [latents] and their rates; a rate is NaN where its class is missing."""

    tp: Counts
    fp: Counts
    tn: Counts
    fn: Counts
    tpr: PerLatent
    tnr: PerLatent
    balanced_accuracy: PerLatent
    f1: PerLatent


class AtBaseRate(NamedTuple):
    """Rates of a judge at the firing rate of each latent, with intervals."""

    tpr: Interval
    fpr: Interval
    balanced_accuracy: Interval
    precision: Interval
    f1: PerLatent
    unresolved: Bool[np.ndarray, " latents"]
    """The interval of the precision is too wide, or there is none."""


def youden_threshold(evidence: Evidence, truth: Mask, valid: Mask) -> PerLatent:
    """Threshold τ per latent, in the unit of the evidence, that maximises TPR - FPR (Youden, 1950).

    `evidence >= τ` means "active". τ lies halfway between neighbouring values of the evidence. Of equally good τ the
    one with the lowest FPR is taken, so uninformative evidence gets a τ just above its maximum (always "no"). NaN where
    a class is missing.
    """

    def compute(evidence: Evidence, truth: Mask, valid: Mask) -> tuple[PerLatent]:
        n = evidence.shape[1]
        valid = valid & ~np.isnan(evidence)
        order = np.argsort(np.where(valid, evidence, np.nan), axis=1)  # NaN sorts last
        e, t, v = (np.take_along_axis(a, order, 1) for a in (evidence, truth, valid))
        e = e.astype(np.float64)
        # A cut c in 0 … n says "no" left of column c. Here: negatives and positives left of each cut.
        left_neg, left_pos = (
            np.pad(np.cumsum(v & of_class, axis=1, dtype=np.int64), ((0, 0), (1, 0))) for of_class in (~t, t)
        )
        n_neg, n_pos, n_valid = left_neg[:, -1:], left_pos[:, -1:], v.sum(1, keepdims=True)
        # n_neg n_pos (TPR - FPR), in integers, so that rounding cannot decide between equal values.
        j = left_neg * n_pos - left_pos * n_neg
        column = np.arange(n + 1)
        inside_a_tie = np.zeros(j.shape, bool)
        inside_a_tie[:, 1:-1] = e[:, 1:] == e[:, :-1]
        j[(inside_a_tie & (column < n_valid)) | (column > n_valid)] = np.iinfo(np.int64).min
        cut = n - np.argmax(j[:, ::-1], axis=1, keepdims=True)  # the last maximum has the lowest FPR
        below, above = (np.take_along_axis(e, np.clip(at, 0, n - 1), 1) for at in (cut - 1, cut))
        middle = below / 2 + above / 2
        middle = np.where(middle > below, middle, above)  # there is no float between neighbouring floats
        tau = np.where(cut == n_valid, np.nextafter(below, np.inf), middle)
        return (np.where(n_neg * n_pos > 0, tau, np.nan)[:, 0],)

    (tau,) = in_chunks(compute, evidence, truth, valid)
    return tau


def shrink(tau: PerLatent, n: Shaped[np.ndarray, " latents"], prior: PerLatent | float) -> PerLatent:
    """w τ + (1 - w) prior: a latent's threshold, shrunk towards a prior where few judgements support it.

    w = min(n / `FULL_WEIGHT`, 1), with n the latent's judgements in the rarer class. Thresholds from 20 or more
    judgements per class stay as they are, and there is no jump at 20. A latent without a τ (NaN) gets its prior, a
    latent without a prior keeps its τ, and a latent without either gets NaN.
    """
    weight = np.where(np.isnan(prior), 1.0, np.clip(np.asarray(n) / FULL_WEIGHT, 0.0, 1.0))
    weight = np.where(np.isnan(tau), 0.0, weight)
    # A term of weight 0 must vanish even where it is NaN.
    own, given = np.where(weight > 0, weight * tau, 0.0), np.where(weight < 1, (1 - weight) * prior, 0.0)
    return own + given


def coverage(asked: Mask, valid: Mask) -> PerLatent:
    """Share of the `asked` judgements that count. `asked` is False for padding. NaN where nothing was asked."""
    return ratio((asked & valid).sum(1), asked.sum(1))


def confusion(truth: Mask, prediction: Mask, valid: Mask) -> Confusion:
    """Counts and rates of the judged sample, with F1 = 2 TP / (2 TP + FP + FN), NaN without valid positives.

    `prevalence_weighted` has F1 at the base rate.
    """
    yes, no = valid & prediction, valid & ~prediction
    tp, fp, fn, tn = ((a & c).sum(1) for a in (yes, no) for c in (truth, ~truth))
    tpr, tnr = ratio(tp, tp + fn), ratio(tn, tn + fp)
    f1 = np.where(tp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), np.nan)
    return Confusion(tp, fp, tn, fn, tpr, tnr, (tpr + tnr) / 2, f1)


def recall_by_decile(truth: Mask, prediction: Mask, decile: Ids, valid: Mask) -> Float[np.ndarray, "latents deciles"]:
    """TPR within each decile of the activation, [latents 10]; NaN where a decile has no valid judgement.

    `decile`: 1 to 10 (the strongest) for activating contexts, 0 for others.
    """
    counted = truth & valid
    within = [counted & (decile == d) for d in range(1, 11)]
    return np.stack([ratio((w & prediction).sum(1), w.sum(1)) for w in within], axis=1)


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
    """Rates, precision and F1 at the firing rate π of each latent, from strata that were sampled at other rates.

    FPR = Σ W_h FPR_h; balanced accuracy = (TPR + 1 - FPR) / 2; precision = π TPR / (π TPR + (1 - π) FPR);
    F1 = 2 π TPR / (π TPR + (1 - π) FPR + π). `stratum`: the column of `share` to which a non-activating context belongs
    (any value for activating contexts). `share`: W_h [latents strata], taken relative to their sum. Intervals: MOVER
    over strata, MOVER-R for FPR / TPR. A number is NaN where a class that it needs is missing, or where a stratum with
    W_h > 0 has no valid judgement, because its false positives are unknown.

    `unresolved`: the interval of the precision is wider than `resolution`, or there is none. A latent that fires once
    in a thousand contexts needs an FPR known to a thousandth, which no sample without false positives gives.
    """

    def compute(
        truth: Mask, said: Mask, valid: Mask, cluster: Ids, prompt: Ids, stratum: Ids, share: Shares, rate: Column
    ) -> tuple[PerLatent, ...]:
        ways = groupings(cluster, prompt)
        within = [valid & ~truth & (stratum == h) for h in range(share.shape[1])]
        tpr, residual_pos = clustered_share(ways, truth & valid, said, level)
        strata = [clustered_share(ways, inside, said, level) for inside in within]
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = (share / share.sum(1, keepdims=True)).T
            fpr = mover([part for part, _ in strata], list(weights))
            residual_neg = [
                sum(
                    -np.nan_to_num(way.spread(w / inside.sum(1))) * residual[i]
                    for inside, w, (_, residual) in zip(within, weights, strata, strict=True)
                )
                for i, way in enumerate(ways)
            ]
            tnr = Interval(1 - fpr.value, 1 - fpr.high, 1 - fpr.low)
            accuracy = mover([tpr, tnr], [0.5, 0.5], correlation(ways, residual_pos, residual_neg, valid))
            false_per_true, pi = mover_ratio(fpr, tpr), rate[:, 0]
            # Precision falls as FPR / TPR rises, so the ends change places.
            ratios = (false_per_true.value, false_per_true.high, false_per_true.low)
            precision = [1 / (1 + (1 - pi) / pi * r) for r in ratios]
            f1 = 2 * pi * tpr.value / (pi * tpr.value + (1 - pi) * fpr.value + pi)
        return (*tpr, *fpr, *accuracy, *precision, f1)

    prompt = alone(truth) if prompt is None else prompt
    parts = in_chunks(compute, truth, prediction, valid, cluster, prompt, stratum, share, firing_rate[:, None])
    tpr, fpr, accuracy, precision = (Interval(*parts[i : i + 3]) for i in (0, 3, 6, 9))
    unresolved = ~(precision.high - precision.low <= resolution)
    return AtBaseRate(tpr, fpr, accuracy, precision, parts[12], unresolved)


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
"""The best value that a judge without information can reach, by metric. It is a function where it depends on the share
of positives: that of the sample for `f1` and `auprc`, that of the population for `…_at_base_rate`. None: there is no
such value (always answering yes gives a TPR of 1; nats have no ceiling). `accuracy` is that of finding one of five."""


def uninformed(metric: str, rate: PerLatent) -> PerLatent:
    """The uninformed value of `metric` [latents], NaN if there is none. `rate`: share of positives per latent.

    Raises InputError for a metric that is not in `UNINFORMED`.
    """
    if metric not in UNINFORMED:
        raise InputError(
            f"metric {metric!r} is unknown",
            expected=f"one of {', '.join(sorted(UNINFORMED))}",
            todo="use the name of a metric from the data dictionary",
        )
    value = UNINFORMED[metric]
    if callable(value):
        return value(rate)
    return np.full(rate.shape, np.nan if value is None else value)


def corrected(
    value: Float[np.ndarray, "*shape"], uninformed: Float[np.ndarray, "*shape"] | float
) -> Float[np.ndarray, "*shape"]:
    """(s - c) / (1 - c), with s the `value` and c the uninformed value.

    0 can be reached without information, 1 is perfect, and below 0 is worse than chance. NaN where s or c is.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Float[np.ndarray, "*shape"] = (value - uninformed) / (1 - np.asarray(uninformed))
    return result
