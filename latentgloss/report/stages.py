"""The stage `score_report`: one table over all SAEs of a model that have scores.

Reads `latents`, `eligibility`, `explanations` and all scores that exist; writes `report`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.pipeline.graph import STAGES, made_from
from latentgloss.pipeline.stage_run import one_by_one
from latentgloss.report.summary import summaries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.store import Version

SCORED_FROM = ("explanations", "sampled_contexts")
"""Stages whose current content scores must have been made from to be reported."""


def _report(run: StageRun[Any]) -> None:
    inputs = run.recipe.inputs
    scorers = [name for name in inputs if STAGES[name].noun == "scores"]
    scored = {partition for name in scorers for partition, version in inputs[name].items() if version.manifest.parts}
    complete = sorted(scored.intersection(*(inputs[name] for name in inputs if name not in scorers)))
    behind: list[str] = []
    run.facts = {"partitions": complete, "scores_behind": behind}
    if run.draft.reuse("all", run.recipe.content, (schema.REPORT,)):
        return
    rows: list[dict[str, Any]] = []
    for partition in complete:
        versions = {name: found[partition] for name, found in inputs.items() if partition in found}
        # Scores made from other explanations or contexts are left out until they have been computed again.
        outdated = [
            name
            for name in scorers
            if name in versions and not all(made_from(versions[name], versions[upstream]) for upstream in SCORED_FROM)
        ]
        behind += [f"{name} of {partition}" for name in outdated]
        current = [name for name in scorers if name in versions and name not in outdated]
        rows += _rows(run, partition, versions, current)
    table = schema.REPORT.frame(rows).sort(
        "partition", "metric", "scorer", "negatives", "explainer", "judge", "embedder"
    )
    run.draft.put("all", run.recipe.content, (schema.REPORT,), {"report": table})


def _rows(
    run: StageRun[Any], partition: str, versions: Mapping[str, Version], scorers: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of one SAE. `versions`: by stage. `scorers`: the stages whose scores are reported."""
    eligibility = versions["sampled_contexts"].read(schema.ELIGIBILITY)
    alive = versions["activation_cache"].scan(schema.LATENTS).filter(pl.col("count") > 0).select("latent").collect()
    explained = versions["explanations"].scan(schema.EXPLANATIONS).filter(status="ok").select("latent", "explainer")
    n_explained = dict(explained.group_by("explainer").len().collect().iter_rows())
    scores = pl.concat([schema.SCORES.empty(), *(versions[name].read(schema.SCORES) for name in scorers)])
    eligible = eligibility.filter(pl.col("status") == "eligible").select("latent", "firing_rate").sort("latent")
    counts = {
        "partition": partition,
        "control": run.registry.sae(partition).control,
        "n_latents": eligibility.height,
        "n_alive": eligibility.join(alive, on="latent", how="semi").height,
        "n_eligible": eligible.height,
    }
    return [counts | row for row in summaries(scores, eligible, n_explained, run.settings.report)]


report_scores = one_by_one(_report)
