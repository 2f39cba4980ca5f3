"""From judges' answers to judgements, and from judgements to scores.

What belongs here: the tables `judgements` and `scores` of one explainer, judge and block, made from the rows that were
asked and what was answered. The numbers themselves are in `statistics.py`; which rows are asked is the scorer's
(`scorers/`). Nothing is read or written. Definitions: docs/methods.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.statistics import intervals, metrics

if TYPE_CHECKING:
    from latentgloss.protocols import Answer


FEWEST = 10
"""Counted judgements of each class that a score takes, where more were asked for and lost."""

TOLERANCE = 1e-6
"""Of shares of strata that add up to all there is."""

NOT_ELIGIBLE = ("dead", "rare", "dense", "one_document")
BALANCED_ACCURACY, AUROC = "balanced_accuracy", "auroc"


def with_answers(asked: pl.DataFrame, answers: list[Answer]) -> pl.DataFrame:
    """The judges' answers beside what was asked (`Asked.rows`). Evidence that is not a number is no evidence.

    Answers are for the rows of status `ok`, in order; the others keep their status and reason.
    """
    n = [len(answer.evidence) for answer in answers]
    put = asked.with_row_index("row").filter(pl.col("status") == "ok").select("row")
    optional: dict[str, pl.Series] = {}
    for name, dtype in (("prediction", pl.Boolean), ("probability", pl.Float32)):
        values: list[Any] = []
        for answer, size in zip(answers, n, strict=True):
            given = getattr(answer, name)
            values += [None] * size if given is None else given.tolist()
        optional[name] = pl.Series(values, dtype=dtype)
    status = [s for a, size in zip(answers, n, strict=True) for s in (a.status or ["ok"] * size)]
    reason = [s for a, size in zip(answers, n, strict=True) for s in (a.reason or [""] * size)]
    prompts = [[None] * size if a.prompt is None else a.prompt.tolist() for a, size in zip(answers, n, strict=True)]
    evidence = np.concatenate([np.empty(0, np.float32), *(a.evidence for a in answers)])
    given = put.with_columns(
        evidence=pl.Series(evidence, dtype=pl.Float32).fill_nan(None),
        **optional,
        prompt=pl.Series([p for several in prompts for p in several], dtype=pl.Int64),
        answer=pl.Series(status, dtype=pl.String),
        why=pl.Series(reason, dtype=pl.String),
    )
    frame = (
        asked.with_row_index("row")
        .join(given, on="row", how="left", maintain_order="left")
        .with_columns(status=pl.coalesce("answer", "status"), reason=pl.coalesce("why", "reason"))
        .drop("row", "answer", "why")
    )
    # What failed says nothing, whatever number came with it.
    answers_of = pl.col("evidence", "prediction", "probability")
    return frame.with_columns(pl.when(pl.col("status") == "ok").then(answers_of))


class _Padded:
    """Columns of judgements as arrays [latents, n], one row per latent that occurs, ascending."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame.sort("latent", maintain_order=True)
        self.latents, first, count = np.unique(self.frame["latent"].to_numpy(), return_index=True, return_counts=True)
        self.row = np.repeat(np.arange(len(count)), count)
        self.column = np.arange(self.frame.height) - np.repeat(first, count)
        self.shape = (len(count), int(count.max(initial=1)))
        self.asked = self("truth", fill=True, values=np.ones(self.frame.height, bool))

    def __call__(self, name: str, fill: Any = 0, values: np.ndarray | None = None) -> np.ndarray:
        given = self.frame[name].to_numpy() if values is None else values
        out = np.full(self.shape, fill if values is None else False, dtype=given.dtype)
        out[self.row, self.column] = given
        return out

    def prompts(self) -> np.ndarray:
        """Prompt of each judgement, -1 where it was made alone."""
        out = np.full(self.shape, -1, np.int64)
        out[self.row, self.column] = self.frame["prompt"].fill_null(-1).to_numpy()
        return out


def decided(answered: pl.DataFrame) -> pl.DataFrame:
    """With `threshold`, and a prediction wherever there is evidence and the judge did not decide itself."""
    # Without a threshold evidence decides nothing: the judgement stays open and the latent unscored.
    taus = thresholds(answered).with_columns(pl.col("threshold").fill_nan(None))
    answered = answered.join(taus, on="latent", how="left", maintain_order="left")
    return answered.with_columns(prediction=pl.coalesce("prediction", pl.col("evidence") >= pl.col("threshold")))


