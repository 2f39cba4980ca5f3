"""What passes between the stage and an explainer: the evidence of a latent, and the explanation made of it."""

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
    from latentgloss.explanations.examples import Examples
    from latentgloss.llm.asking import Planned
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import LanguageModel, Question


Need = Literal["masked", "select"]
"""Parts of the evidence that only some explainers use."""


@dataclass(frozen=True)
class Evidence:
    """What an explainer may know of one latent: examples of the explain split, activating ones first."""

    latent: int
    examples: Examples
    context_ids: list[int]
    """Context numbers of the examples, in the same order."""
    strata: tuple[str, ...] = ()
    """Per example `activating`, or the stratum of a non-activating context."""
    masked: Bool[np.ndarray, "n length"] | None = None
    """Tokens of the examples on which no activation counts; only for explainers that need `masked`."""
    select: Examples | None = None
    """Examples of the select split, for choosing between explanations; only for explainers that need `select`."""


@dataclass(frozen=True)
class Explained:
    """An explanation, or the reason why there is none."""

    latent: int
    status: str
    reason: str = ""
    text: str = ""
    label: str = ""
    """The text in at most `labels.MOST` characters; empty: the text is shortened."""
    coverage: float | None = None
    """Share of the activation mass in explain that falls on what the label names; None if it was not measured."""
    kind: str | None = None
    """Kind of the latent by its evidence (`labels.kinds`); None if it was not looked at."""
    program: str | None = None
    """The executable form of the explanation, as JSON."""
    context_ids: tuple[int, ...] = ()
    """The contexts it was made from."""
    model: str | None = None
    """The language model that wrote it."""
    prompt_sha256: str | None = None
    """Hash of the messages of the first request to the language model."""
    reply: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Tools:
    """What the explainers of one SAE may use besides evidence. Creating it loads nothing."""

    partition: str
    folder: Path
    """Relative paths in the settings start here."""
    language_model: Callable[[str], LanguageModel]
    """The language model of a name. Raises InputError if there is none."""
    judge: Callable[[str], JudgeThatReads]
    """The language model of a name, as a judge of detection. Raises InputError if there is none."""


class JudgeThatReads(Judge, Protocol):
    """A language model as a judge, whose requests are known before they are sent."""

    def planned(self, question: Question) -> list[Planned]:
        """The requests that a question will take."""


class Explainer(Protocol):
    """Explains latents."""

    computes: bool
    """Whether it spends its time computing here. If so, latents are spread over processes, in which it has no tools."""
    asks: bool
    """Whether it asks a language model. If so, `explanations.llm.sample` bounds how many latents it explains."""
    needs: frozenset[Need]
    """Optional parts of the evidence that it uses."""

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None: ...

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Everything that decides its output besides the evidence; part of the recipe. Raises SettingsError."""
        ...

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One explanation per latent, in the order of the evidence."""
        ...


class AskingExplainer(Explainer, Protocol):
    """An explainer that asks a language model (`asks` is true)."""

    @property
    def unwritten(self) -> int:
        """Upper bound on the tokens of an explanation that does not exist yet."""

    def planned(self, evidence: Evidence) -> list[Planned]:
        """The most requests that a latent can take; empty if no request can be made for it."""
