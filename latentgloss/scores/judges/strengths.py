"""Answers of judges that predict how strongly the latent is active on each token.

What belongs here: what such judges share. Fuzzing: evidence is g = mean of F(f_t) over the marked tokens - mean of
F(f_t) over the others, without masked tokens. f_t is the strength that the judge predicts for token t, and F(x) is the
share of tokens of `Question.reference` with f <= x. The reference is given, as explain contexts of the latent that are
the same in all its questions. It is not taken from the contexts in question because an answer must not depend on what
else is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latentgloss.protocols import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float, Float32, Float64, Int64, UInt32


def answers_about_marks(
    questions: list[Question],
    strength: Callable[[UInt32[np.ndarray, "contexts length"]], Float[np.ndarray, "contexts length"]],
) -> Iterator[Answer]:
    """Answers to fuzzing questions about one latent; `strength` predicts f_t for windows of tokens."""
    distinct, rows_of = distinct_contexts(questions)
    reference = questions[0].reference
    if reference is None or not reference.size:
        yield from (unsupported(question, "no explain contexts to compare with") for question in questions)
        return
    predicted = strength(np.concatenate([distinct, reference]))
    ascending = np.sort(predicted[len(distinct) :], axis=None)
    rank = np.searchsorted(ascending, predicted[: len(distinct)], side="right") / ascending.size
    for question, rows in zip(questions, rows_of, strict=True):
        yield Answer(_contrast(question, rank[rows]), None, None, None)


def distinct_contexts(
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


def unsupported(question: Question, why: str) -> Answer:
    """An answer without evidence for any context."""
    n = len(question.tokens)
    return Answer(np.full(n, np.nan, np.float32), None, None, None, ["unsupported"] * n, [why] * n)
