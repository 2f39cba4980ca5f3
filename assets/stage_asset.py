"""From a stage of `latentgloss.stages` to a Dagster asset.

What belongs here: deriving everything Dagster wants to know (deps, partitions, pool, code version, description, group,
column schema) from the one table of stages, and the body all assets share: bring the partitions up to date, record
each as it is finished, name those that failed. Most assets are a step of their own; scorers that ask the same language
model share one (`one_step`), so that they ask it at the same time.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from assets import automation, records
from assets.partitions import GRAINS, SAES
from latentgloss.errors import MissingInput
from latentgloss.pipeline.graph import STAGES, profile_of
from latentgloss.pipeline.stage import Stage
from latentgloss.pipeline.stage_run import Outcome, Runner
from latentgloss.schema import DEFAULT_PROFILE
from latentgloss.store import Version
from latentgloss.workspace import Workspace
from resources import Progress, WorkspaceResource
from resources.workspace import code_version, loaded_settings

Picture = Callable[[Version], str]
"""Markdown for people who would rather look."""
Check = Callable[[Version], tuple[bool, dict[str, Any]]]
"""(passed, what was counted)."""

OWNERS = ["team:interpretability"]
SAE_FILES = "sae_files"
"""The files of a SAE: made elsewhere; the registry sensor reports their versions."""


def is_bridge(stage: Stage) -> bool:
    """True if it reads another grain."""
    return any(STAGES[i.stage].grain != stage.grain for i in stage.inputs)


@dataclass(frozen=True)
class Wired:
    """A stage and what its asset adds to it."""

    stage: Stage
    runner: Callable[[], Runner]
    """Imports it itself, so that loading the definitions loads no model library."""
    picture: Picture | None = None
    checks: dict[str, Check] = field(default_factory=dict)
    """By name. One that fails warns and stops nothing."""


def wired(
    *, picture: Picture | None = None, checks: dict[str, Check] | None = None
) -> Callable[[Callable[[], Runner]], Wired]:
    """Of a function named like a stage that returns the stage's runner."""
    return lambda runner: Wired(STAGES[runner.__name__], runner, picture, checks or {})


def stage_asset(
    *, picture: Picture | None = None, checks: dict[str, Check] | None = None
) -> Callable[[Callable[[], Runner]], dg.AssetsDefinition]:
    """As `wired`, in a step of its own."""

    def decorate(runner: Callable[[], Runner]) -> dg.AssetsDefinition:
        return one_step(runner.__name__, wired(picture=picture, checks=checks)(runner))

    return decorate


STEP_OF: dict[str, str] = {}
"""Name of the step in which each stage is materialised."""


def one_step(name: str, *stages: Wired) -> dg.AssetsDefinition:
    """Stages of one grain and pool as assets, each of which can be materialised alone."""
    of = {one.stage.name: one for one in stages}
    STEP_OF.update(dict.fromkeys(of, name))
    first = stages[0].stage
    versions = {stage: code_version(one.stage, loaded_settings()) for stage, one in of.items()}

    def step(context: dg.AssetExecutionContext, workspace: WorkspaceResource, progress: Progress) -> Iterator[Any]:

        chosen = [stage for stage in of if dg.AssetKey(stage) in context.selected_asset_keys]
        inputs = {stage: records.Inputs.now(context.instance, _upstream(of[stage].stage)) for stage in chosen}
        failed: list[Outcome] = []
        for outcome in workspace.workspace.materialise_together(
            {stage: of[stage].runner() for stage in chosen},
            list(context.partition_keys),
            run_id=context.run.run_id,
            progress=progress.start(context.log),
        ):
            one = of[outcome.stage]
            label = outcome.partition if len(of) == 1 else f"{outcome.stage} {outcome.partition}"
            if outcome.version is not None:
                _record(context, outcome, one, versions[outcome.stage], inputs[outcome.stage])
                context.log.info(f"{label}: {outcome.status} in {outcome.seconds:.1f} s, version {outcome.version.key}")
            elif is_bridge(one.stage) and isinstance(outcome.error, MissingInput):
                context.log.warning(f"{label}: skipped. {outcome.error}")
            else:
                context.log.error(f"{label}: {outcome.error}")
                failed.append(outcome)
        for stage in set(of) - set(chosen):
            _check_current(context, workspace.workspace, of[stage])
        if failed:
            raise _failure(failed)
        yield from records.step_done(context)

    with warnings.catch_warnings():
        # Single-run backfills and checks per partition carry these labels in Dagster 1.13; we rest on both.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.multi_asset(
            name=name,
            specs=[_spec(one, versions[stage]) for stage, one in of.items()],
            check_specs=[
                dg.AssetCheckSpec(
                    check, asset=stage, partitions_def=GRAINS[first.grain], description=_first_line(counts)
                )
                for stage, one in of.items()
                for check, counts in one.checks.items()
            ],
            partitions_def=GRAINS[first.grain],
            backfill_policy=dg.BackfillPolicy.single_run(),
            pool=_pool([one.stage for one in stages]),
            can_subset=len(of) > 1,
        )(step)


def _spec(one: Wired, version: str) -> dg.AssetSpec:
    stage = one.stage
    return dg.AssetSpec(
        stage.name,
        deps=_deps(stage),
        description=stage.doc,
        automation_condition=_automation(stage),
        skippable=True,
        group_name=stage.noun,
        code_version=version,
        owners=OWNERS,
        kinds={_storage(stage), *(["pytorch"] if stage.pool == "gpu" else [])},
        metadata=_column_schema(stage),
    )


