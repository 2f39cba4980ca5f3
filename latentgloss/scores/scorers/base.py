"""What a scorer is: a row of a table. What differs between scorers is here; what they share is in `scores.py`.

What belongs here: `Scorer`, and `Asked`, the contexts a judge is asked about in the order it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import polars as pl

from latentgloss.protocols import Judge, Question

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, UInt32

    from latentgloss.corpus.reader import Corpus
    from latentgloss.embeddings.vectors import Progress
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Embedder, LanguageModel, Task, Vectors
    from latentgloss.store import Version


class JudgeNeeds(Protocol):
    """What judges are made of that is not in the store."""

    def vocabulary(self, model: str) -> Vocabulary: ...

    def language_model(self, name: str) -> LanguageModel: ...

    def embedder(self, name: str) -> Embedder: ...


class ScoreNeeds(JudgeNeeds, Protocol):
    """What stages of scores need that is not in the store."""

    def corpus(self, resolved: Version) -> Corpus: ...

    def text_vectors(
        self, embedder: str, role: Literal["query", "document"], progress: Progress | None = None
    ) -> Vectors: ...

    def context_vectors(
        self, model: str, corpus: Corpus, embedder: str, progress: Progress | None = None
    ) -> Vectors: ...


ORDER = ("latent", "arm", "split", "part", "place", "context", "stratum")
"""How asked rows are sorted. Rows alike in the first four make one question."""

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
"""Of asked rows. `arm` becomes the judgement's `negatives`; a row whose `status` is not `ok` is put to nobody."""

PRIOR = 40
"""Explain contexts per class that give the prior threshold where select has fewer than 20 per class."""


@dataclass(frozen=True)
class Asked:
    """What is to be judged of a block of latents; arrays are aligned with `rows`."""

    rows: pl.DataFrame
    tokens: UInt32[np.ndarray, "rows length"]
    marks: Bool[np.ndarray, "rows length"] | None = None
    masked: Bool[np.ndarray, "rows length"] | None = None
    references: dict[int, UInt32[np.ndarray, "contexts length"]] = field(default_factory=dict)
    """Per latent what a judge may compare with: windows of the explain split."""
    profile: str = "default"
    """Whose protocol this is: key in every table."""
    population: pl.DataFrame | None = None
    """latent, stratum, share (W_h on test), firing_rate; None where negatives stand for no population."""
    unfair: dict[str, list[str]] = field(default_factory=dict)
    """Per embedder the arms that are not put to it, since it chose their contexts itself."""

    def of(self, latents: pl.Series) -> Asked:
        """Those of some latents."""
        return self.where(pl.col("latent").is_in(latents.implode()))

    def where(self, rows: pl.Expr) -> Asked:
        """Some of the rows."""
        keep = self.rows.select(rows).to_series().to_numpy()
        marks, masked = (None if a is None else a[keep] for a in (self.marks, self.masked))
        return replace(self, rows=self.rows.filter(keep), tokens=self.tokens[keep], marks=marks, masked=masked)

    def questions(self, task: Task, texts: dict[int, tuple[str, str | None]]) -> Iterator[Question]:
        """One per latent, arm, split and part; `texts` has explanation and program by latent."""
        ok = np.flatnonzero((self.rows["status"] == "ok").to_numpy())
        group = self.rows[ok].select(pl.struct("latent", "arm", "split", "part").rle_id()).to_series().to_numpy()
        contexts = self.rows["context"].to_numpy()
        latents = self.rows["latent"].to_numpy()
        for at in np.split(ok, np.flatnonzero(np.diff(group)) + 1) if len(ok) else []:
            latent = int(latents[at[0]])
            text, program = texts[latent]
            yield Question(
                task,
                latent,
                text,
                program,
                self.tokens[at],
                None if self.marks is None else self.marks[at],
                contexts[at],
                None if self.masked is None else self.masked[at],
                self.references.get(latent),
            )


@dataclass(frozen=True)
class Plan:
    """A scorer made ready for one partition."""

    arms: list[str]
    identity: dict[str, Any]
    """What of the partition and the settings decides which contexts are asked about and how."""
    ask: Callable[[str], Asked]
    """Everything to be asked of the latents of a block, sorted by `ORDER`."""


@dataclass(frozen=True)
class Scorer:
    """One scorer. Its stage is `<name>_scores`, its table of settings `[<name>]` (a `ScorerSettings`)."""

    name: Task
    metric: str
    """What `score` is: `balanced_accuracy` at a threshold, `auroc`, which needs none, or `accuracy` of choices."""
    splits: tuple[str, ...]
    """What is asked about. A threshold is chosen if `select` is among them; only `test` is scored."""
    plan: Callable[[StageRun[ScoreNeeds], Corpus, tuple[str, ...]], Plan]
    judges: Callable[[StageRun[ScoreNeeds], Any], list[Judge]]
    """Makes the judges that the scorer's settings name, from whatever of the partition they need."""
    identities: Callable[[JudgeNeeds, Any], dict[str, dict[str, Any]]]
    """Per judge, everything that decides its answers."""

    @property
    def decides(self) -> bool:
        """Whether judgements are yes or no."""
        return "select" in self.splits
