"""The judge that runs an explanation instead of reading it.

It sees token ids and exact rules, so its scores say what the *rules* are worth and stand apart from those of a
judge that reads the sentence (docs/methods.md, the pattern explainer as a judge).

Detection: evidence is the strongest token of the window, g = max_t f_t.

Fuzzing: g = mean of F(f) over the marked tokens - mean of F(f) over the others, masked ones left out, with F the share
of the tokens of `Question.reference` that are no stronger. The reference is given (explain contexts of the latent, the
same in all its questions) and not taken from the contexts asked about: an answer must not depend on what else is asked.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.explainers.programs import load_program
from latentgloss.protocols import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Float32

    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.protocols import Predictor


class ExecutedJudge:
    name = "executed"
    embedder = ""
    version = "1"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def identity(cls) -> dict[str, Any]:
        return {"judge": cls.name, "version": cls.version}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        for (_, program), together in groupby(questions, key=lambda q: (q.latent, q.program)):
            yield from self._answers(program, list(together))

    def _answers(self, program: str | None, questions: list[Question]) -> Iterator[Answer]:
        """Of questions that share latent and program."""
        try:
            if program is None:
                raise ExplainerError("the explanation has no executable form")
            predictor = load_program(program, self.vocabulary)
        except ExplainerError as e:
            yield from (_unsupported(question, str(e)) for question in questions)
            return
        found = _strengths(predictor, questions)
        if questions[0].task != "fuzzing":
            yield from (Answer(strength.max(axis=1), None, None, None) for strength in found)
            return
        reference = questions[0].reference
        if reference is None or not reference.size:
            yield from (_unsupported(question, "no explain contexts to compare with") for question in questions)
            return
        ascending = np.sort(predictor.strength(reference), axis=None)
        for question, strength in zip(questions, found, strict=True):
            yield Answer(_contrast(question, strength, ascending), None, None, None)


def _strengths(predictor: Predictor, questions: list[Question]) -> list[Float32[np.ndarray, "contexts length"]]:
    """Strength of every token of each question. A context that several questions hold is executed once."""
    if any(question.contexts is None for question in questions):
        return [predictor.strength(question.tokens) for question in questions]
    contexts = np.concatenate([question.contexts for question in questions])
    _, first, of = np.unique(contexts, return_index=True, return_inverse=True)
    strength = predictor.strength(np.concatenate([question.tokens for question in questions])[first])
    ends = np.cumsum([len(question.tokens) for question in questions])
    return [strength[part] for part in np.split(of, ends[:-1])]


def _contrast(
    question: Question, strength: Float32[np.ndarray, "contexts length"], ascending: Float32[np.ndarray, " tokens"]
) -> Float32[np.ndarray, " contexts"]:
    """g per context; NaN where nothing is marked or everything is."""
    assert question.marks is not None
    marked = question.marks
    others = ~marked if question.masked is None else ~marked & ~question.masked
    rank = np.searchsorted(ascending, strength, side="right") / len(ascending)
    with np.errstate(invalid="ignore"):
        inside, outside = ((rank * of).sum(axis=1) / of.sum(axis=1) for of in (marked, others))
    contrast: Float32[np.ndarray, " contexts"] = (inside - outside).astype(np.float32)
    return contrast


def _unsupported(question: Question, why: str) -> Answer:
    n = len(question.tokens)
    return Answer(np.full(n, np.nan, np.float32), None, None, None, ["unsupported"] * n, [why] * n)
