"""Recipes: everything that decides the content of a partition, and how two of them differ.

What belongs here: the recipe itself, the difference of two in words, and the recipe of another attempt where a
language model owes replies. What goes into a recipe is collected in `workspace.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentgloss.store import fingerprint

if TYPE_CHECKING:
    from latentgloss.store import Version


ATTEMPT, UNANSWERED = "attempt", "unanswered"
"""In a recipe: which attempt it is, from the second on. A fact of a version: rows without a language model's reply."""
ATTEMPTS = 3
"""Runs that ask for what got no reply, the first included: a prompt that no server takes is a row in the end."""


@dataclass(frozen=True)
class Recipe:
    """What decides the content of a stage for a partition, and the pinned versions it was derived from."""

    content: dict[str, Any]
    inputs: dict[str, dict[str, Version]]
    """Per input stage, per partition."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.content)


def asked_again(content: dict[str, Any], current: Version | None) -> dict[str, Any]:
    """The recipe of the next attempt, if the current version was made by this one and lacks replies.

    Whether there was a reply is no part of a recipe: a time-out says nothing of what was asked. So that the run after
    it is not told that everything is there, it makes another version.
    """
    if current is None:
        return content
    made = dict(current.manifest.recipe)
    attempt = made.pop(ATTEMPT, 1)
    if fingerprint(made) != fingerprint(content):
        return content
    if UNANSWERED in current.manifest.facts and attempt < ATTEMPTS:
        attempt += 1
    return content if attempt == 1 else {**content, ATTEMPT: attempt}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two recipes, in words: `settings.contexts.test: 100 -> 150`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        found: list[str] = []
        for key in keys:
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if old == new:
        return []
    return [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
