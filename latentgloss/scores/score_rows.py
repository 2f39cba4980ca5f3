"""From judgements to scores.

    judgements of one arm       -> one row per latent
    judgements of all arms      -> one row per latent for the population
    judgements of trials        -> one row per latent (intruder detection)

What belongs here: the table `scores` of one explainer, judge and block, rows of latents without a score included. The
numbers themselves are computed in `statistics`; judgements are made in `judgements.py`. Nothing is read or written.
Definitions: docs/methods.md, From judgements to numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.scores.padded import Padded
from latentgloss.statistics import areas, metrics
from latentgloss.statistics.intervals import Interval
from latentgloss.statistics.rates import overlapping_share, rate_intervals

if TYPE_CHECKING:
    from jaxtyping import Float, Int8


FEWEST = 10
"""A score needs this many counted judgements of each class, unless fewer were asked for."""

TOLERANCE = 1e-6
"""By how much the shares of the strata may differ from 1 in sum and still be complete."""

NOT_ELIGIBLE = ("dead", "rare", "dense", "one_document")
"""Statuses of latents that are not eligible. Their score rows keep them."""

AUROC = "auroc"
"""The metric of judges that give evidence and no decision; every other metric is made of predictions."""


def scores_of_arm(
    answered: pl.DataFrame, latents: pl.Series, arm: str, metric: str, key: dict[str, str]
) -> pl.DataFrame:
    """Table `scores` for one arm: one row per latent of `latents`, from its judgements on the test split.

    `metric` is `balanced_accuracy` (of predictions; a judgement counts if it is decided) or `auroc` (of evidence; a
    judgement counts if it has evidence, and columns that need a decision stay empty).
    """
    judged = answered.filter(pl.col("arm") == arm, split="test")
    padded = Padded(judged)
    truth, evidence = padded("truth"), padded("evidence", np.nan)
    valid = _counted(padded, metric)
    known = valid & ~np.isnan(evidence)
    area = areas.auroc(truth, evidence, known, padded("document"), prompt=padded.prompts())
    value, columns = (area, {}) if metric == AUROC else _decision_columns(padded, truth, valid)
    measured = {
        **_score_columns(value, metric, truth, valid, padded.asked),
        **_interval_columns("auroc", area),
        "auprc": areas.auprc(truth, evidence, known),
        **columns,
    }
    # Where judgements were lost (no donor, no answer), a few that are left must not become a score.
    few = _too_few(valid, padded.asked, [truth, ~truth])
    word = "answered" if metric == AUROC else "decided"
    lacking = f"fewer than {FEWEST} {word} judgements of a class in the arm {arm!r}, of more that were asked for"
    return _rows(padded, measured, few, latents, arm, metric, key, lacking)


def scores_of_population(
    answered: pl.DataFrame,
    latents: pl.Series,
    arms: list[str],
    population: pl.DataFrame,
    metric: str,
    key: dict[str, str],
) -> pl.DataFrame:
    """As `scores_of_arm`, for all non-activating contexts: the negatives of every arm, weighted by stratum.

    `arms` are strata. Activating contexts are judged in every arm; the judgements of the first arm count, whose
    negatives are most like the population. `population`: `scorers.base.Asked.population`. A latent has no score if a
    stratum was not judged, or if fewer than `FEWEST` of its judgements count and more were asked for.
    """
    judged = answered.filter(pl.col("arm").is_in(arms), ~pl.col("truth") | (pl.col("arm") == arms[0]), split="test")
    padded = Padded(judged)
    whole = _population(padded, population)
    stratum, share, rate = whole
    truth, evidence = padded("truth"), padded("evidence", np.nan)
    valid = _counted(padded, metric)
    known = valid & ~np.isnan(evidence)
    area = areas.auroc(
        truth, evidence, known, padded("document"), stratum=stratum, share=share, prompt=padded.prompts()
    )
    value, columns = (area, {}) if metric == AUROC else _decision_columns_at_base_rate(padded, truth, valid, whole)
    measured = {
        **_score_columns(value, metric, truth, valid, padded.asked),
        **_interval_columns("auroc", area),
        "auprc_at_base_rate": areas.auprc_at_base_rate(truth, evidence, known, stratum, share, rate),
        **columns,
    }
    strata = [~truth & (stratum == number) for number in range(share.shape[1])]
    few = _too_few(valid, padded.asked, [truth, *strata])
    lacking = "a stratum of non-activating contexts is not judged, or too few of its judgements count"
    return _rows(padded, measured, few, latents, schema.POPULATION, metric, key, lacking)


def scores_of_trials(trials: pl.DataFrame, answered: pl.DataFrame, metric: str, key: dict[str, str]) -> pl.DataFrame:
    """Table `scores` of intruder detection: the share of trials in which the intruder, and it alone, was named.

    `trials`: rows of `schema.TRIALS`. Trials that could not be made count in `coverage` and in nothing else.
    """
    right = (pl.col("prediction") == pl.col("truth")).all()
    per_trial = answered.group_by("latent", trial="part").agg(
        found=pl.when(pl.col("prediction").null_count() == 0).then(right), documents=pl.col("document")
    )
    padded = Padded(
        trials.select("latent", "trial").join(per_trial, on=["latent", "trial"], how="left").sort("latent", "trial")
    )
    valid = padded.present("found")
    found = padded.arrange(padded.frame["found"].fill_null(False).to_numpy())
    made = padded.frame["documents"].is_not_null().to_numpy()
    documents = np.array(padded.frame["documents"].drop_nulls().to_list(), dtype=np.int64)
    members = np.full((*padded.shape, documents.shape[1] if len(documents) else 1), -1, dtype=np.int64)
    members[padded.row[made], padded.column[made]] = documents.reshape(-1, members.shape[2])
    value = overlapping_share(found, valid, members)
    measured = {
        "score": value.value,
        "corrected": metrics.corrected(value.value, metrics.uninformed(metric, value.value)),
        "ci_low": value.low,
        "ci_high": value.high,
        "n": valid.sum(1),
        "coverage": metrics.coverage(padded.asked, valid),
    }
    few = valid.sum(1) < np.minimum(FEWEST, padded.asked.sum(1))
    latents = pl.Series(padded.latents, dtype=pl.UInt32)
    lacking = f"fewer than {FEWEST} trials were made and answered"
    return _rows(padded, measured, few, latents, "intruder", metric, key, lacking)


def unscored(explained: pl.DataFrame, arms: list[str], metric: str, key: dict[str, str]) -> pl.DataFrame:
    """Score rows of latents that are never scored: those without an explanation and those outside the sample.

    `explained`: rows with latent, status and reason.
    """
    kept = {*NOT_ELIGIBLE, "not_sampled"}
    return schema.SCORES.frame(
        {
            **key,
            "latent": latent,
            "negatives": arm,
            "split": "test",
            "status": status if status in kept else "no_explanation",
            "reason": reason,
            "metric": metric,
            "n": 0,
            "coverage": 0.0,
        }
        for latent, status, reason in explained.select("latent", "status", "reason").iter_rows()
        for arm in arms
    )


def with_specificity(scores: pl.DataFrame, nulls: list[pl.DataFrame]) -> pl.DataFrame:
    """Fills `specificity`: the score minus the mean score of the same latent with the explanations of other latents.

    `nulls`: tables `scores` of the null explainers; without any, `scores` is returned as it is.
    """
    if not nulls:
        return scores
    on = ["latent", "negatives", "judge", "embedder"]
    mean = pl.concat(nulls).group_by(on).agg(null=pl.col("score").mean())
    return (
        scores.join(mean, on=on, how="left", maintain_order="left")
        .with_columns(specificity=pl.col("score") - pl.col("null"))
        .drop("null")
    )


class _Population(NamedTuple):
    """The windows of the test split that a latent's judgements stand for."""

    stratum: Int8[np.ndarray, "latents n"]
    """Column of `share` that a judgement on a non-activating context belongs to; -1 for an activating one."""
    share: Float[np.ndarray, "latents strata"]
    """W_h; NaN unless the shares of a latent add up to 1."""
    rate: Float[np.ndarray, " latents"]
    """Firing rate."""


