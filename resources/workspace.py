"""The workspace (settings, registry, store) as a Dagster resource.

What belongs here: finding the settings file, and the settings that were loaded when this code location started.
Everything else is in `latentgloss.workspace`.
"""

from functools import lru_cache
from pathlib import Path

import dagster as dg
from pydantic import Field, PrivateAttr

from latentgloss.config import Settings, settings
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage import Stage
from latentgloss.store.digests import json_sha256
from latentgloss.workspace import Workspace


@lru_cache(maxsize=1)
def loaded_settings() -> Settings:
    """The settings as they were when this process first read them. Raises SettingsError."""
    return settings.load()


def code_version(stage: Stage, used: Settings) -> str:
    """The code version of a stage, `<stage version>-<hash of its settings>`, by which Dagster notices changes."""
    return f"{stage.version}-{json_sha256(stage.settings_used(used))[:12]}"


def changed_since_loaded() -> list[str]:
    """Stages whose settings in the file now differ from the loaded ones. Raises SettingsError."""
    before, now = loaded_settings(), settings.load()
    return [s.name for s in STAGES.values() if code_version(s, before) != code_version(s, now)]


class WorkspaceResource(dg.ConfigurableResource):
    """One settings file with its registry and store. An instance exists for one run or one sensor tick."""

    config: str = Field(
        default="",
        description="Path of latentgloss.toml. Empty: LATENTGLOSS_CONFIG, or the nearest file in or above this folder.",
    )
    _workspace: Workspace | None = PrivateAttr(default=None)

    @property
    def workspace(self) -> Workspace:
        """The workspace, opened once so that a run loads each model once for all stages. Raises SettingsError."""
        if self._workspace is None:
            self._workspace = self.opened()
        return self._workspace

    def opened(self) -> Workspace:
        """A new workspace, which reads the settings and the registry again. Raises SettingsError."""
        return Workspace.open(Path(self.config).expanduser() if self.config else None)
