"""Explainers: what a latent responds to, in words (and, where possible, in executable form).

One file each. An explainer gets the evidence of many latents and gives one `Explained` per latent, in order; what
goes wrong with one latent is a status and a reason, never an exception and never a gap. `EXPLAINERS` is the list of
all there are; `null:<name>` (another latent's explanation, the baseline) is made by the stage from `<name>`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from latentgloss.errors import SettingsError
from latentgloss.explainers import pattern, token_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from latentgloss.explainers.windows import Vocabulary, Windows
    from latentgloss.settings import ExplanationSettings

NULL = "null:"
SHOWN = 40
"""Contexts shown to an explainer that cannot use more (Paulo et al., section 3)."""


@dataclass(frozen=True)
class Evidence:
    """What an explainer may know of one latent: windows of the explain split, activating ones first."""

    latent: int
    windows: Windows
    context_ids: list[int]
    """Context numbers of the windows, in the same order."""


@dataclass(frozen=True)
class Explained:
    """An explanation, or why there is none."""

    latent: int
    status: str
    reason: str = ""
    text: str = ""
    program: str | None = None
    context_ids: tuple[int, ...] = ()
    """The contexts it was made from."""


class Explainer(Protocol):
    """Explains latents. `identity` is everything that decides its output beside the evidence."""

    @property
    def identity(self) -> dict[str, Any]: ...

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]: ...


EXPLAINERS: dict[str, Callable[[ExplanationSettings, Vocabulary], Explainer]] = {
    "pattern": pattern.PatternExplainer,
    "token_table": token_table.TokenTableExplainer,
}


def base_of(name: str) -> str:
    """The explainer that `name` is, or is the null of. Raises SettingsError for an unknown one."""
    base = name.removeprefix(NULL)
    if base not in EXPLAINERS:
        raise SettingsError(
            f"explainer {name!r} is unknown",
            expected=f"one of {', '.join(sorted(EXPLAINERS))}, or one of them after {NULL!r}",
            todo="correct `explanations.explainers` in latentgloss.toml",
        )
    return base
