"""Recipes: everything that decides the content of a partition, and how two recipes differ.

What belongs here: the class `Recipe`, the differences between two recipes in words, and the recipe of another attempt
when replies of a language model are missing. `workspace/recipes.py` collects the content of recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latentgloss.store import fingerprint

if TYPE_CHECKING:
    from latentgloss.store import Version


ATTEMPT, UNANSWERED = "attempt", "unanswered"
"""Key in a recipe: the attempt's number, present from the second on. Key in a version's facts: the number of rows for
which a language model gave no reply."""
ATTEMPTS = 3
"""Most runs that ask for a missing reply, the first included; after that the row stays without a reply."""
FORGOTTEN = "forgotten"
"""Key in a recipe: how often `latentgloss replies forget` has had rows without a usable reply asked about again. It is
present from the first time on."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of a stage for a partition, and the versions of its inputs."""

    content: dict[str, Any]
    """JSON-compatible; its hash is the fingerprint."""
    inputs: dict[str, dict[str, Version]]
    """The pinned versions, by input stage and then by partition."""
    again: frozenset[str] = field(default=frozenset(), compare=False)
    """Blocks that are computed again although an earlier version has them, because of `latentgloss replies forget`."""

    @property
    def fingerprint(self) -> str:
        """Hash of the content; names a version in the store."""
        return fingerprint(self.content)


def asked_again(content: dict[str, Any], current: Version | None, *, forgotten: bool = False) -> dict[str, Any]:
    """The recipe content of the next attempt if the current version was made from `content` and lacks replies.

    Otherwise `content` as it is, or with the number of the attempt that made the current version. Whether a reply
    arrived is not part of a recipe, because a time-out says nothing about the request. Without an attempt number the
    next run would take the incomplete version for fresh; with it, that run makes another version. `forgotten`: whether
    rows of the current version are to be asked about again at the user's wish, which begins a new count of attempts.
    """
    if current is None:
        return content
    made = dict(current.manifest.recipe)
    attempt, times = made.pop(ATTEMPT, 1), made.pop(FORGOTTEN, 0)
    if fingerprint(made) != fingerprint(content):
        return content
    if forgotten:
        attempt, times = 1, times + 1
    elif UNANSWERED in current.manifest.facts and attempt < ATTEMPTS:
        attempt += 1
    return {
        **content,
        **({FORGOTTEN: times} if times else {}),
        **({ATTEMPT: attempt} if attempt > 1 else {}),
    }


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The differences between two recipes, one line each, such as `settings.contexts.test: 100 -> 150`."""
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
