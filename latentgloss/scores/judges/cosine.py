"""The embedding judge: how similar an explanation is to a context (docs/methods.md, Embedding score).

The explanation is embedded as a query, with the embedder's own prefix if it has one. Contexts are embedded as
documents, raw and without marks. Evidence is the cosine of the two vectors. The judge decides nothing, so the metric is
AUROC. Vectors come from `protocols.Vectors`, which stores them; nothing here loads a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ScorerError
from latentgloss.protocols import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.corpus.reader import Corpus
    from latentgloss.embeddings.vectors import Progress
    from latentgloss.protocols import Embedder, Question, Vectors
    from latentgloss.scores.scorers.base import ScoreNeeds


class CosineJudge:
    """Evidence = ⟨query(explanation), document(context)⟩, both of unit norm."""

    name = "cosine"
    version = "1"
    decides = False

    def __init__(self, embedder: Embedder, explanations: Vectors, contexts: Vectors) -> None:
        """`explanations`: vectors of texts, as queries. `contexts`: vectors of contexts by number, as documents."""
        self._embedder, self._explanations, self._contexts = embedder, explanations, contexts

    @property
    def embedder(self) -> str:
        """Name of the embedder; part of the key in score tables."""
        return self._embedder.name

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers."""
        return {"judge": self.name, "version": self.version, "embedder": self._embedder.identity()}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order.

        All questions are read first, so that each distinct context and explanation is embedded and looked up once.
        Raises ScorerError for a question without the numbers of its contexts.
        """
        asked = list(questions)
        if not asked:
            return
        numbers = [_contexts(question) for question in asked]
        distinct, place = np.unique(np.concatenate(numbers), return_inverse=True)
        documents = self._contexts.get(distinct)
        texts = list(dict.fromkeys(question.explanation for question in asked))
        queries = dict(zip(texts, self._explanations.get(texts), strict=True))
        ends = np.cumsum([len(n) for n in numbers])
        for question, chosen in zip(asked, np.split(place, ends[:-1]), strict=True):
            # Row by row in float64, because the rounding of a matrix product depends on the other rows.
            evidence = (documents[chosen].astype(np.float64) * queries[question.explanation]).sum(axis=1)
            yield Answer(evidence.astype(np.float32), None, None, None)

    def embed_ahead(self, texts: Iterable[str], contexts: np.ndarray) -> None:
        """Has the vectors of explanations and contexts made and stored before they are asked about."""
        self._explanations.get(list(dict.fromkeys(texts)))
        self._contexts.get(np.unique(contexts))


def cosine_judge(
    needs: ScoreNeeds, model: str, corpus: Corpus, embedder: str, progress: Progress | None = None
) -> CosineJudge:
    """The cosine judge for the contexts of a corpus, with vectors from the store.

    Raises InputError for an unknown embedder.
    """
    queries = needs.text_vectors(embedder, "query", progress)
    documents = needs.context_vectors(model, corpus, embedder, progress)
    return CosineJudge(needs.embedder(embedder), queries, documents)


def _contexts(question: Question) -> np.ndarray:
    """Numbers of the contexts of a question."""
    if question.contexts is None:
        raise ScorerError(
            f"a question about latent {question.latent} does not say which contexts it is about",
            expected="numbers of contexts in `Question.contexts`",
            todo="this is a defect in the stage that asks; please report it",
        )
    return question.contexts
