"""What a stage is: its name, grain, inputs, settings, version and tables."""

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
    """An upstream stage. `parts`: only these parts of its content matter (empty: all of it)."""

    stage: str
    parts: tuple[str, ...] = ()
    also: tuple[tuple[str, str, str], ...] = ()
    """(part, setting, value): this part matters too if the setting, a list, holds the value."""

    when: tuple[str, Any] | None = None
    """(setting, value): read only if the setting has the value."""
    optional: bool = False
    """Read if it is there; of several such inputs one at least must be, and hold anything."""

    def used(self, settings: Mapping[str, Any]) -> bool:
        """`settings` as `Stage.settings_used` gives them, or a recipe holds them."""
        return self.when is None or among(settings, self.when[0]) == self.when[1]

    def parts_used(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return self.parts + tuple(part for part, name, value in self.also if value in among(settings, name))


@dataclass(frozen=True)
class Consumed:
    """What a stage takes from settings and store."""

    settings: dict[str, Any]
    inputs: list[tuple[Input, tuple[str, ...]]]
    """Each input that is used, with the parts of it that matter (none named: all of them)."""


@dataclass(frozen=True)
class Stage:
    name: str
    noun: str
    """Which of the nouns it belongs to: group in the UI, module in the core."""
    grain: Grain
    version: str
    inputs: tuple[Input, ...]
    settings: tuple[str, ...]
    """Dotted names of the settings that decide its content."""
    tables: tuple[Table, ...]
    doc: str
    pool: Pool | None = None
    """What it competes for: a GPU or the LLM server."""

    def consumes(self, settings: Settings) -> Consumed:
        """The settings and the parts of its inputs that decide the content of any partition."""
        values = self.settings_used(settings)
        return Consumed(values, self.reads(values))

    def reads(self, settings: Mapping[str, Any]) -> list[tuple[Input, tuple[str, ...]]]:
        """Each input that is used under some settings, and which parts of it matter (none named: all of them).

        `settings` as `settings_used` gives them, or as a recipe holds them.
        """
        return [(i, i.parts_used(settings)) for i in self.inputs if i.used(settings)]

    def settings_used(self, settings: Settings) -> dict[str, Any]:
        """The values of `self.settings`, ready for JSON."""
        return {name: _value(settings, name) for name in self.settings}


def among(settings: Mapping[str, Any], dotted: str) -> Any:
    """One setting of those a stage uses, which may be declared as a whole table."""
    table, _, name = dotted.partition(".")
    return settings[dotted] if dotted in settings else settings[table][name]


def _value(settings: Settings, dotted: str) -> Any:
    value: Any = settings.model_dump(mode="json")
    for key in dotted.split("."):
        value = value[key]
    return value