def thresholds(answered: pl.DataFrame) -> pl.DataFrame:
    """latent, threshold: from select; where it has fewer than 20 per class, drawn towards that of explain."""
    found: dict[str, pl.DataFrame] = {}
    for split in ("select", "explain"):
        part = answered.filter(pl.col("split") == split)
        padded = _Padded(part)
        truth = padded("truth")
        valid = padded.asked & ~np.isnan(padded("evidence", np.nan))
        tau = metrics.youden_threshold(padded("evidence", np.nan), truth, valid)
        fewest = np.minimum((truth & valid).sum(1), (~truth & valid).sum(1))
        found[split] = pl.DataFrame({"latent": padded.latents, "tau": tau, "n": fewest}).with_columns(
            pl.col("latent").cast(pl.UInt32)
        )
    both = found["explain"].join(found["select"], on="latent", how="full", coalesce=True, suffix="_select")
    value = metrics.shrink(
        both["tau_select"].fill_null(np.nan).to_numpy(),
        both["n_select"].fill_null(0).to_numpy(),
        both["tau"].fill_null(np.nan).to_numpy(),
    )
    return both.select("latent").with_columns(threshold=value)


def table(answered: pl.DataFrame, key: dict[str, str]) -> pl.DataFrame:
    """Table `judgements`."""
    frame = answered.rename({"arm": "negatives"}).with_columns(**{k: pl.lit(v) for k, v in key.items()})
    return schema.JUDGEMENTS.conform(frame.select(list(schema.JUDGEMENTS.schema)))


def scores(answered: pl.DataFrame, latents: pl.Series, arm: str, metric: str, key: dict[str, str]) -> pl.DataFrame:
    """Table `scores` for one arm: one row per latent of `latents`, from its judgements on the test split.

    `metric` is `balanced_accuracy` (of predictions; a judgement counts if it is decided) or `auroc` (of evidence; a
    judgement counts if it has any, and columns that need a decision stay empty).
    """
    judged = answered.filter(pl.col("arm") == arm, split="test")
    padded = _Padded(judged)
    truth, evidence = padded("truth"), padded("evidence", np.nan)
    valid = _counted(padded, metric)
    known = valid & ~np.isnan(evidence)
    area = intervals.auroc(truth, evidence, known, padded("document"), prompt=padded.prompts())
    value, columns = (area, {}) if metric == AUROC else _of_decisions(padded, truth, valid)
    measured = {
        **_of_score(value, metric, truth, valid, padded.asked),
        **_ends("auroc", area),
        "auprc": metrics.auprc(truth, evidence, known),
        **columns,
    }
    # What was lost (no donor, no answer) must not leave a number made of a handful.
    lost = [(valid & cls).sum(1) < np.minimum(FEWEST, (padded.asked & cls).sum(1)) for cls in (truth, ~truth)]
    word = "answered" if metric == AUROC else "decided"
    lacking = f"fewer than {FEWEST} {word} judgements of a class in the arm {arm!r}, of more that were asked for"
    return _rows(padded, measured, lost[0] | lost[1], latents, arm, metric, key, lacking)


def scores_of_trials(trials: pl.DataFrame, answered: pl.DataFrame, metric: str, key: dict[str, str]) -> pl.DataFrame:
    """Table `scores` of intruder detection: the share of trials in which the intruder, and it alone, was named.

    `trials` has rows of `schema.TRIALS`, those that were not made included: they count in coverage and in nothing else.
    """
    alone = (pl.col("prediction") == pl.col("truth")).all()
    told = answered.group_by("latent", trial="part").agg(
        found=pl.when(pl.col("prediction").null_count() == 0).then(alone), documents=pl.col("document")
    )
    padded = _Padded(
        trials.select("latent", "trial").join(told, on=["latent", "trial"], how="left").sort("latent", "trial")
    )
    valid = padded.asked & padded("valid", values=padded.frame["found"].is_not_null().to_numpy())
    found = padded("found", values=padded.frame["found"].fill_null(False).to_numpy())
    made = padded.frame["documents"].is_not_null().to_numpy()
    documents = np.array(padded.frame["documents"].drop_nulls().to_list(), dtype=np.int64)
    given = np.full((*padded.shape, documents.shape[1] if len(documents) else 1), -1, dtype=np.int64)
    given[padded.row[made], padded.column[made]] = documents.reshape(-1, given.shape[2])
    value = intervals.overlapping_share(found, valid, given)
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


