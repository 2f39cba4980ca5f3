"""The stage `score_report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.explanations.explainers import NULL, without_number
from latentgloss.pipeline.graph import STAGES, made_from
from latentgloss.pipeline.stage_run import one_by_one
from latentgloss.report.summary import _KEY, _SCORED, AUROC, BASELINE, _column, _gain, _mean, _specific, _summary

if TYPE_CHECKING:
    from latentgloss.pipeline.stage_run import StageRun


def _report(run: StageRun[Any]) -> None:
    inputs = run.recipe.inputs
    settings = run.settings.report
    rows: list[dict[str, Any]] = []
    scorers = [name for name in inputs if STAGES[name].noun == "scores"]
    scored = {of for name in scorers for of, version in inputs[name].items() if version.manifest.parts}
    complete = sorted(scored.intersection(*(inputs[name] for name in inputs if name not in scorers)))
    behind: list[str] = []
    run.facts = {"partitions": complete, "scores_behind": behind}
    if run.draft.reuse("all", run.recipe.content, (schema.REPORT,)):
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
            "control": run.registry.sae(partition).control,
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
    run.draft.put("all", run.recipe.content, (schema.REPORT,), {"report": table})


report_scores = one_by_one(_report)
