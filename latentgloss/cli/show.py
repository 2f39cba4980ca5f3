"""The commands `status`, `explanations` and `scores`: what is in the store."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import click

from latentgloss.cli.output import json_option, known_sae, open_workspace, print_json_rows, print_table, unknown
from latentgloss.errors import InputError, MissingInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from latentgloss.schema import Table
    from latentgloss.store import Version
    from latentgloss.workspace import Workspace


EXPLANATION_KEYS = (
    "partition",
    "latent",
    "explainer",
    "label",
    "coverage",
    "kind",
    "explanation",
    "status",
    "reason",
    "context_ids",
    "prompt_sha256",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
)
"""Keys of an explanation in JSON."""
SCORE_KEYS = (
    "partition",
    "latent",
    "explainer",
    "scorer",
    "judge",
    "negatives",
    "profile",
    "score",
    "corrected",
    "specificity",
    "ci_low",
    "ci_high",
    "n",
    "coverage",
    "status",
    "reason",
)
"""Keys of a score in JSON, besides `metrics`."""
NOT_METRICS = ("embedder", "split", "metric", "threshold")
"""Columns of the score table that are neither keys in JSON nor metrics."""


@click.command()
@click.argument("partitions", nargs=-1, metavar="[PARTITION]...")
@json_option
@click.pass_context
def status(ctx: click.Context, partitions: tuple[str, ...], as_json: bool) -> None:
    """Show which results are fresh, stale or missing, and why.

    Use it to see what the next run will compute, and what failed. A result is stale if settings, files or code have
    changed since it was computed; BECAUSE names the change. PARTITION is a model or an SAE; `*` matches anything;
    without one, everything is shown.

    JSON: a list of objects with asset, partition, state and because.

    \b
    Example:
      latentgloss status 'smollm2/*'
    """
    workspace = open_workspace(ctx)
    states = workspace.states()
    known = {state.partition for state in states}
    for name in partitions:
        if not fnmatch.filter(known, name):
            raise unknown("partition", name, known, "see `latentgloss saes list`")
    chosen = [s for s in states if not partitions or any(fnmatch.fnmatch(s.partition, p) for p in partitions)]
    if as_json:
        print_json_rows(vars(state) for state in chosen)
    else:
        print_table(
            ("ASSET", "PARTITION", "STATE", "BECAUSE"), ([s.asset, s.partition, s.state, s.because] for s in chosen)
        )
    if workspace.registry.problems:
        n = len(workspace.registry.problems)
        files = "1 registry file" if n == 1 else f"{n} registry files"
        click.echo(f"{files} cannot be used: see `latentgloss doctor`", err=True)


@click.command()
@click.argument("partition")
@click.option("--latent", type=click.IntRange(min=0), help="Only this latent.")
@click.option("--explainer", help="Only this explainer.")
@click.option("--kind", help="Only latents of this kind, such as `topic` (see below).")
@click.option("--full", is_flag=True, help="The whole explanation instead of its label.")
@click.option("--nulls", is_flag=True, help="Also null explanations: other latents' texts, the baseline of scores.")
@click.option("--all", "every", is_flag=True, help="Also latents that an explainer was not asked about.")
@json_option
@click.pass_context
def explanations(
    ctx: click.Context,
    partition: str,
    latent: int | None,
    explainer: str | None,
    kind: str | None,
    full: bool,
    nulls: bool,
    every: bool,
    as_json: bool,
) -> None:
    """Show the explanations of an SAE's latents, by label.

    PARTITION is the name of an SAE. There is one row per latent and explainer; a latent that was not explained has a
    row with the reason. COVERS is the share of the latent's activation that falls on what the label names. KIND is what
    sort of latent it is by its contexts: single token, token class, format, prefix, phrase, position, words, topic or
    unclear.

    JSON: a list of objects with partition, latent, explainer, label, coverage, kind, explanation, status, reason,
    context_ids, prompt_sha256, model, prompt_tokens, completion_tokens and cost_usd.

    \b
    Example:
      latentgloss explanations smollm2/layers.9/topk2048 --kind topic
    """
    from latentgloss import schema

    workspace = open_workspace(ctx)
    known_sae(workspace, partition, ["explanations"])
    version = _current(workspace, "explanations", partition)
    frames = _frames(workspace, version, schema.EXPLANATIONS, latent, {"explainer": explainer})
    rows = (
        {key: partition if key == "partition" else row.get(key) for key in EXPLANATION_KEYS}
        for frame in frames
        for row in _usual(frame, nulls=nulls or _is_null(explainer), every=every).iter_rows(named=True)
        if kind is None or row.get("kind") == kind
    )
    if as_json:
        print_json_rows(rows)
        return
    print_table(
        ("LATENT", "EXPLAINER", "KIND", "COVERS", "EXPLANATION" if full else "LABEL"),
        (
            [
                r["latent"],
                r["explainer"],
                r["kind"],
                None if r["coverage"] is None else f"{r['coverage']:.0%}",
                _said(r, full=full),
            ]
            for r in rows
        ),
    )


def _said(row: dict[str, Any], *, full: bool) -> str:
    """The label or the text of an explanation, or why there is none."""
    from latentgloss.explanations.labels import shortened

    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    return str(row["explanation"] if full else row["label"] or shortened(row["explanation"]))


def _usual(frame: pl.DataFrame, *, nulls: bool, every: bool) -> pl.DataFrame:
    """The rows that people ask for: without null explanations and latents outside a sample, unless they want these."""
    import polars as pl

    from latentgloss.explanations.explainers import NULL

    if not nulls:
        frame = frame.filter(~pl.col("explainer").str.starts_with(NULL))
    return frame if every else frame.filter(pl.col("status") != "not_sampled")


def _is_null(explainer: str | None) -> bool:
    from latentgloss.explanations.explainers import NULL

    return explainer is not None and explainer.startswith(NULL)


@click.command()
@click.argument("partition")
@click.option("--latent", type=click.IntRange(min=0), help="Only this latent.")
@click.option("--scorer", help="Only this scorer.")
@click.option("--explainer", help="Only explanations by this explainer.")
@click.option("--nulls", is_flag=True, help="Also scores of null explanations: other latents' texts.")
@click.option("--all", "every", is_flag=True, help="Every kind of negatives, and latents that were not judged.")
@json_option
@click.pass_context
def scores(
    ctx: click.Context,
    partition: str,
    latent: int | None,
    scorer: str | None,
    explainer: str | None,
    nulls: bool,
    every: bool,
    as_json: bool,
) -> None:
    """Show how good the explanations of an SAE are.

    PARTITION is the name of an SAE. There is one row per latent, explainer, scorer and judge, for the first kind of
    negatives (with --all, for each kind); a latent without a score has a row that says why. CORRECTED is the score on a
    scale where answers without information get 0 and perfect ones 1. SPECIFICITY is the score minus the mean score of
    the latent's null explanations. N is the number of judged contexts (for intruder: trials) that count, and COVERAGE
    the share of judgements that count. CI_LOW and CI_HIGH are the ends of the score's 95 % interval. If scores are of a
    profile other than the default, the column PROFILE names it.

    JSON: a list of objects with partition, latent, explainer, scorer, judge, negatives, profile, score, corrected,
    specificity, ci_low, ci_high, n, coverage, status, reason and metrics (those of the scorer, by name).

    \b
    Example:
      latentgloss scores smollm2/layers.9/topk2048 --scorer detection --explainer pattern
    """
    from latentgloss import schema
    from latentgloss.pipeline.graph import profile_of

    workspace = open_workspace(ctx)
    stages = score_stages(scorer)
    known_sae(workspace, partition, stages)
    if scorer is None:
        stages = _stages_with_scores(workspace, partition, stages, explainer)
    metrics = [c.name for c in schema.SCORES.columns if c.name not in {*SCORE_KEYS, *NOT_METRICS}]
    versions = [_current(workspace, stage, partition) for stage in stages]
    rows: Iterator[dict[str, Any]] = (
        {
            **{key: partition if key == "partition" else row[key] for key in SCORE_KEYS},
            "metrics": {name: row[name] for name in metrics if row[name] is not None},
        }
        for version in versions
        for frame in _frames(workspace, version, schema.SCORES, latent, {"explainer": explainer})
        for row in _usual_scores(frame, nulls=nulls or _is_null(explainer), every=every).iter_rows(named=True)
    )
    if as_json:
        print_json_rows(rows)
    else:
        _print_scores(rows, with_profile=any(profile_of(version) != schema.DEFAULT_PROFILE for version in versions))


def _usual_scores(frame: pl.DataFrame, *, nulls: bool, every: bool) -> pl.DataFrame:
    """As `_usual`, with the first kind of negatives only, as on the report's first screen, unless all are wanted."""
    from latentgloss.report.headline import of_first_arm

    frame = _usual(frame, nulls=nulls, every=every)
    return frame if every else of_first_arm(frame)


