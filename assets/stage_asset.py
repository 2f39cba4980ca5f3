"""Turns a stage of `latentgloss.pipeline.graph` into a Dagster asset.

What belongs here: deriving everything that Dagster needs (dependencies, partitions, pool, code version, description,
group, column schema) from the declaration of the stage, and the body that all assets share. The body brings the
partitions up to date, records each one as it is finished, and names those that failed. Most assets are a step of their
own. Scorers that ask the same language model share a step (`one_step`), so that they ask it at the same time.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from assets import automation, records
from assets.partitions import GRAINS, SAES
from latentgloss.errors import MissingInput
from latentgloss.machine.printable import printable
from latentgloss.pipeline.graph import STAGES, profile_of
from latentgloss.pipeline.stage import Stage
from latentgloss.pipeline.stage_run import Outcome, Runner
from latentgloss.schema import DEFAULT_PROFILE
from latentgloss.store import Version
from latentgloss.workspace import Workspace
from resources import Progress, WorkspaceResource, processes
from resources.workspace import code_version, loaded_settings

Picture = Callable[[Version], str]
"""Returns a chart or table of a version as Markdown, for the Dagster UI."""
Check = Callable[[Version], tuple[bool, dict[str, Any]]]
"""Returns (passed, counts)."""

BACKFILL = "dagster/backfill"
"""The tag of a run that belongs to a backfill."""
OWNERS = ["team:interpretability"]
SAE_FILES = "sae_files"
"""The asset for the files of each SAE. They are not made here; the registry sensor reports their versions."""


def is_bridge(stage: Stage) -> bool:
    """Whether a stage reads a stage of another grain."""
    return any(STAGES[i.stage].grain != stage.grain for i in stage.inputs)


@dataclass(frozen=True)
class Wired:
    """A stage, and what its asset adds to it."""

    stage: Stage
    runner: Callable[[], Runner]
    """Imports and returns the stage's runner. The import happens only in a run, so that loading the definitions does
    not load a model library."""
    picture: Picture | None = None
    checks: dict[str, Check] = field(default_factory=dict)
    """Checks by name. A check that fails is a warning and stops nothing."""


def wired(
    *, picture: Picture | None = None, checks: dict[str, Check] | None = None
) -> Callable[[Callable[[], Runner]], Wired]:
    """Decorates a function that is named like a stage and returns the stage's runner."""
    return lambda runner: Wired(STAGES[runner.__name__], runner, picture, checks or {})


def stage_asset(
    *, picture: Picture | None = None, checks: dict[str, Check] | None = None
) -> Callable[[Callable[[], Runner]], dg.AssetsDefinition]:
    """Decorates like `wired`, and makes the stage an asset in a step of its own."""

    def decorate(runner: Callable[[], Runner]) -> dg.AssetsDefinition:
        return one_step(runner.__name__, wired(picture=picture, checks=checks)(runner))

    return decorate


STEP_OF: dict[str, str] = {}
"""Name of the step in which each stage is materialised, by stage."""


def one_step(name: str, *stages: Wired) -> dg.AssetsDefinition:
    """Makes stages of one grain and pool assets of one step, each of which can be materialised alone."""
    members = {member.stage.name: member for member in stages}
    STEP_OF.update(dict.fromkeys(members, name))
    first = stages[0].stage
    versions = {stage: code_version(member.stage, loaded_settings()) for stage, member in members.items()}

    def step(context: dg.AssetExecutionContext, workspace: WorkspaceResource, progress: Progress) -> Iterator[Any]:

        context.instance.add_run_tags(context.run.run_id, {processes.TAG: processes.written()})
        chosen = [stage for stage in members if dg.AssetKey(stage) in context.selected_asset_keys]
        inputs = {stage: records.Inputs.now(context.instance, _upstream(members[stage].stage)) for stage in chosen}
        failed: list[Outcome] = []
        for outcome in workspace.workspace.materialise_together(
            {stage: members[stage].runner() for stage in chosen},
            list(context.partition_keys),
            run_id=context.run.run_id,
            progress=progress.start(context.log),
        ):
            member = members[outcome.stage]
            label = outcome.partition if len(members) == 1 else f"{outcome.stage} {outcome.partition}"
            if outcome.version is not None:
                _record(context, outcome, member, versions[outcome.stage], inputs[outcome.stage])
                context.log.info(f"{label}: {outcome.status} in {outcome.seconds:.1f} s, version {outcome.version.key}")
            elif isinstance(outcome.error, MissingInput) and _is_skipped(context, member.stage, outcome.partition):
                context.log.warning(f"{label}: skipped. {outcome.error}")
                if BACKFILL in context.run.tags or not is_bridge(member.stage):
                    records.skipped(context, outcome.stage, outcome.partition, str(outcome.error))
            else:
                context.log.error(f"{label}: {outcome.error}")
                failed.append(outcome)
        for stage in set(members) - set(chosen):
            _check_current(context, workspace.workspace, members[stage])
        if failed:
            raise _failure(failed)
        yield from records.step_done(context)

    with warnings.catch_warnings():
        # Dagster 1.13 labels single-run backfills and checks per partition as beta or preview. This project uses both.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.multi_asset(
            name=name,
            specs=[_spec(member, versions[stage]) for stage, member in members.items()],
            check_specs=[
                dg.AssetCheckSpec(
                    check, asset=stage, partitions_def=GRAINS[first.grain], description=_first_line(counts)
                )
                for stage, member in members.items()
                for check, counts in member.checks.items()
            ],
            partitions_def=GRAINS[first.grain],
            backfill_policy=dg.BackfillPolicy.single_run(),
            pool=_pool([member.stage for member in stages]),
            can_subset=len(members) > 1,
        )(step)


