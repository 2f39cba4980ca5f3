"""Per SAE and explainer: how many latents got how far, the median score with its interval, the gain over a table.

Reads `latents`, `eligibility`, `explanations`, and what scores there are, of every SAE of a model that has any; writes
`report`. A median is over scored latents and names them; a gain is paired and over *all eligible* latents, a failure
counting as chance (docs/methods.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import families, nulls, schema, statistics
from latentgloss.explainers import NULL, without_number
from latentgloss.stages import STAGES, made_from
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from latentgloss.work import Work

AUROC = "auroc"
"""Summarised for every scorer beside the metric its score is."""
BASELINE = "token_table"
FALSE_CLAIMS = 0.05
"""Share of wrong ones among the latents called specific that is borne."""
_SCORED = ("explanations", "sampled_contexts")
"""What scores must have been made from to be reported beside it."""
_KEY = ["explainer", "scorer", "judge", "embedder", "profile", "negatives"]


def _report(work: Work) -> None:
    inputs = work.recipe.inputs
    settings = work.settings.report
    rows: list[dict[str, Any]] = []
    scorers = [name for name in inputs if STAGES[name].noun == "scores"]
    scored = {of for name in scorers for of, version in inputs[name].items() if version.manifest.parts}
    complete = sorted(scored.intersection(*(inputs[name] for name in inputs if name not in scorers)))
    behind: list[str] = []
    work.facts = {"partitions": complete, "scores_behind": behind}
    if work.draft.reuse("all", work.recipe.content, (schema.REPORT,)):
        return
    for partition in complete:
        read = {name: versions[partition] for name, versions in inputs.items() if partition in versions}
        eligibility = read["sampled_contexts"].read(schema.ELIGIBILITY)
        alive = read["activation_cache"].scan(schema.LATENTS).filter(pl.col("count") > 0).select("latent").collect()
        explained = read["explanations"].scan(schema.EXPLANATIONS).filter(status="ok").select("latent", "explainer")
        explained_by = dict(explained.group_by("explainer").len().collect().iter_rows())
        # Scores of other explanations or contexts than these are not theirs; they come when they are computed again.
        late = [n for n in scorers if n in read and not all(made_from(read[n], read[of]) for of in _SCORED)]
        behind += [f"{name} of {partition}" for name in late]
        current = [read[name].read(schema.SCORES) for name in scorers if name in read and name not in late]
        scores = pl.concat([schema.SCORES.empty(), *current])
        eligible = eligibility.filter(pl.col("status") == "eligible").select("latent", "firing_rate").sort("latent")
        counts = {
            "partition": partition,
            "control": work.workspace.registry.sae(partition).control,
            "n_latents": eligibility.height,
            "n_alive": eligibility.join(alive, on="latent", how="semi").height,
            "n_eligible": eligible.height,
        }
        several = dict(sorted(scores.group_by(_KEY)))
        # Nulls of one explainer are one line: what a latent has of them is their mean.
        drawn: dict[tuple[Any, ...], list[pl.DataFrame]] = {}
        for key, frame in several.items():
            drawn.setdefault((without_number(str(key[0])), *key[1:]), []).append(frame)
        groups = {key: frames[0] if len(frames) == 1 else _mean(frames) for key, frames in sorted(drawn.items())}
        for key, frame in groups.items():
            baseline = groups.get((BASELINE, *key[1:]))
            null = drawn.get((f"{NULL}{key[0]}", *key[1:]), [])
            # Latents left out on purpose are no failures; the sample is the same whatever explains or judges.
            left_out = frame.filter(status="not_sampled")
            judged = eligible.join(left_out, on="latent", how="anti", maintain_order="left")
            own = frame["metric"][0]
            for metric in dict.fromkeys((own, AUROC)) if _column(frame, own) == own else (own,):
                rows.append(
                    {
                        **counts,
                        **dict(zip(_KEY, key, strict=True)),
                        "n_explained": explained_by.get(key[0], 0),
                        "n_asked": judged.height,
                        **_summary(frame, judged, metric, settings.seed, settings.resamples),
                        **_specific(frame, null, judged, metric, settings.seed, settings.resamples),
                        **_gain(frame, baseline, judged, metric, settings.seed, settings.resamples),
                    }
                )
    table = schema.REPORT.frame(rows).sort(
        "partition", "metric", "scorer", "negatives", "explainer", "judge", "embedder"
    )
    work.draft.put("all", work.recipe.content, (schema.REPORT,), {"report": table})


report_scores = one_by_one(_report)


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
    median = statistics.median_interval(values, seed=seed, resamples=resamples)
    quartiles = np.quantile(scored, [0.25, 0.75]) if len(scored) else (None, None)
    # Of the metrics that are summarised the uninformed value is the same for every latent.
    corrected = statistics.corrected(np.array([median.value]), statistics.uninformed(metric, np.array([np.nan])))
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
    median = statistics.median_interval(nulls.specificity(mine, theirs), seed=seed, resamples=resamples)
    density = eligible["firing_rate"].to_numpy()
    p = nulls.pooled_p(mine, density, theirs.ravel(), np.repeat(density, len(null)))
    p = families.benjamini_hochberg(p)
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
    gain = statistics.paired_median_gain(mine, theirs, "chance", chance=0.5, seed=seed, resamples=resamples)
    return {"gain": _number(gain.value), "gain_low": _number(gain.low), "gain_high": _number(gain.high)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
