"""The registry sensor. It makes registry entries partitions and reports changed weights of SAEs as new versions.

It also says what the sensor `configuration` fails for. It requests runs only when an SAE is removed, which no condition
of automation sees; automation requests all others.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from assets import partitions, records
from assets.configuration import problems
from assets.stage_asset import SAE_FILES
from jobs.jobs import JOBS
from jobs.refresh import runs
from latentgloss.config.entries import SaeSpec, split_partition
from latentgloss.errors import LatentglossError
from latentgloss.store.digests import json_sha256
from latentgloss.workspace import Workspace
from resources import WorkspaceResource

OVER_SAES = ("reports", "search")
"""The jobs whose stages read all SAEs of a model."""
CURSOR_VERSION = 1
"""Version of the cursor's layout."""


def read_cursor(cursor: str | None) -> dict[str, str]:
    """The data versions that were reported, by SAE.

    Empty if the cursor has another layout; reporting a version twice is harmless.
    """
    found: dict[str, Any] = json.loads(cursor) if cursor else {}
    return dict(found["sae_files"]) if found.get("version") == CURSOR_VERSION else {}


def write_cursor(reported: dict[str, str]) -> str:
    """The cursor that holds the data versions which were reported, by SAE."""
    return json.dumps({"version": CURSOR_VERSION, "sae_files": dict(sorted(reported.items()))})


@dg.sensor(
    name="registry",
    jobs=[job for job in JOBS if job.name in OVER_SAES],
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps partitions equal to the registry's entries and reports the versions of SAE files.",
)
def registry_sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
    """One tick: changes of partitions, new versions of SAE files, and a message for each problem."""
    opened = workspace.opened()
    notes = [note for found in problems(context.instance, workspace).values() for note in found]
    changes = partitions.changes(context.instance, opened.registry)
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    for change in changes:
        definition = partitions.GRAINS[change.grain]
        if change.add:
            requests.append(definition.build_add_request(change.add))
        if change.remove:
            requests.append(definition.build_delete_request(change.remove))
        notes.append(f"{change.grain}: {len(change.add)} added, {len(change.remove)} removed")

    found, reported, unreadable = versions(opened, read_cursor(context.cursor))
    notes += unreadable
    for note in notes:
        context.log.info(note)
    removed = [key for change in changes if change.grain == "sae" for key in change.remove]
    quiet = not requests and not found
    return dg.SensorResult(
        dynamic_partitions_requests=requests,
        asset_events=found,
        run_requests=list(without(context.instance, opened, removed)),
        skip_reason=("; ".join(notes) or "nothing changed") if quiet else None,
        cursor=write_cursor(reported),
    )


def without(instance: dg.DagsterInstance, workspace: Workspace, removed: Sequence[str]) -> Iterator[dg.RunRequest]:
    """The runs after which reports and search indexes no longer hold the removed SAEs. None for what was never made."""
    models = {split_partition(key)[0] for key in removed} & set(workspace.registry.models)
    states = [s for s in workspace.states() if s.partition in models and s.state == "stale"] if models else []
    for job in OVER_SAES:
        for stages, keys in runs(instance, job, states):
            yield dg.RunRequest(
                job_name=job, asset_selection=[dg.AssetKey(s) for s in stages], tags=partitions.range_tags(keys)
            )


def versions(
    workspace: Workspace, known: Mapping[str, str]
) -> tuple[list[dg.AssetMaterialization], dict[str, str], list[str]]:
    """Compares the versions of all SAE files with the `known` ones.

    Returns the records of changed versions, the versions that are known now, and a message for each SAE whose files
    cannot be read.
    """
    reported = {key: version for key, version in known.items() if key in workspace.registry.saes}
    found, unreadable = [], []
    for sae in workspace.registry.saes.values():
        try:
            version = _version(workspace, sae)
        except LatentglossError as e:
            unreadable.append(f"{sae.partition}: {e}")
            continue
        if reported.get(sae.partition) != version:
            reported[sae.partition] = version
            about = {"source": sae.source or "the registry file", "format": sae.format}
            found.append(records.report(SAE_FILES, sae.partition, version, about))
    return found, reported, unreadable


def _version(workspace: Workspace, sae: SaeSpec) -> str:
    from latentgloss.saes.opening import sae_digest

    identity = sae_digest(sae, workspace.digests.sha256)
    return json_sha256({"declared": sae.declared(), "weights": identity})