def _pool(stages: list[Stage]) -> str | None:
    """That of the stages; the one of language models only if the settings have one of them ask."""
    pool = stages[0].pool
    return pool if pool != "llm" or any(loaded_settings().asks(stage.name) for stage in stages) else None


def _upstream(stage: Stage) -> list[str]:
    return [dep.asset_key.to_user_string() for dep in _deps(stage)]


def _storage(stage: Stage) -> str:
    if stage.noun == "embeddings":
        return "lancedb"
    return "parquet" if stage.tables else "json"


def _first_line(check: Check) -> str:
    return (check.__doc__ or "").strip().partition("\n")[0]


def _reads_sae_files(stage: Stage) -> bool:
    """The bridge into the grain `sae` is where a SAE's files enter."""
    return stage.grain == "sae" and is_bridge(stage)


def _deps(stage: Stage) -> list[dg.AssetDep]:
    # A custom PartitionMapping is lost between processes; the two that are used are built in.
    deps = [
        dg.AssetDep(
            i.stage,
            partition_mapping=None if STAGES[i.stage].grain == stage.grain else dg.AllPartitionMapping(),
        )
        for i in stage.inputs
    ]
    return [*deps, dg.AssetDep(SAE_FILES)] if _reads_sae_files(stage) else deps


def _automation(stage: Stage) -> dg.AutomationCondition:
    if not is_bridge(stage):
        return automation.refresh(stage)
    # What is finished last is what a bridge follows: a report the scores, of every scorer; the index its vectors, too.
    last = {STAGES[stage.inputs[-1].stage].noun, stage.noun}
    return automation.bridge(*(i.stage for i in stage.inputs if STAGES[i.stage].noun in last))


def _column_schema(stage: Stage) -> dict[str, Any]:
    if not stage.tables:
        return {}
    several = len(stage.tables) > 1
    columns = [
        dg.TableColumn(
            name=f"{table.name}.{column.name}" if several else column.name,
            type=str(column.dtype),
            description=f"{column.doc} [{column.unit}]" if column.unit else column.doc,
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for table in stage.tables
        for column in table.columns
    ]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


def _record(
    context: dg.AssetExecutionContext, outcome: Outcome, one: Wired, version: str, inputs: records.Inputs
) -> None:
    made = outcome.version
    assert made is not None
    drawn = {} if one.picture is None else {"picture": dg.MetadataValue.md(one.picture(made))}
    metadata = {**drawn, **_metadata(outcome, made)}
    records.materialisation(context, made, code_version=version, inputs=inputs, metadata=metadata)
    for name, check in one.checks.items():
        passed, counted = check(made)
        records.check(context, made, name, passed, counted)


def _check_current(context: dg.AssetExecutionContext, workspace: Workspace, one: Wired) -> None:
    """Checks chosen without their asset, of what there is. Raises dg.Failure where there is nothing."""
    stage = one.stage.name
    asked = {k.name for k in context.selected_asset_check_keys if k.asset_key == dg.AssetKey(stage)}
    for partition in context.partition_keys if asked else ():
        made = workspace.store.current(stage, partition)
        if made is None or records.recorded(context.instance, stage, partition) is None:
            raise dg.Failure(f"{stage} of {partition} has not been materialised: there is nothing to check.")
        for name in asked:
            records.check(context, made, name, *one.checks[name](made))


def _metadata(outcome: Outcome, made: Version) -> dict[str, Any]:
    profile = profile_of(made)
    rows: dict[str, int] = {}
    for name, entry in made.manifest.files.items():
        if "rows" in entry:
            table = name.split("/")[0].removesuffix(".parquet")
            rows[f"rows: {table}"] = rows.get(f"rows: {table}", 0) + entry["rows"]
    return {
        "status": outcome.status,
        "seconds": round(outcome.seconds, 3),
        "fingerprint": made.manifest.fingerprint,
        "data version": made.manifest.data_version,
        "blocks computed": outcome.blocks_computed,
        "blocks reused": outcome.blocks_reused,
        "bytes": sum(int(entry["bytes"]) for entry in made.manifest.files.values()),
        "folder": dg.MetadataValue.path(str(made.files.path(made.key))),
        "facts": dg.MetadataValue.json(dict(made.manifest.facts)),
        **({} if profile == DEFAULT_PROFILE else {"profile": profile}),
        **rows,
    }


def _failure(failed: list[Outcome]) -> dg.Failure:
    stages = sorted({outcome.stage for outcome in failed})
    lines = "\n".join(f"- {outcome.stage} of {outcome.partition}: {outcome.error}" for outcome in failed)
    why = {stage: {o.partition: str(o.error) for o in failed if o.stage == stage} for stage in stages}
    return dg.Failure(
        description=f"{' and '.join(stages)} failed for {len({o.partition for o in failed})} partition(s); "
        f"every other one is finished.\n{lines}",
        metadata={"failed": dg.MetadataValue.json(why)},
        allow_retries=False,
    )


sae_files = dg.AssetSpec(
    SAE_FILES,
    description="Weights of each SAE in the registry. Made elsewhere; the sensor `registry` reports their versions.",
    partitions_def=SAES,
    group_name="activations",
    kinds={"safetensors"},
    owners=OWNERS,
)
