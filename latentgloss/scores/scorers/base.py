"""What a scorer is: a row of `table.SCORERS`. The rows hold what differs between scorers; `stages.py` holds the rest.

What belongs here: `Scorer`, and `Asked`, the contexts that judges are asked about, in the order of the questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import polars as pl

from latentgloss.protocols import Judge, Question

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jaxtyping import Bool, UInt32

    from latentgloss.corpus.reader import Corpus
    from latentgloss.embeddings.vectors import Progress
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Embedder, LanguageModel, Task, Vectors
    from latentgloss.store import Version


class JudgeNeeds(Protocol):
    """What judges need that is not in the store."""

    def vocabulary(self, model: str) -> Vocabulary:
        """The vocabulary of a subject model."""

    def language_model(self, name: str) -> LanguageModel:
        """A language model of the registry. Raises InputError if it is unknown."""

    def embedder(self, name: str) -> Embedder:
        """An embedder of the registry. Raises InputError if it is unknown."""


class ScoreNeeds(JudgeNeeds, Protocol):
    """What the stages of this room need that is not in the store."""

    def corpus(self, resolved: Version) -> Corpus:
        """The corpus of a version of `resolved_saes`."""

    def text_vectors(
        self, embedder: str, role: Literal["query", "document"], progress: Progress | None = None
    ) -> Vectors:
        """Stored vectors of texts, as queries or documents."""

    def context_vectors(self, model: str, corpus: Corpus, embedder: str, progress: Progress | None = None) -> Vectors:
        """Stored vectors of the contexts of a corpus, by number, as documents."""


ORDER = ("latent", "arm", "split", "part", "place", "context", "stratum")
"""The sort order of asked rows. Rows that are equal in the first four columns make one question."""

COLUMNS = (
    "latent",
    "arm",
    "split",
    "part",
    "context",
    "stratum",
    "decile",
    "document",
    "truth",
    "status",
    "reason",
)
"""Columns of asked rows. `arm` becomes `negatives` in judgements; rows whose `status` is not `ok` are not asked."""

PRIOR = 40
"""Explain contexts per class that are asked about, for a prior threshold. It matters where the select split has fewer
than 20 contexts of a class (`metrics.shrink`)."""


@dataclass(frozen=True)
class Asked:
    """The contexts of a block of latents that are to be judged. Arrays are aligned with `rows`."""

    rows: pl.DataFrame
    """`COLUMNS`, sorted by `ORDER`."""
    tokens: UInt32[np.ndarray, "rows length"]
    marks: Bool[np.ndarray, "rows length"] | None = None
    """Tokens that are shown as active; None for tasks without marks."""
    masked: Bool[np.ndarray, "rows length"] | None = None
    """Tokens on which no activation counts; None for tasks without marks."""
    references: dict[int, UInt32[np.ndarray, "contexts length"]] = field(default_factory=dict)
    """By latent, windows of the explain split that a judge may compare with."""
    profile: str = "default"
    """Name of the protocol; part of the key in every table."""
    population: pl.DataFrame | None = None
    """Columns latent, stratum, share (W_h on test) and firing_rate; None if the negatives stand for no population."""
    unfair: dict[str, list[str]] = field(default_factory=dict)
    """By embedder, the arms that it is not asked about because it chose their contexts itself."""

    def of(self, latents: pl.Series) -> Asked:
        """The rows of some latents."""
        return self.where(pl.col("latent").is_in(latents.implode()))

    def where(self, rows: pl.Expr) -> Asked:
        """The rows for which a Boolean expression is true."""
        keep = self.rows.select(rows).to_series().to_numpy()
        marks, masked = (None if a is None else a[keep] for a in (self.marks, self.masked))
        return replace(self, rows=self.rows.filter(keep), tokens=self.tokens[keep], marks=marks, masked=masked)

    def questions(self, task: Task, texts: Mapping[int, Texts]) -> Iterator[Question]:
        """One question per latent, arm, split and part. `texts`: explanation, program and label of each latent."""
        ok = np.flatnonzero((self.rows["status"] == "ok").to_numpy())
        group = self.rows[ok].select(pl.struct("latent", "arm", "split", "part").rle_id()).to_series().to_numpy()
        contexts = self.rows["context"].to_numpy()
        latents = self.rows["latent"].to_numpy()
        for at in np.split(ok, np.flatnonzero(np.diff(group)) + 1) if len(ok) else []:
            latent = int(latents[at[0]])
            said = texts[latent]
            yield Question(
                task,
                latent,
                said.explanation,
                said.program,
                self.tokens[at],
                None if self.marks is None else self.marks[at],
                contexts[at],
                None if self.masked is None else self.masked[at],
                self.references.get(latent),
                said.label,
            )


class Texts(NamedTuple):
    """What a judge may read of one explanation."""

    explanation: str
    program: str | None
    label: str


@dataclass(frozen=True)
class Plan:
    """A scorer, prepared for one partition."""

    arms: list[str]
    """The arms that are asked about, in order."""
    identity: dict[str, Any]
    """Everything in the partition and the settings that decides which contexts are asked about, and how."""
    ask: Callable[[str], Asked]
    """Returns the contexts that are asked about for the latents of a block."""


@dataclass(frozen=True)
class Scorer:
    """One scorer. Its stage is `<name>_scores`, its table of settings `[<name>]` (a `ScorerSettings`)."""

    name: Task
    metric: str
    """The metric of `score`: `balanced_accuracy` (at a threshold), `auroc` (needs none) or `accuracy` (of choices)."""
    splits: tuple[str, ...]
    """Splits that are asked about. A threshold is chosen if `select` is among them; only `test` is scored."""
    plan: Callable[[StageRun[ScoreNeeds], Corpus, tuple[str, ...]], Plan]
    """Prepares the scorer for a partition, with its corpus and `splits`."""
    judges: Callable[[StageRun[ScoreNeeds], Any], list[Judge]]
    """Makes the judges that the scorer's settings name, for a partition."""
    identities: Callable[[JudgeNeeds, Any], dict[str, dict[str, Any]]]
    """Returns everything that decides the answers of each of these judges, by name. Loads no model."""

    @property
    def decides(self) -> bool:
        """Whether judgements are yes or no, by a threshold if the judge gives evidence alone."""
        return "select" in self.splits
