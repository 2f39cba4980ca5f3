"""The judge that runs an explanation instead of reading it.

It sees token ids and exact rules, so its scores say what the *rules* are worth and stand apart from those of a
judge that reads the sentence (docs/methods.md, the pattern explainer as a judge).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.explainers.programs import load_program
from latentgloss.protocols import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.protocols import Predictor


class ExecutedJudge:
    """Detection: evidence is the strongest token of the window, g = max_t f_t."""

    name = "executed"
    version = "1"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def identity(cls) -> dict[str, Any]:
        return {"judge": cls.name, "version": cls.version}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        loaded: tuple[str, Predictor] | None = None  # questions of one latent follow each other
        for question in questions:
            n = len(question.tokens)
            if question.program is None:
                yield _unsupported(n, "the explanation has no executable form")
                continue
            if loaded is None or loaded[0] != question.program:
                try:
                    loaded = question.program, load_program(question.program, self.vocabulary)
                except ExplainerError as e:
                    yield _unsupported(n, str(e))
                    continue
            strength = loaded[1].strength(question.tokens)
            yield Answer(strength.max(axis=1).astype(np.float32), None, None, None)


def _unsupported(n: int, why: str) -> Answer:
    return Answer(np.full(n, np.nan, np.float32), None, None, None, ["unsupported"] * n, [why] * n)