def _is_skipped(context: dg.AssetExecutionContext, stage: Stage, partition: str) -> bool:
    """Whether a partition whose input is missing is skipped on purpose, and is no failure.

    A bridge's inputs of another grain may be missing. What reads a partition that was recorded as skipped is skipped.
    """
    above = [i.stage for i in stage.inputs]
    return is_bridge(stage) or any(
        records.recorded(context.instance, name, partition) == records.SKIPPED for name in above
    )


def _spec(member: Wired, version: str) -> dg.AssetSpec:
    stage = member.stage
    return dg.AssetSpec(
        stage.name,
        deps=_deps(stage),
        description=_description(member),
        automation_condition=_automation(stage),
        skippable=True,
        group_name=stage.noun,
        code_version=version,
        owners=OWNERS,
        kinds={_storage(stage), *(["pytorch"] if stage.pool == "gpu" else [])},
        metadata=_column_schema(stage),
    )


def _description(member: Wired) -> str:
    """What the stage makes, and from the asset's docstring what it means if the asset is not healthy."""
    own = inspect.getdoc(member.runner)
    return f"{member.stage.doc}\n\n{own}" if own else member.stage.doc


def _pool(stages: list[Stage]) -> str | None:
    """The pool of the stages; None instead of `llm` if the settings let none of them ask a language model."""
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
    """Whether the stage depends on the files of SAEs, as the bridge from models to SAEs does."""
    return stage.grain == "sae" and is_bridge(stage)


def _deps(stage: Stage) -> list[dg.AssetDep]:
    # Custom partition mappings are lost between processes, so only built-in ones are used.
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
    # A bridge follows what is finished last: the report follows the scores of every scorer, and the search index also
    # follows its vectors.
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
    context: dg.AssetExecutionContext, outcome: Outcome, member: Wired, code: str, inputs: records.Inputs
) -> None:
    """Records a finished partition with its picture and the results of its checks. `code`: the code version."""
    version = outcome.version
    assert version is not None
    picture = (
        {}
        if member.picture is None
        else {"picture": dg.MetadataValue.md(printable(member.picture(version), lines=True))}
    )
    metadata = {**picture, **_metadata(outcome, version)}
    records.materialisation(context, version, code_version=code, inputs=inputs, metadata=metadata)
    for name, check in member.checks.items():
        passed, counted = check(version)
        records.check(context, version, name, passed, counted)


def _check_current(context: dg.AssetExecutionContext, workspace: Workspace, member: Wired) -> None:
    """Runs checks that were selected without their asset, on the current versions.

    Raises dg.Failure if a partition has none.
    """
    stage = member.stage.name
    selected = {k.name for k in context.selected_asset_check_keys if k.asset_key == dg.AssetKey(stage)}
    for partition in context.partition_keys if selected else ():
        version = workspace.store.current(stage, partition)
        if version is None or records.recorded(context.instance, stage, partition) is None:
            raise dg.Failure(f"{stage} of {partition} has not been materialised, so there is nothing to check.")
        for name in selected:
            records.check(context, version, name, *member.checks[name](version))


def _metadata(outcome: Outcome, version: Version) -> dict[str, Any]:
    profile = profile_of(version)
    rows: dict[str, int] = {}
    for name, entry in version.manifest.files.items():
        if "rows" in entry:
            table = name.split("/")[0].removesuffix(".parquet")
            rows[f"rows: {table}"] = rows.get(f"rows: {table}", 0) + entry["rows"]
    return {
        "status": outcome.status,
        "seconds": round(outcome.seconds, 3),
        "fingerprint": version.manifest.fingerprint,
        "data version": version.manifest.data_version,
        "blocks computed": outcome.blocks_computed,
        "blocks reused": outcome.blocks_reused,
        "bytes": sum(int(entry["bytes"]) for entry in version.manifest.files.values()),
        "folder": dg.MetadataValue.path(str(version.files.path(version.key))),
        "facts": records.bounded(dict(version.manifest.facts), version),
        **({} if profile == DEFAULT_PROFILE else {"profile": profile}),
        **rows,
    }


def _failure(failed: list[Outcome]) -> dg.Failure:
    """Names the failed partitions with their reasons. The event holds both several times, so they are shortened."""
    stages = sorted({outcome.stage for outcome in failed})
    reasons = [f"{outcome.stage} of {outcome.partition}: {outcome.error}" for outcome in failed]
    lines = "\n".join(f"- {line}" for line in records.shortened(reasons, "the log of this run names each one"))
    counted = {stage: sum(outcome.stage == stage for outcome in failed) for stage in stages}
    return dg.Failure(
        description=f"{' and '.join(stages)} failed for {len({o.partition for o in failed})} partition(s); "
        f"all other partitions are finished.\n{lines}",
        metadata={"failed": dg.MetadataValue.json(counted)},
        allow_retries=False,
    )


sae_files = dg.AssetSpec(
    SAE_FILES,
    description="The weights of each SAE in the registry. They are not made here; the sensor `registry` reports their "
    "versions.",
    partitions_def=SAES,
    group_name="activations",
    kinds={"safetensors"},
    owners=OWNERS,
)
