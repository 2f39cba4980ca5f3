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
from latentgloss.explanations.explainers.programs import load_program
from latentgloss.protocols import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Float32, Float64, Int64, UInt32

    from latentgloss.models.vocabulary import Vocabulary


class ExecutedJudge:
    name = "executed"
    embedder = ""
    decides = False
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
        together, of = _once(questions)
        if questions[0].task != "fuzzing":
            evidence = predictor.strength(together).max(axis=1)
            yield from (Answer(evidence[rows], None, None, None) for rows in of)
            return
        reference = questions[0].reference
        if reference is None or not reference.size:
            yield from (_unsupported(question, "no explain contexts to compare with") for question in questions)
            return
        strength = predictor.strength(np.concatenate([together, reference]))
        ascending = np.sort(strength[len(together) :], axis=None)
        rank = np.searchsorted(ascending, strength[: len(together)], side="right") / ascending.size
        for question, rows in zip(questions, of, strict=True):
            yield Answer(_contrast(question, rank[rows]), None, None, None)


def _once(questions: list[Question]) -> tuple[UInt32[np.ndarray, "contexts length"], list[Int64[np.ndarray, " rows"]]]:
    """Tokens of every context of the questions, those that several of them hold once; and per question its rows."""
    tokens = np.concatenate([question.tokens for question in questions])
    numbers = [question.contexts for question in questions if question.contexts is not None]
    first = of = np.arange(len(tokens))
    if len(numbers) == len(questions):
        _, first, of = np.unique(np.concatenate(numbers), return_index=True, return_inverse=True)
    return tokens[first], np.split(of, np.cumsum([len(question.tokens) for question in questions])[:-1])


def _contrast(question: Question, rank: Float64[np.ndarray, "contexts length"]) -> Float32[np.ndarray, " contexts"]:
    """g per context; NaN where nothing is marked or everything is."""
    assert question.marks is not None
    marked = question.marks
    others = ~marked if question.masked is None else ~marked & ~question.masked
    with np.errstate(invalid="ignore"):
        inside, outside = (np.where(of, rank, 0).sum(axis=1) / of.sum(axis=1) for of in (marked, others))
    contrast: Float32[np.ndarray, " contexts"] = (inside - outside).astype(np.float32)
    return contrast


def _unsupported(question: Question, why: str) -> Answer:
    n = len(question.tokens)
    return Answer(np.full(n, np.nan, np.float32), None, None, None, ["unsupported"] * n, [why] * n)
