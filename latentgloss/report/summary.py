"""Summarises the scores of one SAE: per explainer and kind of score the median, specificity and gain, with intervals.

What belongs here: pure functions from rows of scores to rows of the report. A median is over the latents that have a
score, whose number is reported beside it. A gain is paired and over *all eligible* latents (where only a sample is
scored, all of the sample); a failure counts as chance. Method: docs/methods.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from latentgloss.explanations.explainers import BASELINE, NULL, without_number
from latentgloss.statistics import metrics, multiple_testing, resampling, specificity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentgloss.config.settings import ReportSettings

AUROC = "auroc"
"""Summarised for every scorer, beside the metric that its score is."""
FALSE_CLAIMS = 0.05
"""Accepted share of false claims among the latents counted as specific (false discovery rate)."""
KEY = ("explainer", "scorer", "judge", "embedder", "profile", "negatives")
"""Columns that identify a row of the report within one SAE and metric."""

Key = tuple[Any, ...]
"""Values of the columns `KEY`."""


def summaries(
    scores: pl.DataFrame, eligible: pl.DataFrame, n_explained: Mapping[str, int], settings: ReportSettings
) -> list[dict[str, Any]]:
    """The rows of the report for one SAE, one per `KEY` and metric, without the counts of its latents.

    `scores`: rows of `schema.SCORES`. `eligible`: latent and firing rate of the eligible latents, ascending.
    `n_explained`: number of explained latents by explainer.
    """
    groups = grouped(scores)
    averaged = {key: frames[0] if len(frames) == 1 else mean_of_nulls(frames) for key, frames in groups.items()}
    rows: list[dict[str, Any]] = []
    for key, frame in averaged.items():
        baseline = averaged.get((BASELINE, *key[1:]))
        nulls = groups.get((f"{NULL}{key[0]}", *key[1:]), [])
        # Latents outside the sample are not failures. The sample is the same for every explainer and judge.
        not_sampled = frame.filter(status="not_sampled")
        asked = eligible.join(not_sampled, on="latent", how="anti", maintain_order="left")
        for metric in reported_metrics(frame):
            rows.append(
                {
                    **dict(zip(KEY, key, strict=True)),
                    "n_explained": n_explained.get(key[0], 0),
                    "n_asked": asked.height,
                    **median_of(frame, asked, metric, settings),
                    **specificity_over(nulls, frame, asked, metric, settings),
                    **gain_over(baseline, frame, asked, metric, settings),
                }
            )
    return rows


def grouped(scores: pl.DataFrame) -> dict[Key, list[pl.DataFrame]]:
    """Scores by `KEY`, sorted. The numbered nulls of an explainer share a key: one frame for each null."""
    groups: dict[Key, list[pl.DataFrame]] = {}
    for key, frame in dict(sorted(scores.group_by(KEY))).items():
        groups.setdefault((without_number(str(key[0])), *key[1:]), []).append(frame)
    return dict(sorted(groups.items()))


def mean_of_nulls(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """One row per latent from the scores of several null explanations: means over those that are scored."""
    order = ("ok", "unscored", "not_sampled")  # a latent gets the first status that one of its rows has
    rank = pl.col("status").replace_strict({s: i for i, s in enumerate(order)}, default=len(order))
    return (
        pl.concat(frames)
        .group_by("latent", maintain_order=True)
        .agg(
            pl.col("status").sort_by(rank).first(),
            pl.col("metric").first(),
            pl.col("balanced_accuracy", AUROC, "coverage").mean(),
            pl.col("n").median(),
        )
    )


def reported_metrics(frame: pl.DataFrame) -> tuple[str, ...]:
    """The metrics that the scores are summarised in: the scorer's own, and AUROC where evidence is ranked."""
    own = str(frame["metric"][0])
    return tuple(dict.fromkeys((own, AUROC))) if metric_column(frame, own) == own else (own,)


def metric_column(frame: pl.DataFrame, metric: str) -> str:
    """The column that holds a metric.

    `accuracy` (one choice among several, without a ranking) has no column of its own and is in `score`.
    """
    return metric if metric in frame.columns else "score"


def values_of(frame: pl.DataFrame, asked: pl.DataFrame, metric: str) -> Float64[np.ndarray, " latents"]:
    """The metric of every latent in `asked`, in its order; NaN where there is no score."""
    column = pl.col(metric_column(frame, metric)).alias("value")
    joined = asked.join(frame.select("latent", column), on="latent", how="left", maintain_order="left")
    values: Float64[np.ndarray, " latents"] = joined["value"].fill_null(np.nan).to_numpy()
    return values


def median_of(frame: pl.DataFrame, asked: pl.DataFrame, metric: str, settings: ReportSettings) -> dict[str, Any]:
    """Median over scored latents with its interval, quartiles, and how much was judged."""
    values = values_of(frame, asked, metric)
    scored = values[np.isfinite(values)]
    median = resampling.median_interval(values, seed=settings.seed, resamples=settings.resamples)
    quartiles = np.quantile(scored, [0.25, 0.75]) if len(scored) else (None, None)
    # The uninformed value of every summarised metric is the same for all latents.
    corrected = metrics.corrected(np.array([median.value]), metrics.uninformed(metric, np.array([np.nan])))
    judged = asked.join(frame.filter(pl.col("status").is_in(["ok", "unscored"])), on="latent")
    return {
        "corrected": _number(corrected[0]),
        "n_judged": judged.filter(pl.col(metric_column(frame, metric)).is_not_null())["n"].median(),
        "coverage": judged["coverage"].mean(),
        "metric": metric,
        "n_scored": len(scored),
        "median": _number(median.value),
        "median_low": _number(median.low),
        "median_high": _number(median.high),
        "quartile_low": quartiles[0],
        "quartile_high": quartiles[1],
    }


def specificity_over(
    nulls: list[pl.DataFrame], frame: pl.DataFrame, asked: pl.DataFrame, metric: str, settings: ReportSettings
) -> dict[str, Any]:
    """Median gain over other latents' explanations, and for how many latents the gain is significant.

    p-values are relative to the nulls of this SAE and so depend on which latents are in the report.
    """
    if not nulls:
        return {"specificity": None, "specificity_low": None, "specificity_high": None, "n_specific": None}
    own = values_of(frame, asked, metric)
    null = np.stack([values_of(one, asked, metric) for one in nulls], axis=1)
    median = resampling.median_interval(
        specificity.specificity(own, null), seed=settings.seed, resamples=settings.resamples
    )
    density = asked["firing_rate"].to_numpy()
    p = specificity.pooled_p(own, density, null.ravel(), np.repeat(density, len(nulls)))
    p = multiple_testing.benjamini_hochberg(p)
    return {
        "specificity": _number(median.value),
        "specificity_low": _number(median.low),
        "specificity_high": _number(median.high),
        "n_specific": int((p <= FALSE_CLAIMS).sum()) if np.isfinite(p).any() else None,
    }


def gain_over(
    baseline: pl.DataFrame | None, frame: pl.DataFrame, asked: pl.DataFrame, metric: str, settings: ReportSettings
) -> dict[str, Any]:
    """Paired median gain over the baseline explainer with its interval; None where there is no baseline."""
    if baseline is None or baseline is frame:
        return {"gain": None, "gain_low": None, "gain_high": None}
    own, other = values_of(frame, asked, metric), values_of(baseline, asked, metric)
    gain = resampling.paired_median_gain(
        own, other, "chance", chance=0.5, seed=settings.seed, resamples=settings.resamples
    )
    return {"gain": _number(gain.value), "gain_low": _number(gain.low), "gain_high": _number(gain.high)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
