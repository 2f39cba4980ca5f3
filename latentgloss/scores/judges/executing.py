"""The judge that executes an explanation instead of reading it.

It sees token ids and exact rules. Its scores tell how good the *rules* are, and are kept apart from those of a judge
that reads the sentence (docs/methods.md, Explainers that need no language model). f_t is the strength that the program
predicts for token t.

Detection: evidence is g = max_t f_t, the strongest token of the window.

Fuzzing: evidence is g = mean of F(f_t) over the marked tokens - mean of F(f_t) over the others, without masked tokens.
F(x) is the share of tokens of `Question.reference` with f <= x. The reference is given, as explain contexts of the
latent that are the same in all its questions. It is not taken from the contexts in question because an answer must not
depend on what else is asked.
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
    """Executes the program of an explanation. Explanations without a program are `unsupported`."""

    name = "executed"
    embedder = ""
    decides = False
    version = "1"

    def __init__(self, vocabulary: Vocabulary) -> None:
        """`vocabulary`: that of the subject model."""
        self.vocabulary = vocabulary

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Everything that decides its answers."""
        return {"judge": cls.name, "version": cls.version}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order. Consecutive questions about one latent are executed together."""
        for (_, program), together in groupby(questions, key=lambda q: (q.latent, q.program)):
            yield from self._answers(program, list(together))

    def _answers(self, program: str | None, questions: list[Question]) -> Iterator[Answer]:
        """Answers to questions that share latent and program."""
        try:
            if program is None:
                raise ExplainerError("the explanation has no executable form")
            predictor = load_program(program, self.vocabulary)
        except ExplainerError as e:
            yield from (_unsupported(question, str(e)) for question in questions)
            return
        distinct, rows_of = _distinct_contexts(questions)
        if questions[0].task != "fuzzing":
            evidence = predictor.strength(distinct).max(axis=1)
            yield from (Answer(evidence[rows], None, None, None) for rows in rows_of)
            return
        reference = questions[0].reference
        if reference is None or not reference.size:
            yield from (_unsupported(question, "no explain contexts to compare with") for question in questions)
            return
        strength = predictor.strength(np.concatenate([distinct, reference]))
        ascending = np.sort(strength[len(distinct) :], axis=None)
        rank = np.searchsorted(ascending, strength[: len(distinct)], side="right") / ascending.size
        for question, rows in zip(questions, rows_of, strict=True):
            yield Answer(_contrast(question, rank[rows]), None, None, None)


def _distinct_contexts(
    questions: list[Question],
) -> tuple[UInt32[np.ndarray, "contexts length"], list[Int64[np.ndarray, " rows"]]]:
    """Tokens of the contexts of the questions, each context once if it has a number; and the rows of each question."""
    tokens = np.concatenate([question.tokens for question in questions])
    numbers = [question.contexts for question in questions if question.contexts is not None]
    first = row = np.arange(len(tokens))
    if len(numbers) == len(questions):
        _, first, row = np.unique(np.concatenate(numbers), return_index=True, return_inverse=True)
    return tokens[first], np.split(row, np.cumsum([len(question.tokens) for question in questions])[:-1])


def _contrast(question: Question, rank: Float64[np.ndarray, "contexts length"]) -> Float32[np.ndarray, " contexts"]:
    """g of each context; NaN where no token is marked or all unmasked tokens are.

    `rank`: F(f_t) of each token.
    """
    assert question.marks is not None
    marked = question.marks
    others = ~marked if question.masked is None else ~marked & ~question.masked
    with np.errstate(invalid="ignore"):
        inside, outside = (np.where(some, rank, 0).sum(axis=1) / some.sum(axis=1) for some in (marked, others))
    contrast: Float32[np.ndarray, " contexts"] = (inside - outside).astype(np.float32)
    return contrast


def _unsupported(question: Question, why: str) -> Answer:
    """An answer without evidence for any context."""
    n = len(question.tokens)
    return Answer(np.full(n, np.nan, np.float32), None, None, None, ["unsupported"] * n, [why] * n)
