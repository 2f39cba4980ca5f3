"""The class `Stage`: a stage's name, grain, inputs, settings, version and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentgloss.config import Settings
    from latentgloss.schema import Table


Grain = Literal["model", "sae"]
Pool = Literal["gpu", "llm"]


@dataclass(frozen=True)
class Input:
    """An upstream stage that a stage reads."""

    stage: str
    parts: tuple[str, ...] = ()
    """The parts of its content that matter; empty: all of them."""
    also: tuple[tuple[str, str, str], ...] = ()
    """(part, setting, beginning): the part matters too if the setting, a list of names, has one that begins so."""

    when: tuple[str, Any] | None = None
    """(setting, value): the input is read only if the setting has the value."""
    optional: bool = False
    """Read if present; at least one of a stage's optional inputs must exist and be non-empty."""

    def used(self, settings: Mapping[str, Any]) -> bool:
        """Whether the input is read. `settings`: as returned by `Stage.settings_used`, or as stored in a recipe."""
        return self.when is None or among(settings, self.when[0]) == self.when[1]

    def parts_used(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The parts that matter under these settings (given as for `used`); empty: all of them."""
        return self.parts + tuple(
            part for part, name, beginning in self.also if any(n.startswith(beginning) for n in among(settings, name))
        )


@dataclass(frozen=True)
class Consumed:
    """What a stage reads from settings and store."""

    settings: dict[str, Any]
    """Values of the stage's settings, by dotted name."""
    inputs: list[tuple[Input, tuple[str, ...]]]
    """Each input that is used, with the parts of it that matter (empty: all of them)."""


@dataclass(frozen=True)
class Stage:
    """The declaration of one stage."""

    name: str
    """Also its asset key and its folder in the store."""
    noun: str
    """The noun it belongs to: its group in the Dagster UI and its folder in the core."""
    grain: Grain
    """What one partition is: a model or an SAE."""
    version: str
    """Raised when the code can produce different content from the same recipe."""
    inputs: tuple[Input, ...]
    settings: tuple[str, ...]
    """Dotted names of the settings that decide its content."""
    tables: tuple[Table, ...]
    """The tables it writes."""
    doc: str
    """What the stage produces, in one sentence; shown in the Dagster UI and in the data dictionary."""
    pool: Pool | None = None
    """The shared resource that limits concurrent runs: a GPU or the LLM server."""

    def consumes(self, settings: Settings) -> Consumed:
        """The settings and the parts of its inputs that decide the content, the same for every partition."""
        values = self.settings_used(settings)
        return Consumed(values, self.reads(values))

    def reads(self, settings: Mapping[str, Any]) -> list[tuple[Input, tuple[str, ...]]]:
        """Each input that is used under these settings, with the parts of it that matter (empty: all of them).

        `settings`: as returned by `settings_used`, or as stored in a recipe.
        """
        return [(i, i.parts_used(settings)) for i in self.inputs if i.used(settings)]

    def settings_used(self, settings: Settings) -> dict[str, Any]:
        """Values of `self.settings` by dotted name, JSON-compatible."""
        return {name: _value(settings, name) for name in self.settings}


def among(settings: Mapping[str, Any], dotted: str) -> Any:
    """The value of one setting in a stage's `settings_used`, where it may be part of a whole settings table."""
    table, _, name = dotted.partition(".")
    return settings[dotted] if dotted in settings else settings[table][name]


def _value(settings: Settings, dotted: str) -> Any:
    value: Any = settings.model_dump(mode="json")
    for key in dotted.split("."):
        value = value[key]
    return value
