"""Writes the events that Dagster stores for each finished partition: data versions, inputs and check results.

A run over many partitions records each one as it is finished, so that finished partitions survive the failure of a
later one. Dagster writes no versions for such records; the tags below are those that it would have written itself
(`dagster._core.execution.plan.execute_step._build_data_version_tags`). No other module uses Dagster's private API.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    NULL_EVENT_POINTER,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.events import DagsterEvent
from dagster._core.execution.plan.objects import TypeCheckData
from dagster._core.execution.plan.outputs import StepOutputData, StepOutputHandle

from latentgloss.pipeline.graph import STAGES
from latentgloss.store import Version

JSON_BYTES = 5_000
"""The longest JSON or list of messages that an event holds in full."""
SKIPPED = "skipped"
"""The data version of a partition that a backfill has skipped on purpose."""


@dataclass(frozen=True)
class Inputs:
    """For each asset that a run reads: the storage id of its latest record before the run read anything."""

    pointers: dict[str, int | None]

    @classmethod
    def now(cls, instance: dg.DagsterInstance, assets: Sequence[str]) -> "Inputs":
        """The ids of now. Call it before the run reads anything, so that content written later counts as new."""
        pointers: dict[str, int | None] = {}
        for name in assets:
            latest = instance.fetch_materializations(dg.AssetKey(name), limit=1).records
            pointers[name] = latest[0].storage_id if latest else None
        return cls(pointers)


def materialisation(
    context: dg.AssetExecutionContext,
    version: Version,
    *,
    code_version: str,
    inputs: Inputs,
    metadata: Mapping[str, Any],
) -> None:
    """Records a finished partition with its data version, its code version and the versions that it was made from."""
    manifest = version.manifest
    tags = {
        DATA_VERSION_TAG: manifest.data_version,
        CODE_VERSION_TAG: code_version,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
    }
    for name, pointer in inputs.pointers.items():
        key = dg.AssetKey(name)
        read = [pin["data_version"] for pin in _pins(version, name)]
        if name not in STAGES:  # not made here, so its version is the one that the sensor reported
            read = [v for v in [recorded(context.instance, name, manifest.partition)] if v is not None]
        tags[get_input_data_version_tag(key)] = _combined(read)
        tags[get_input_event_pointer_tag(key)] = NULL_EVENT_POINTER if pointer is None else str(pointer)
    context.log_event(
        dg.AssetMaterialization(
            asset_key=manifest.stage,
            partition=manifest.partition,
            metadata={**metadata, "upstream partitions": bounded(list(manifest.inputs), version)},
            tags=tags,
        )
    )


def bounded(value: Any, version: Version) -> dg.MetadataValue:
    """JSON for an event. If it is large, how many entries it has and which file holds them.

    Dagster loads many events at once, and a report over hundreds of SAEs has thousands of inputs.
    """
    if len(json.dumps(value)) <= JSON_BYTES:
        return dg.MetadataValue.json(value)
    manifest = str(version.files.path(f"{version.key}/manifest.json"))
    return dg.MetadataValue.json({"entries": len(value), "file": manifest})


def shortened(texts: Sequence[str], where: str) -> list[str]:
    """The first texts that fit into `JSON_BYTES`, then how many are left out; `where` says where all of them are."""
    found: list[str] = []
    size = 0
    for text in texts:
        size += len(text.encode())
        if found and size > JSON_BYTES:
            return [*found, f"… and {len(texts) - len(found):,} more: {where}"]
        found.append(text)
    return found


def skipped(context: dg.AssetExecutionContext, stage: str, partition: str, why: str) -> None:
    """Records that a backfill has skipped a partition on purpose, because an input of another grain is missing.

    A backfill ends as failed if a partition of it has no record. The record holds no content; the first real one is a
    change for everything that depends on it.
    """
    context.log_event(
        dg.AssetMaterialization(
            asset_key=stage,
            partition=partition,
            metadata={"status": "skipped", "reason": why},
            tags={DATA_VERSION_TAG: SKIPPED, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"},
        )
    )


def check(
    context: dg.AssetExecutionContext, version: Version, name: str, passed: bool, metadata: Mapping[str, Any]
) -> None:
    """Records the result of a check of the partition's latest record."""
    key, partition = dg.AssetKey(version.manifest.stage), version.manifest.partition
    record = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records[0]
    context.log_event(
        AssetCheckEvaluation(
            asset_key=key,
            check_name=name,
            passed=passed,
            severity=dg.AssetCheckSeverity.WARN,
            metadata=metadata,
            partition=partition,
            target_materialization_data=AssetCheckEvaluationTargetMaterializationData(
                storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
            ),
        )
    )


