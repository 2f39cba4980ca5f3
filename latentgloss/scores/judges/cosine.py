"""The embedding judge: how near an explanation lies to a context (docs/methods.md, embedding).

The explanation is the query, with the embedder's own instruction if it has one; contexts are documents, raw and
unmarked. Evidence is the cosine of the two; there is no decision, so the metric is AUROC. Vectors are kept, and come
from outside: nothing here loads a model.
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
        """`explanations`: vectors of texts as queries; `contexts`: of contexts by number, as documents."""
        self._embedder, self._explanations, self._contexts = embedder, explanations, contexts

    @property
    def embedder(self) -> str:
        """Key in every score table."""
        return self._embedder.name

    def identity(self) -> dict[str, Any]:
        return {"judge": self.name, "version": self.version, "embedder": self._embedder.identity()}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Reads all questions first: each distinct context and explanation among them is embedded and read once."""
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
            # Row by row in float64: a product of matrices would round by a row's place among the others.
            evidence = (documents[chosen].astype(np.float64) * queries[question.explanation]).sum(axis=1)
            yield Answer(evidence.astype(np.float32), None, None, None)


def cosine_judge(
    needs: ScoreNeeds, model: str, corpus: Corpus, embedder: str, progress: Progress | None = None
) -> CosineJudge:
    """The judge over the contexts of a corpus (windows of `contexts.length`), with vectors kept in the store."""
    queries = needs.text_vectors(embedder, "query", progress)
    documents = needs.context_vectors(model, corpus, embedder, progress)
    return CosineJudge(needs.embedder(embedder), queries, documents)


def _contexts(question: Question) -> np.ndarray:
    if question.contexts is None:
        raise ScorerError(
            f"a question on latent {question.latent} does not say which contexts it is about",
            expected="`Question.contexts`",
            todo="this is a defect in the stage that asks; please report it",
        )
    return question.contexts
