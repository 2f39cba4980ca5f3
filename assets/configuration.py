"""Asset checks of the registry's files and of the settings in use, which the asset `sae_files` shows.

What belongs here: finding the problems, and reporting them as results of checks. The sensor `configuration` reports
them whenever they change, and fails while there are any.
"""

from collections.abc import Sequence

import dagster as dg

from assets import partitions, records
from assets.stage_asset import SAE_FILES
from latentgloss.errors import LatentglossError
from resources import WorkspaceResource
from resources.workspace import changed_since_loaded

REGISTRY, SETTINGS = "registry_can_be_read", "settings_are_in_use"
"""Names of the checks."""


def registry_problems(instance: dg.DagsterInstance, workspace: WorkspaceResource) -> list[str]:
    """A message for each registry file that cannot be used, and for partitions that stay because of such a file."""
    try:
        registry = workspace.opened().registry
    except LatentglossError as e:
        return [f"the registry cannot be read: {e}"]
    found = [f"left out: {path.name}: {error}" for path, error in registry.problems.items()]
    held = partitions.held_back(instance, registry)
    if held:
        found.insert(
            0,
            f"not removed, although no file declares them any more: {', '.join(held)}. One of the files that cannot be "
            "read may declare them. What to do: correct or delete the files that are left out",
        )
    return records.shortened(found, "see `latentgloss saes check`")


def settings_problems() -> list[str]:
    """A message if the settings file cannot be read, or has changed since this code location was loaded."""
    try:
        changed = changed_since_loaded()
    except LatentglossError as e:
        return [f"the settings file cannot be read, so the loaded settings stay in use: {e}"]
    if not changed:
        return []
    return [
        f"settings of {', '.join(changed)} have changed since this code location was loaded; reload it "
        "(Deployment > Code locations > Reload), so that Dagster shows what became stale"
    ]


def problems(instance: dg.DagsterInstance, workspace: WorkspaceResource) -> dict[str, list[str]]:
    """The problems that each check finds now, by name of the check."""
    return {REGISTRY: registry_problems(instance, workspace), SETTINGS: settings_problems()}


def report(instance: dg.DagsterInstance, found: dict[str, list[str]]) -> None:
    """Records a result of each check whose problems are not those of its latest result."""
    for name, messages in found.items():
        if records.latest_problems(instance, SAE_FILES, name) != messages:
            records.report_problems(instance, SAE_FILES, name, messages)


def _result(messages: Sequence[str]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not messages, severity=dg.AssetCheckSeverity.ERROR, metadata=records.problems_metadata(messages)
    )


@dg.asset_check(
    asset=SAE_FILES,
    name=REGISTRY,
    description="Every file of the registry can be used, and partitions can be removed. `latentgloss saes check` lists "
    "the same problems.",
)
def registry_can_be_read(context: dg.AssetCheckExecutionContext, workspace: WorkspaceResource) -> dg.AssetCheckResult:
    """Executed by hand. The sensor `configuration` reports the same."""
    return _result(registry_problems(context.instance, workspace))


@dg.asset_check(
    asset=SAE_FILES,
    name=SETTINGS,
    description="The settings in use are those in the file. Executed by hand, it can only tell whether the file can be "
    "read, because a run loads the settings anew; the sensor `configuration` corrects the result within a minute.",
)
def settings_are_in_use() -> dg.AssetCheckResult:
    """Executed by hand. The sensor `configuration` reports the same about the code location."""
    return _result(settings_problems())


CHECKS: list[dg.AssetChecksDefinition] = [registry_can_be_read, settings_are_in_use]
