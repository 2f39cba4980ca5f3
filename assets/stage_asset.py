"""From a stage of `latentgloss.stages` to a Dagster asset.

What belongs here: deriving everything Dagster wants to know (deps, partitions, pool, code version, description, group,
column schema) from the one table of stages, and the body all assets share: bring the partitions up to date, record
each as it is finished, name those that failed.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg

from assets import automation, records
from assets.partitions import GRAINS, SAES
from latentgloss.errors import MissingInput
from latentgloss.stages import STAGES, Stage
from latentgloss.store import Version
from latentgloss.work import Outcome, Work
from resources import Progress, WorkspaceResource
from resources.workspace import code_version, loaded_settings

Runner = Callable[[Sequence[Work]], Iterator[Work]]
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


def stage_asset(
    *, picture: Picture | None = None, checks: dict[str, Check] | None = None
) -> Callable[[Callable[[], Runner]], dg.AssetsDefinition]:
    """Turns a function named like a stage into its asset.

    The function returns the stage's runner. It imports it itself, so that loading the definitions loads no model
    library. `checks` maps a check's name to what counts it; a check that fails warns and stops nothing.
    """

    def decorate(runner: Callable[[], Runner]) -> dg.AssetsDefinition:
        stage = STAGES[runner.__name__]
        version = code_version(stage, loaded_settings())

        def asset(context: dg.AssetExecutionContext, workspace: WorkspaceResource, progress: Progress) -> Iterator[Any]:
            upstream = [dep.asset_key.to_user_string() for dep in _deps(stage)]
            inputs = records.Inputs.now(context.instance, upstream)
            failed: list[Outcome] = []
            for outcome in workspace.workspace.materialise(
                stage.name,
                list(context.partition_keys),
                runner(),
                run_id=context.run.run_id,
                progress=progress.start(context.log),
            ):
                if outcome.version is not None:
                    _record(context, outcome, version, inputs, picture, checks or {})
                elif is_bridge(stage) and isinstance(outcome.error, MissingInput):
                    context.log.warning(f"{outcome.partition}: skipped. {outcome.error}")
                else:
                    context.log.error(f"{outcome.partition}: {outcome.error}")
                    failed.append(outcome)
            if failed:
                raise _failure(stage, failed)
            yield from records.step_done(context)

        with warnings.catch_warnings():
            # Single-run backfills and checks per partition carry these labels in Dagster 1.13; we rest on both.
            warnings.simplefilter("ignore", dg.BetaWarning)
            warnings.simplefilter("ignore", dg.PreviewWarning)
            return dg.asset(
                name=stage.name,
                description=stage.doc,
                deps=_deps(stage),
                partitions_def=GRAINS[stage.grain],
                backfill_policy=dg.BackfillPolicy.single_run(),
                automation_condition=_automation(stage),
                output_required=False,
                group_name=stage.noun,
                code_version=version,
                pool=stage.pool,
                owners=OWNERS,
                kinds={_storage(stage), *(["pytorch"] if stage.pool == "gpu" else [])},
                metadata=_column_schema(stage),
                check_specs=[
                    dg.AssetCheckSpec(
                        name, asset=stage.name, partitions_def=GRAINS[stage.grain], description=_first_line(check)
                    )
                    for name, check in (checks or {}).items()
                ],
            )(asset)

    return decorate


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
    context: dg.AssetExecutionContext,
    outcome: Outcome,
    version: str,
    inputs: records.Inputs,
    picture: Picture | None,
    checks: dict[str, Check],
) -> None:
    made = outcome.version
    assert made is not None
    drawn = {} if picture is None else {"picture": dg.MetadataValue.md(picture(made))}
    metadata = {**drawn, **_metadata(outcome, made)}
    records.materialisation(context, made, code_version=version, inputs=inputs, metadata=metadata)
    for name, check in checks.items():
        passed, counted = check(made)
        records.check(context, outcome.partition, name, passed, counted)
    context.log.info(f"{outcome.partition}: {outcome.status} in {outcome.seconds:.1f} s, version {made.key}")


def _metadata(outcome: Outcome, made: Version) -> dict[str, Any]:
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
        "folder": dg.MetadataValue.path(str(made.store.files.path(made.key))),
        "facts": dg.MetadataValue.json(dict(made.manifest.facts)),
        **rows,
    }


def _failure(stage: Stage, failed: list[Outcome]) -> dg.Failure:
    why = {outcome.partition: str(outcome.error) for outcome in failed}
    lines = "\n".join(f"- {partition}: {message}" for partition, message in why.items())
    return dg.Failure(
        description=f"{stage.name} failed for {len(why)} partition(s); every other one is finished.\n{lines}",
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
