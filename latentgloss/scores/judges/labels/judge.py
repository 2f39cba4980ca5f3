"""The judge `embedder`: which windows, or which marked tokens, does a label speak of?

It reads nothing but the label, of at most 120 characters. λ_u = -ln(1 - p_u) = ln(1 + exp(log-odds of unit u)), with
the log-odds of `fitting.py`.

Detection: evidence is e = max_u λ_u + 0.1 Σ_u λ_u over the units of the window, the form that `pattern` has.

Fuzzing: the strength of a token is the λ of its unit, and evidence is the contrast of `strengths.py`.
"""

from __future__ import annotations

import threading
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.protocols import Answer, Question
from latentgloss.scores.judges.labels.fitting import Fit, features
from latentgloss.scores.judges.labels.reading import MOST, items_of
from latentgloss.scores.judges.strengths import answers_about_marks, distinct_contexts, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Float64, UInt32

    from latentgloss.protocols import Embedder
    from latentgloss.scores.judges.labels.lexicon import Lexicon
    from latentgloss.scores.judges.labels.reading import Item

SUPPORT = 0.1
"""Weight of the sum over all units."""
SHORT = 64
"""Bytes of a word that every embedder reads whole. Longer words are counted in the embedder's tokens."""
NOTHING = "the label names no word, number, line break or mark"


class LabelJudge:
    """Judges the label of an explanation by the words of a window and their vectors."""

    name = "embedder"
    version = "1"
    decides = False

    def __init__(
        self,
        embedder: Embedder,
        lexicon: Lexicon,
        fits: Callable[[str], tuple[str, Callable[[], Fit]]] | None = None,
        *,
        lock: threading.Lock | None = None,
    ) -> None:
        """`fits`: for the name of an explainer, the hash of what its coefficients are fitted to, and how to fit them.

        A judge that has not been made ready for an explainer uses the coefficients of the prior.
        """
        self._embedder, self.lexicon, self._fits = embedder, lexicon, fits
        self._lock = lock or threading.Lock()
        self._learnt = ""
        self._make_fit: Callable[[], Fit] = Fit
        self._fit: Fit | None = None

    @property
    def embedder(self) -> str:
        """Name of the embedder; part of the key in score tables."""
        return self._embedder.name

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers."""
        learnt = {"fitted_to": self._learnt} if self._learnt else {}
        return {"judge": self.name, "version": self.version, "embedder": self._embedder.identity(), **learnt}

    def for_explainer(self, explainer: str) -> LabelJudge:
        """The judge with the coefficients for one explainer, fitted when it first judges."""
        ready = LabelJudge(self._embedder, self.lexicon, self._fits, lock=self._lock)
        if self._fits is not None:
            ready._learnt, ready._make_fit = self._fits(explainer)
        return ready

    def facts(self) -> dict[str, Any]:
        """Its coefficients, and what they were fitted to."""
        return {f"{self.name}:{self.embedder}": self.fit.facts()}

    @property
    def fit(self) -> Fit:
        """Its coefficients."""
        if self._fit is None:
            self._fit = self._make_fit()
        return self._fit

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order. Consecutive questions about one latent are answered together."""
        for (_, label), together in groupby(questions, key=lambda q: (q.latent, q.label)):
            asked = list(together)
            with self._lock:  # the lexicon grows
                answers = self._answers(label, asked)
            yield from answers

    def read(self, label: str) -> list[Item]:
        """The items of a label, at most `MOST`."""
        return items_of(label, self.lexicon.frequent)[:MOST]

    def _answers(self, label: str, questions: list[Question]) -> list[Answer]:
        """Answers to questions that share latent and label."""
        items = items_of(label, self.lexicon.frequent)
        if not items:
            return [unsupported(question, NOTHING) for question in questions]
        unread = self._unread(items)
        items = items[:MOST]
        if questions[0].task == "fuzzing":
            found = list(answers_about_marks(questions, lambda tokens: self._strength(items, tokens)))
        else:
            distinct, rows_of = distinct_contexts(questions)
            evidence = self._evidence(items, distinct).astype(np.float32)
            found = [Answer(evidence[rows], None, None, None) for rows in rows_of]
        if unread:
            found = [_with_reason(answer, unread) for answer in found]
        return found

    def _unread(self, items: list[Item]) -> str:
        """What of a label is not read, as a reason that begins with `truncated`; empty if all of it is."""
        if len(items) > MOST:
            return f"truncated: only the first {MOST} items of the label are read"
        long = [name for item in items for name in item.names if len(name.encode()) > SHORT]
        cut = [n for n in self._embedder.n_tokens(long) if n > self._embedder.max_tokens] if long else []
        if cut:
            return f"truncated: the embedder reads {self._embedder.max_tokens} of the {max(cut)} tokens of a word"
        return ""

    def _rates(self, items: list[Item], types: np.ndarray, *, marks: bool = False) -> Float64[np.ndarray, " units"]:
        """λ of units, given the number of the type of each. `marks`: for fuzzing."""
        distinct, at = np.unique(types, return_inverse=True)
        logits = features(items, distinct, self.lexicon, marks=marks) @ np.array(self.fit.coefficients)
        rates: Float64[np.ndarray, " units"] = np.logaddexp(0, logits)[at]
        return rates

    def _evidence(
        self, items: list[Item], tokens: UInt32[np.ndarray, "windows length"]
    ) -> Float64[np.ndarray, " windows"]:
        """e of each window; 0 where there is no unit."""
        units = self.lexicon.units(tokens)
        rates = self._rates(items, units.types)
        strongest = np.zeros(len(tokens))
        np.maximum.at(strongest, units.window, rates)
        return strongest + SUPPORT * np.bincount(units.window, rates, len(tokens))

    def _strength(
        self, items: list[Item], tokens: UInt32[np.ndarray, "windows length"]
    ) -> Float64[np.ndarray, "windows length"]:
        """λ of the unit that each token stands for; 0 for tokens that stand for none."""
        units = self.lexicon.units(tokens)
        rates = np.append(self._rates(items, units.types, marks=True), 0.0)  # index -1 is that 0
        strength: Float64[np.ndarray, "windows length"] = rates[units.of_token]
        return strength


def _with_reason(answer: Answer, reason: str) -> Answer:
    """The answer with a reason in every row that has none."""
    n = len(answer.evidence)
    reasons = [given or reason for given in answer.reason or [""] * n]
    return Answer(answer.evidence, None, None, None, answer.status or ["ok"] * n, reasons)