def _population(padded: Padded, population: pl.DataFrame) -> _Population:
    """Strata of the judgements, with their shares and the firing rate of each latent."""
    strata = population["stratum"].unique(maintain_order=True).to_list()
    numbers = padded.frame["stratum"].replace_strict(strata, range(len(strata)), default=-1, return_dtype=pl.Int8)
    wide = (
        pl.DataFrame({"latent": padded.latents.astype(np.uint32)})
        .join(population.pivot("stratum", index=["latent", "firing_rate"], values="share"), on="latent", how="left")
        .fill_null(np.nan)
    )
    share, rate = wide.select(strata).to_numpy(), wide["firing_rate"].to_numpy()
    # Strata that were not sampled are missing from the shares, and the others do not stand for the population.
    share = np.where((abs(share.sum(1) - 1) < TOLERANCE)[:, None], share, np.nan)
    return _Population(padded.arrange(numbers.to_numpy()), share, rate)


def _counted(padded: Padded, metric: str) -> np.ndarray:
    """Judgements that count, bool [latents n]: those with evidence for AUROC, else those with a decision."""
    return padded.present("evidence" if metric == AUROC else "prediction")


def _too_few(valid: np.ndarray, asked: np.ndarray, classes: list[np.ndarray]) -> np.ndarray:
    """Whether a latent has fewer than `FEWEST` counted judgements of a class although more were asked for."""
    few = np.zeros(len(valid), bool)
    for members in classes:
        few |= (valid & members).sum(1) < np.minimum(FEWEST, (asked & members).sum(1))
    return few


