"""Per SAE and explainer: how many latents got how far, the median score with its interval, the gain over a table.

Reads `latents`, `eligibility`, `explanations`, and what scores there are, of every SAE of a model that has any; writes
`report`. A median is over scored latents and names them; a gain is paired and over *all eligible* latents, a failure
counting as chance (docs/methods.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from latentgloss.statistics import metrics, multiple_testing, resampling, specificity

AUROC = "auroc"
"""Summarised for every scorer beside the metric its score is."""
BASELINE = "token_table"
FALSE_CLAIMS = 0.05
"""Share of wrong ones among the latents called specific that is borne."""
_SCORED = ("explanations", "sampled_contexts")
"""What scores must have been made from to be reported beside it."""
_KEY = ["explainer", "scorer", "judge", "embedder", "profile", "negatives"]


def _mean(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """One row per latent of several that judge it: what is summarised, over those that are scored."""
    order = ("ok", "unscored", "not_sampled")  # the first that any of them has
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


def _column(frame: pl.DataFrame, metric: str) -> str:
    """Where it stands. `accuracy`, a choice among several of which nothing is ranked, is a score and nothing else."""
    return metric if metric in frame.columns else "score"


def _values(frame: pl.DataFrame, eligible: pl.DataFrame, metric: str) -> np.ndarray:
    """The metric of every eligible latent, in order; NaN where it is not scored."""
    column = pl.col(_column(frame, metric)).alias("value")
    joined = eligible.join(frame.select("latent", column), on="latent", how="left", maintain_order="left")
    values: np.ndarray = joined["value"].fill_null(np.nan).to_numpy()
    return values


def _summary(frame: pl.DataFrame, eligible: pl.DataFrame, metric: str, seed: int, resamples: int) -> dict[str, Any]:
    values = _values(frame, eligible, metric)
    scored = values[np.isfinite(values)]
    median = resampling.median_interval(values, seed=seed, resamples=resamples)
    quartiles = np.quantile(scored, [0.25, 0.75]) if len(scored) else (None, None)
    # Of the metrics that are summarised the uninformed value is the same for every latent.
    corrected = metrics.corrected(np.array([median.value]), metrics.uninformed(metric, np.array([np.nan])))
    judged = eligible.join(frame.filter(pl.col("status").is_in(["ok", "unscored"])), on="latent")
    return {
        "corrected": _number(corrected[0]),
        "n_judged": judged.filter(pl.col(_column(frame, metric)).is_not_null())["n"].median(),
        "coverage": judged["coverage"].mean(),
        "metric": metric,
        "n_scored": len(scored),
        "median": _number(median.value),
        "median_low": _number(median.low),
        "median_high": _number(median.high),
        "quartile_low": quartiles[0],
        "quartile_high": quartiles[1],
    }


def _specific(
    frame: pl.DataFrame, null: list[pl.DataFrame], eligible: pl.DataFrame, metric: str, seed: int, resamples: int
) -> dict[str, Any]:
    """How much better than with other latents' explanations, and for how many latents that is no accident.

    p are against the nulls of this SAE, and so belong to this table: with more latents they are others.
    """
    if not null:
        return {"specificity": None, "specificity_low": None, "specificity_high": None, "n_specific": None}
    mine = _values(frame, eligible, metric)
    theirs = np.stack([_values(one, eligible, metric) for one in null], axis=1)
    median = resampling.median_interval(specificity.specificity(mine, theirs), seed=seed, resamples=resamples)
    density = eligible["firing_rate"].to_numpy()
    p = specificity.pooled_p(mine, density, theirs.ravel(), np.repeat(density, len(null)))
    p = multiple_testing.benjamini_hochberg(p)
    return {
        "specificity": _number(median.value),
        "specificity_low": _number(median.low),
        "specificity_high": _number(median.high),
        "n_specific": int((p <= FALSE_CLAIMS).sum()) if np.isfinite(p).any() else None,
    }


def _gain(
    frame: pl.DataFrame, baseline: pl.DataFrame | None, eligible: pl.DataFrame, metric: str, seed: int, resamples: int
) -> dict[str, Any]:
    if baseline is None or baseline is frame:
        return {"gain": None, "gain_low": None, "gain_high": None}
    mine, theirs = _values(frame, eligible, metric), _values(baseline, eligible, metric)
    gain = resampling.paired_median_gain(mine, theirs, "chance", chance=0.5, seed=seed, resamples=resamples)
    return {"gain": _number(gain.value), "gain_low": _number(gain.low), "gain_high": _number(gain.high)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