def _stages_with_scores(workspace: Workspace, partition: str, stages: list[str], explainer: str | None) -> list[str]:
    """The stages that have scores of an SAE; detection_scores if none has, so that its absence is reported.

    `explainer`: only stages that can score its explanations. The explainer `none` stands for judging without one.
    """
    from latentgloss.pipeline.graph import STAGES

    if explainer is not None:
        of_explanations = {s for s in stages if any(i.stage == "explanations" for i in STAGES[s].inputs)}
        stages = [s for s in stages if (s in of_explanations) == (explainer != "none")]
    current = ((s, workspace.store.current(s, partition)) for s in stages)
    return [s for s, version in current if version is not None and version.manifest.blocks] or ["detection_scores"]


def _print_scores(rows: Iterator[dict[str, Any]], *, with_profile: bool) -> None:
    """Prints scores as a table."""
    columns = (
        "latent",
        "explainer",
        "scorer",
        "judge",
        "negatives",
        *(["profile"] if with_profile else []),
        "score",
        "ci_low",
        "ci_high",
        "corrected",
        "specificity",
        "n",
        "coverage",
    )
    print_table(
        (*(c.upper() for c in columns), "STATUS"),
        ([*(r[c] for c in columns), r["status"] + (f": {r['reason']}" if r["reason"] else "")] for r in rows),
    )


