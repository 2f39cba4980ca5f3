"""Scorers' judges: what answers whether a latent is active in a context, from its explanation alone.

One file each. `JUDGES` is the list of all there are; `protocols.Judge` is what they have in common, and what a
language model will implement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import SettingsError
from latentgloss.scorers.executed import ExecutedJudge

if TYPE_CHECKING:
    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.protocols import Judge

JUDGES: dict[str, type[Judge]] = {"executed": ExecutedJudge}


def judge_named(name: str, vocabulary: Vocabulary) -> Judge:
    """Raises SettingsError for a judge there is none of."""
    return _judge(name)(vocabulary)


def identities(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Per judge, everything that decides its answers. Raises SettingsError."""
    return {name: _judge(name).identity() for name in names}


def _judge(name: str) -> type[Judge]:
    if name not in JUDGES:
        raise SettingsError(
            f"judge {name!r} is unknown",
            expected=f"one of {', '.join(sorted(JUDGES))}",
            todo="correct `detection.judges` in latentgloss.toml",
        )
    return JUDGES[name]