def scores_of_population(
    answered: pl.DataFrame,
    latents: pl.Series,
    arms: list[str],
    population: pl.DataFrame,
    metric: str,
    key: dict[str, str],
) -> pl.DataFrame:
    """As `scores`, for all non-activating contexts: every arm's negatives, weighted by their stratum's share.

    `arms` are strata; positives are judged in each, and count as judged in the first of them: with the negatives
    that are most like the population. `population`: `scorers.base.Asked.population`. A latent with a stratum that is
    not judged, or of which there are judgements of fewer than `FEWEST` contexts where there were more, has no score.
    """
    judged = answered.filter(pl.col("arm").is_in(arms), ~pl.col("truth") | (pl.col("arm") == arms[0]), split="test")
    padded = _Padded(judged)
    strata = population["stratum"].unique(maintain_order=True).to_list()
    stratum = padded(
        "stratum",
        values=judged.sort("latent", maintain_order=True)["stratum"]
        .replace_strict(strata, range(len(strata)), default=-1, return_dtype=pl.Int8)
        .to_numpy(),
    )
    wide = (
        pl.DataFrame({"latent": padded.latents.astype(np.uint32)})
        .join(population.pivot("stratum", index=["latent", "firing_rate"], values="share"), on="latent", how="left")
        .fill_null(np.nan)
    )
    share, rate = wide.select(strata).to_numpy(), wide["firing_rate"].to_numpy()
    # Strata that were not drawn from are missing here: what there is does not stand for the population.
    share = np.where((abs(share.sum(1) - 1) < TOLERANCE)[:, None], share, np.nan)
    truth, evidence = padded("truth"), padded("evidence", np.nan)
    document, prompt = padded("document"), padded.prompts()
    valid = _counted(padded, metric)
    known = valid & ~np.isnan(evidence)
    area = intervals.auroc(truth, evidence, known, document, stratum=stratum, share=share, prompt=prompt)
    value, columns = area, {}
    if metric != AUROC:
        prediction = padded("prediction", values=padded.frame["prediction"].fill_null(False).to_numpy())
        found = metrics.prevalence_weighted(truth, prediction, valid, document, stratum, share, rate, prompt=prompt)
        value = found.balanced_accuracy
        tnr = intervals.Interval(1 - found.fpr.value, 1 - found.fpr.high, 1 - found.fpr.low)
        columns = {
            "balanced_accuracy": value.value,
            **_ends("tpr", found.tpr),
            **_ends("tnr", tnr),
            "precision_at_base_rate": found.precision.value,
            "precision_low": found.precision.low,
            "precision_high": found.precision.high,
            "f1_at_base_rate": found.f1,
            "unresolved": found.unresolved,
        }
    measured = {
        **_of_score(value, metric, truth, valid, padded.asked),
        **_ends("auroc", area),
        "auprc_at_base_rate": metrics.auprc_at_base_rate(truth, evidence, known, stratum, share, rate),
        **columns,
    }
    few = np.zeros(len(padded.latents), bool)
    for of in (truth, *(~truth & (stratum == h) for h in range(len(strata)))):
        few |= (valid & of).sum(1) < np.minimum(FEWEST, (padded.asked & of).sum(1))
    lacking = "a stratum of non-activating contexts is not judged, or too few of its judgements count"
    return _rows(padded, measured, few, latents, schema.POPULATION, metric, key, lacking)


def _counted(padded: _Padded, metric: str) -> np.ndarray:
    """Judgements that count: with evidence where that is ranked, else with a decision."""
    given = padded.frame["evidence" if metric == AUROC else "prediction"].is_not_null()
    counted: np.ndarray = padded.asked & padded("valid", values=given.to_numpy())
    return counted


def _of_score(
    value: intervals.Interval, metric: str, truth: np.ndarray, valid: np.ndarray, asked: np.ndarray
) -> dict[str, Any]:
    return {
        "score": value.value,
        "corrected": metrics.corrected(value.value, metrics.uninformed(metric, truth.mean(1))),
        "ci_low": value.low,
        "ci_high": value.high,
        "n": valid.sum(1),
        "coverage": metrics.coverage(asked, valid),
    }


def _ends(name: str, interval: intervals.Interval) -> dict[str, Any]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _of_decisions(padded: _Padded, truth: np.ndarray, valid: np.ndarray) -> tuple[intervals.Interval, dict[str, Any]]:
    """Balanced accuracy with its interval, and the columns that go with it."""
    # An absent prediction is False here, and masked by `valid`.
    prediction = padded("prediction", values=padded.frame["prediction"].fill_null(False).to_numpy())
    counts = metrics.confusion(truth, prediction, valid)
    rates = intervals.rate_intervals(truth, prediction, valid, padded("document"), prompt=padded.prompts())
    recalls = metrics.recall_by_decile(truth, prediction, padded("decile"), valid)
    return rates.balanced_accuracy, {
        "balanced_accuracy": rates.balanced_accuracy.value,
        **_ends("tpr", rates.tpr),
        **_ends("tnr", rates.tnr),
        "f1": counts.f1,
        **{f"recall_decile_{d}": recalls[:, d - 1] for d in range(1, 11)},
    }


def _rows(
    padded: _Padded,
    measured: dict[str, Any],
    few: np.ndarray,
    latents: pl.Series,
    arm: str,
    metric: str,
    key: dict[str, str],
    lacking: str,
) -> pl.DataFrame:
    """Table `scores`: numbers where there are any and not too `few` judgements, else a status and why."""
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


def unscored(explained: pl.DataFrame, arms: list[str], metric: str, key: dict[str, str]) -> pl.DataFrame:
    """Score rows of latents without an explanation, or outside the sample: neither is ever scored."""
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
    """Fills `specificity`: the score minus the same latent's mean score with other latents' explanations."""
    if not nulls:
        return scores
    on = ["latent", "negatives", "judge", "embedder"]
    mean = pl.concat(nulls).group_by(on).agg(null=pl.col("score").mean())
    return (
        scores.join(mean, on=on, how="left", maintain_order="left")
        .with_columns(specificity=pl.col("score") - pl.col("null"))
        .drop("null")
    )
