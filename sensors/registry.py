"""The registry sensor. It makes registry entries partitions and reports changed weights of SAEs as new versions.

It also says when the settings file has changed since this code location was loaded. It requests no runs; automation
does.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from assets import partitions, records
from assets.stage_asset import SAE_FILES
from latentgloss.config.entries import SaeSpec
from latentgloss.config.registry import Registry
from latentgloss.errors import LatentglossError
from latentgloss.store.digests import json_sha256
from latentgloss.workspace import Workspace
from resources import WorkspaceResource
from resources.workspace import changed_since_loaded

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
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps partitions equal to the registry's entries and reports the versions of SAE files.",
)
def registry_sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
    """One tick: changes of partitions, new versions of SAE files, and a message for each problem."""
    opened = workspace.opened()
    registry = opened.registry
    notes = [*_problems(registry), *_reload()]
    changes = partitions.changes(context.instance, registry)
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
    quiet = not requests and not found
    return dg.SensorResult(
        dynamic_partitions_requests=requests,
        asset_events=found,
        skip_reason=("; ".join(notes) or "nothing changed") if quiet else None,
        cursor=write_cursor(reported),
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


def _problems(registry: Registry) -> Iterator[str]:
    for path, error in registry.problems.items():
        yield f"left out: {path.name}: {error}"


def _reload() -> Iterator[str]:
    try:
        changed = changed_since_loaded()
    except LatentglossError as e:
        yield f"the settings file cannot be read, so the loaded settings stay in use: {e}"
        return
    if changed:
        yield (
            f"settings of {', '.join(changed)} have changed since this code location was loaded; reload it "
            "(Deployment > Code locations > Reload), so that Dagster shows what became stale"
        )