def step_done(context: dg.AssetExecutionContext) -> Iterator[DagsterEvent | dg.Output[None]]:
    """The events that mark the step's outputs as delivered, so that later assets *in the same run* are not skipped.

    Yielding the `Output` of an asset would also do so, but would record every partition of the range once more and
    without versions. The outputs of checks record nothing.

    Each event says that its output passed its type check, as every event that Dagster writes itself does. Without
    that, the UI cannot read the event, and shows no log of the run at all.
    """
    step = context.get_step_execution_context()
    for output in step.step.step_outputs:
        if output.name not in step.selected_output_names:
            continue
        if output.properties.asset_check_key is not None:
            yield dg.Output(None, output_name=output.name)
        else:
            passed = TypeCheckData(success=True, label=output.name)  # type: ignore[no-untyped-call]
            done = StepOutputData(StepOutputHandle(step.step.key, output.name), type_check_data=passed)
            yield DagsterEvent.step_output_event(step, done)


def recorded(instance: dg.DagsterInstance, asset: str, partition: str) -> str | None:
    """Data version of the latest record of a partition, or None if there is no record."""
    latest = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]), limit=1
    ).records
    version = extract_data_version_from_entry(latest[0].event_log_entry) if latest else None
    return version.value if version else None


def report(asset: str, partition: str, data_version: str, metadata: Mapping[str, Any]) -> dg.AssetMaterialization:
    """The record of something that is not made here.

    It is a materialisation, because automation ignores observations of such assets.
    """
    return dg.AssetMaterialization(
        asset_key=asset,
        partition=partition,
        metadata=metadata,
        tags={DATA_VERSION_TAG: data_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"},
    )


def report_problems(instance: dg.DagsterInstance, asset: str, name: str, problems: Sequence[str]) -> None:
    """Records a result of a check outside of any run. The check fails if there are problems."""
    instance.report_runless_asset_event(
        AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset),
            check_name=name,
            passed=not problems,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata=problems_metadata(problems),
        )
    )


def problems_metadata(problems: Sequence[str]) -> dict[str, Any]:
    """The metadata of a check that found these problems."""
    return {"problems": dg.MetadataValue.json(list(problems))}


def latest_problems(instance: dg.DagsterInstance, asset: str, name: str) -> list[str] | None:
    """The problems that the latest result of a check found, or None if there is no result."""
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    event = record.event.dagster_event if record and record.event else None
    if event is None or event.event_type_value != "ASSET_CHECK_EVALUATION":
        return None
    found: Any = event.asset_check_evaluation_data.metadata["problems"].value
    return list(found)


def _pins(version: Version, stage: str) -> list[dict[str, str]]:
    return sorted((p for p in version.manifest.inputs if p["stage"] == stage), key=lambda p: p["partition"])


def _combined(data_versions: list[str]) -> str:
    """Dagster's data version of several partitions: a hash of theirs, in order of their keys."""
    return sha256("".join(data_versions).encode()).hexdigest()


__all__ = [
    "SKIPPED",
    "Inputs",
    "bounded",
    "check",
    "latest_problems",
    "materialisation",
    "problems_metadata",
    "recorded",
    "report",
    "report_problems",
    "shortened",
    "skipped",
    "step_done",
]
