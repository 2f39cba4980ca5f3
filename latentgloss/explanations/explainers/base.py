"""What passes between the stage and an explainer: evidence of a latent, and what was made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from latentgloss.protocols import Judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from jaxtyping import Bool

    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.examples import Examples
    from latentgloss.llm.asking import Planned
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import LanguageModel, Question


Need = Literal["masked", "select"]
"""What of a latent's evidence only some explainers look at."""


@dataclass(frozen=True)
class Evidence:
    """What an explainer may know of one latent: windows of the explain split, activating ones first."""

    latent: int
    windows: Examples
    context_ids: list[int]
    """Context numbers of the windows, in the same order."""
    strata: tuple[str, ...] = ()
    """Per window `activating`, or its kind of non-activating context."""
    masked: Bool[np.ndarray, "n length"] | None = None
    """Tokens of the windows on which no activation counts; of explainers that need it."""
    select: Examples | None = None
    """Windows of the select split, to choose between explanations by; of explainers that need it."""


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
    model: str | None = None
    prompt_sha256: str | None = None
    """Of the messages a language model was shown first."""
    reply: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Tools:
    """What explainers of one SAE may use beside their evidence. Making it loads nothing."""

    partition: str
    folder: Path
    """Where relative paths in settings start."""
    language_model: Callable[[str], LanguageModel]
    """The model of that name. Raises InputError if there is none."""
    judge: Callable[[str], JudgeThatReads]
    """The language model of that name as judge of detection. Raises InputError if there is none."""


class JudgeThatReads(Judge, Protocol):
    """A language model as judge: what it will be asked is known beforehand."""

    def planned(self, question: Question) -> list[Planned]: ...


class Explainer(Protocol):
    """Explains latents."""

    computes: bool
    """Whether its time goes into computing here: then latents are spread over processes, where there are no tools."""
    asks: bool
    """Whether it asks a language model: then `explanations.llm.sample` says how many latents it is put to."""
    needs: frozenset[Need]

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None: ...

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Everything that decides its output beside the evidence; part of the recipe. Raises SettingsError."""
        ...

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]: ...


class AskingExplainer(Explainer, Protocol):
    """One that asks a language model (`asks`)."""

    @property
    def unwritten(self) -> int:
        """Most tokens of an explanation, before there is one."""

    def planned(self, one: Evidence) -> list[Planned]:
        """What will be asked about a latent, at most; nothing if it cannot be asked about."""
