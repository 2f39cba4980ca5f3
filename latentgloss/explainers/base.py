"""What passes between the stage and an explainer: evidence of a latent, and what was made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.explainers.windows import Vocabulary, Windows
    from latentgloss.settings import ExplanationSettings


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
    """Explains latents."""

    computes: bool
    """Whether its time goes into computing here: then latents are spread over processes."""

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary) -> None: ...

    @staticmethod
    def identity(settings: ExplanationSettings) -> dict[str, Any]:
        """Everything that decides its output beside the evidence; part of the recipe."""
        ...

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]: ...