def _score_columns(
    value: Interval, metric: str, truth: np.ndarray, valid: np.ndarray, asked: np.ndarray
) -> dict[str, Any]:
    """Columns that every score has."""
    return {
        "score": value.value,
        "corrected": metrics.corrected(value.value, metrics.uninformed(metric, truth.mean(1))),
        "ci_low": value.low,
        "ci_high": value.high,
        "n": valid.sum(1),
        "coverage": metrics.coverage(asked, valid),
    }


def _interval_columns(name: str, interval: Interval) -> dict[str, Any]:
    """A value and its ends, as three columns."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _decision_columns(padded: Padded, truth: np.ndarray, valid: np.ndarray) -> tuple[Interval, dict[str, Any]]:
    """Balanced accuracy with its interval, and the columns that are made of predictions."""
    prediction = padded.predictions()
    counts = metrics.confusion(truth, prediction, valid)
    rates = rate_intervals(truth, prediction, valid, padded("document"), prompt=padded.prompts())
    recalls = metrics.recall_by_decile(truth, prediction, padded("decile"), valid)
    return rates.balanced_accuracy, {
        "balanced_accuracy": rates.balanced_accuracy.value,
        **_interval_columns("tpr", rates.tpr),
        **_interval_columns("tnr", rates.tnr),
        "f1": counts.f1,
        **{f"recall_decile_{d}": recalls[:, d - 1] for d in range(1, 11)},
    }


def _decision_columns_at_base_rate(
    padded: Padded, truth: np.ndarray, valid: np.ndarray, whole: _Population
) -> tuple[Interval, dict[str, Any]]:
    """As `_decision_columns`, in the population."""
    found = metrics.prevalence_weighted(
        truth, padded.predictions(), valid, padded("document"), *whole, prompt=padded.prompts()
    )
    tnr = Interval(1 - found.fpr.value, 1 - found.fpr.high, 1 - found.fpr.low)
    return found.balanced_accuracy, {
        "balanced_accuracy": found.balanced_accuracy.value,
        **_interval_columns("tpr", found.tpr),
        **_interval_columns("tnr", tnr),
        "precision_at_base_rate": found.precision.value,
        "precision_low": found.precision.low,
        "precision_high": found.precision.high,
        "f1_at_base_rate": found.f1,
        "unresolved": found.unresolved,
    }


def _rows(
    padded: Padded,
    measured: dict[str, Any],
    few: np.ndarray,
    latents: pl.Series,
    arm: str,
    metric: str,
    key: dict[str, str],
    lacking: str,
) -> pl.DataFrame:
    """Table `scores`. A latent with too `few` judgements or without a value is `unscored`, for the reason `lacking`.

    `measured`: columns by name, one value per row of `padded`.
    """
    always = ("n", "coverage")
    frame = pl.DataFrame({"latent": padded.latents.astype(np.uint32), **measured, "few": few})
    frame = frame.with_columns(pl.selectors.float().fill_nan(None))
    lost = pl.col("few") | pl.col("score").is_null()
    frame = frame.with_columns(pl.when(~lost).then(name).alias(name) for name in measured if name not in always)
    if "threshold" in padded.frame.columns:
        frame = frame.join(padded.frame.select("latent", "threshold").unique("latent"), on="latent", how="left")
    absent = pl.col("score").is_null()
    found = (
        pl.DataFrame({"latent": latents})
        .join(frame.drop("few"), on="latent", how="left")
        .with_columns(
            **{name: pl.lit(value) for name, value in key.items()},
            negatives=pl.lit(arm),
            split=pl.lit("test"),
            metric=pl.lit(metric),
            n=pl.col("n").fill_null(0),
            coverage=pl.col("coverage").fill_null(0.0),
            status=pl.when(absent).then(pl.lit("unscored")).otherwise(pl.lit("ok")),
            reason=pl.when(absent).then(pl.lit(lacking)).otherwise(pl.lit("")),
        )
    )
    unmeasured = [c.name for c in schema.SCORES.columns if c.nullable and c.name not in found.columns]
    return schema.SCORES.conform(found.with_columns(pl.lit(None).alias(name) for name in unmeasured))