def score_stages(scorer: str | None = None) -> list[str]:
    """Names of the stages that score, or of one scorer's stage alone. Raises InputError for an unknown scorer."""
    from latentgloss.pipeline.graph import STAGES

    stages = {name.removesuffix("_scores"): name for name, stage in STAGES.items() if stage.noun == "scores"}
    if scorer is not None and scorer not in stages:
        raise unknown("scorer", scorer, stages)
    return [stages[scorer]] if scorer else list(stages.values())


def _current(workspace: Workspace, stage: str, partition: str) -> Version:
    """The current version of a partition. Raises MissingInput if there is none."""
    version = workspace.store.current(stage, partition)
    if version is None:
        raise MissingInput(
            f"{stage} of {partition} has not been materialised",
            todo=f"materialise it: `dagster asset materialize --select {stage} --partition {partition}`",
        )
    return version


def _frames(
    workspace: Workspace, version: Version, table: Table, latent: int | None, chosen: dict[str, str | None]
) -> Iterator[pl.DataFrame]:
    """Rows of a table with a row per latent, one block of latents at a time, sorted by the table's key.

    `latent`: only this latent. `chosen`: per column, the only value to keep; None keeps all. Raises InputError at the
    end if there was no row for the given latent or value.
    """
    import polars as pl

    from latentgloss.lineage.trace import check_latent
    from latentgloss.schema import BLOCK

    if latent is not None:
        check_latent(workspace, version, latent)
    blocks: dict[str, list[str]] = {}
    for name in sorted(version.manifest.blocks):
        blocks.setdefault(name.split("-")[0], []).append(name)
    if latent is not None:
        blocks = {number: names for number, names in blocks.items() if int(number) == latent // BLOCK}
    seen: dict[str, set[str]] = {column: set() for column in chosen}
    n = 0
    for names in blocks.values():
        frame = pl.concat([version.read(table, name) for name in names])
        if latent is not None:
            frame = frame.filter(pl.col("latent") == latent)
        for column, value in chosen.items():
            seen[column] |= set(frame[column].unique())
            if value is not None:
                frame = frame.filter(pl.col(column) == value)
        n += frame.height
        yield frame.sort(table.key)
    for column, value in chosen.items():
        if not n and value is not None and value not in seen[column]:
            raise unknown(column, value, seen[column])
    if not n and latent is not None:
        raise InputError(
            f"latent {latent} of {version.manifest.partition} is not selected",
            expected="a latent that `latents` of the registry entry selects",
            todo="add it there and materialise again",
        )
