"""The judge that executes an explanation instead of reading it.

It sees token ids and exact rules. Its scores tell how good the *rules* are, and are kept apart from those of a judge
that reads the sentence (docs/methods.md, Explainers that need no language model). f_t is the strength that the program
predicts for token t.

Detection: evidence is g = max_t f_t, the strongest token of the window.

Fuzzing: evidence is the contrast of `strengths.py` between marked and other tokens.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.programs import load_program
from latentgloss.protocols import Answer, Question
from latentgloss.scores.judges.strengths import answers_about_marks, distinct_contexts, unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
            yield from (unsupported(question, str(e)) for question in questions)
            return
        if questions[0].task == "fuzzing":
            yield from answers_about_marks(questions, predictor.strength)
            return
        distinct, rows_of = distinct_contexts(questions)
        evidence = predictor.strength(distinct).max(axis=1)
        yield from (Answer(evidence[rows], None, None, None) for rows in rows_of)
