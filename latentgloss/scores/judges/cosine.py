"""The embedding judge: how similar an explanation is to a context (docs/methods.md, Embedding score).

The explanation is embedded as a query, with the embedder's own prefix if it has one. Contexts are embedded as
documents, raw and without marks. Evidence is the cosine of the context with what of the explanation is left without
the mean of its explainer's explanations: all explanations of one form are alike as texts, and nearer to some contexts
than to others, whatever they say. The judge decides nothing, so the metric is AUROC. Vectors come from
`protocols.Vectors`, which stores them; nothing here loads a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ScorerError
from latentgloss.protocols import Answer
from latentgloss.scores.judges.strengths import unsupported
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from jaxtyping import Float32, Float64

    from latentgloss.corpus.reader import Corpus
    from latentgloss.embeddings.vectors import Progress
    from latentgloss.protocols import Embedder, Question, Vectors
    from latentgloss.scores.scorers.base import ScoreNeeds


CENTRE = 1024
"""Explanations of an explainer whose mean vector is taken away: the first, in the registry's order of latents."""
LEAST = 1e-6
"""A query that is nearer to the mean than this has no direction of its own."""
ALONE = "the explainer has no other explanation of another text, so nothing is left without their mean"


class CosineJudge:
    """Evidence = ⟨(q - μ) / ‖q - μ‖, d⟩ with q = query(explanation) and d = document(context), both of unit norm.

    μ is the mean of the queries of the explainer's first `CENTRE` explanations; 0 before the judge is made ready for an
    explainer. Nulls are centred with the explainer whose texts they are.
    """

    name = "cosine"
    version = "2"
    decides = False

    def __init__(
        self,
        embedder: Embedder,
        explanations: Vectors,
        contexts: Vectors,
        texts: Callable[[str], Sequence[str]] = lambda explainer: (),
        centre: Sequence[str] = (),
    ) -> None:
        """`explanations`: vectors of texts, as queries. `contexts`: vectors of contexts by number, as documents.

        `texts`: the first explanations of an explainer. `centre`: the texts whose mean query is taken away.
        """
        self._embedder, self._explanations, self._contexts = embedder, explanations, contexts
        self._texts, self._centre = texts, centre

    @property
    def embedder(self) -> str:
        """Name of the embedder; part of the key in score tables."""
        return self._embedder.name

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers."""
        centre = {"centre": json_sha256(list(self._centre))} if self._centre else {}
        return {"judge": self.name, "version": self.version, "embedder": self._embedder.identity(), **centre}

    def for_explainer(self, explainer: str) -> CosineJudge:
        """The judge with the centre of an explainer."""
        texts = self._texts(explainer)
        return CosineJudge(self._embedder, self._explanations, self._contexts, self._texts, texts)

    def facts(self) -> dict[str, Any]:
        """The explanations whose mean is taken away: their number, and the hash of their texts in order."""
        centre = {"explanations": len(self._centre), "sha256": json_sha256(list(self._centre))}
        return {f"{self.name}:{self.embedder}": centre}

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
        centred = centred_queries(self._explanations.get(texts), self._explanations.get(self._centre))
        queries = dict(zip(texts, centred, strict=True))
        ends = np.cumsum([len(n) for n in numbers])
        for question, chosen in zip(asked, np.split(place, ends[:-1]), strict=True):
            query = queries[question.explanation]
            if np.isnan(query).any():
                yield unsupported(question, ALONE)
            else:
                yield Answer(cosines(documents[chosen], query), None, None, None)

    def embed_ahead(self, texts: Iterable[str], contexts: np.ndarray) -> None:
        """Has the vectors of explanations and contexts made and stored before they are asked about."""
        self._explanations.get(list(dict.fromkeys(texts)))
        self._contexts.get(np.unique(contexts))


def centred_queries(
    queries: Float32[np.ndarray, "texts dimension"], centre: Float32[np.ndarray, "others dimension"]
) -> Float64[np.ndarray, "texts dimension"]:
    """(q - μ) / ‖q - μ‖ with μ the mean of `centre` (0 if that is empty); NaN where q is μ."""
    away = queries.astype(np.float64) - (centre.astype(np.float64).mean(axis=0) if len(centre) else 0)
    norm = np.linalg.norm(away, axis=1, keepdims=True)
    centred: Float64[np.ndarray, "texts dimension"] = away / np.where(norm > LEAST, norm, np.nan)
    return centred


def cosines(
    documents: Float32[np.ndarray, "contexts dimension"], query: Float64[np.ndarray, " dimension"]
) -> Float32[np.ndarray, " contexts"]:
    """Evidence: the product of each document with a query."""
    # Row by row in float64, because the rounding of a matrix product depends on the other rows.
    evidence: Float32[np.ndarray, " contexts"] = (documents * query).sum(axis=1).astype(np.float32)
    return evidence


def cosine_judge(
    needs: ScoreNeeds,
    model: str,
    corpus: Corpus,
    embedder: str,
    progress: Progress | None = None,
    texts: Callable[[str], Sequence[str]] = lambda explainer: (),
) -> CosineJudge:
    """The cosine judge for the contexts of a corpus, with vectors from the store.

    `texts`: the first explanations of an explainer, in turn. Raises InputError for an unknown embedder.
    """
    queries = needs.text_vectors(embedder, "query", progress)
    documents = needs.context_vectors(model, corpus, embedder, progress)
    return CosineJudge(needs.embedder(embedder), queries, documents, texts)


def _contexts(question: Question) -> np.ndarray:
    """Numbers of the contexts of a question."""
    if question.contexts is None:
        raise ScorerError(
            f"a question about latent {question.latent} does not say which contexts it is about",
            expected="numbers of contexts in `Question.contexts`",
            todo="this is a defect in the stage that asks; please report it",
        )
    return question.contexts
