"""The workspace (settings, registry, store) as a Dagster resource.

What belongs here: finding the settings file, and what was loaded when this code location started. Everything else
is `latentgloss.workspace`.
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
    """The settings as they were when this process first asked. Raises SettingsError."""
    return settings.load()


def code_version(stage: Stage, used: Settings) -> str:
    """What Dagster compares to notice a changed stage or setting: `<stage version>-<hash of its settings>`."""
    return f"{stage.version}-{json_sha256(stage.settings_used(used))[:12]}"


def changed_since_loaded() -> list[str]:
    """Stages whose settings in the file differ from those this code location was loaded with. Raises SettingsError."""
    before, now = loaded_settings(), settings.load()
    return [s.name for s in STAGES.values() if code_version(s, before) != code_version(s, now)]


class WorkspaceResource(dg.ConfigurableResource):
    """One settings file, its registry and its store. An instance lives as long as one run or tick."""

    config: str = Field(
        default="",
        description="Path of latentgloss.toml; empty: LATENTGLOSS_CONFIG, else the nearest one upward.",
    )
    _workspace: Workspace | None = PrivateAttr(default=None)

    @property
    def workspace(self) -> Workspace:
        """Opened once per instance, so that a model is loaded once for all stages of a run. Raises SettingsError."""
        if self._workspace is None:
            self._workspace = self.opened()
        return self._workspace

    def opened(self) -> Workspace:
        """A workspace that has read the settings and the registry afresh. Raises SettingsError."""
        return Workspace.open(Path(self.config).expanduser() if self.config else None)
