"""Judges of known skill, and the planted explainers and judges made known to the stages (`installed`).

What belongs here: judges that answer from the *text* of an explanation by looking up what it means (`meaning.read`), so
that a null or a wrong text is judged by what it says; and judges that know nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, UInt32

from latentgloss.explanations.explainers import EXPLAINERS
from latentgloss.explanations.explainers.base import Explainer
from latentgloss.planted.explainers import PLANTED
from latentgloss.planted.meaning import evidence, read
from latentgloss.planted.rules import rules
from latentgloss.protocols import Answer, Question
from latentgloss.scores.judges.intruder import named
from latentgloss.scores.judges.opening import JUDGES, JUDGES_OF_TRIALS
from latentgloss.statistics.counter_rng import counter_hash
from latentgloss.store.digests import canonical, text_sha256

if TYPE_CHECKING:
    from latentgloss.models.vocabulary import Vocabulary


SAYS_YES = {"detection": 0.75, "fuzzing": 0.3}
"""Evidence from which the meaning of a text says yes, where a judge decides by itself."""

Documents = Callable[[UInt32[np.ndarray, " contexts"]], UInt32[np.ndarray, " contexts"]]


class _Judge:
    name = ""
    embedder = ""
    decides = False
    version = "1"

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Planted texts have planted words: nothing of the vocabulary is needed."""

    @classmethod
    def identity(cls) -> dict[str, Any]:
        return {"judge": cls.name, "version": cls.version}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        return map(self.answer, questions)

    def answer(self, question: Question) -> Answer:
        raise NotImplementedError


class Perfect(_Judge):
    """Knows what the text means, and nothing else. The scorer chooses the threshold."""

    name = "perfect"

    def answer(self, question: Question) -> Answer:
        label = read(question.explanation)
        if label is None:
            n = len(question.tokens)
            return Answer(np.full(n, np.nan, np.float32), None, None, None, ["unsupported"] * n, ["unknown text"] * n)
        return Answer(evidence(label, question), None, None, None)


class Always(_Judge):
    said = True

    def answer(self, question: Question) -> Answer:
        said = np.full(len(question.tokens), self.said)
        return Answer(said.astype(np.float32), said, None, None)


class AlwaysYes(Always):
    name = "yes"


class AlwaysNo(Always):
    name, said = "no", False


class Coin(_Judge):
    """Tosses a coin for every context, and for every marking of it."""

    name = "coin"

    def answer(self, question: Question) -> Answer:
        draw = uniform(question, salt=0xC014)
        return Answer(draw.astype(np.float32), draw >= 0.5, None, None)


class Finder(_Judge):
    """Names one window of a trial of intruder detection."""

    decides = True

    def answer(self, question: Question) -> Answer:
        return named(self.place(question), len(question.tokens))

    def place(self, question: Question) -> int:
        raise NotImplementedError


class Discerning(Finder):
    """Knows what the latent fires on, and names the window whose marks fit that least."""

    name = "perfect"

    def place(self, question: Question) -> int:
        (rule,) = (rule for rule in rules() if rule.latent == question.latent)
        return int(evidence(rule.true, question).argmin())


class First(Finder):
    """Always names the first window."""

    name = "first"

    def place(self, question: Question) -> int:
        return 0


class Tossing(Finder):
    """Names any window."""

    name = "coin"

    def place(self, question: Question) -> int:
        return int(uniform(question, salt=0xC014).argmax())


def uniform(question: Question, salt: int) -> Float64[np.ndarray, " contexts"]:
    """A number in [0, 1) per context and what is asked of it: the same whatever else is asked."""
    key = int(text_sha256(question.task + question.explanation)[:12], 16)
    marks = np.zeros((len(question.tokens), 1), bool) if question.marks is None else question.marks
    packed = np.packbits(marks, axis=1).astype(np.uint64)
    asked = counter_hash(salt, *packed.T, *question.tokens.T.astype(np.uint64))
    return counter_hash(key, question.latent, asked) / np.float64(2**64)


def of_rates(
    sensitivity: float, specificity: float, icc: float = 0.0, document: Documents | None = None
) -> type[_Judge]:
    """A judge that errs: yes to what the text is true of at rate `sensitivity`, no to the rest at `specificity`.

    `icc`: correlation of its errors within a document, for which it must be told the `document` of each context. An
    error is drawn for the document with probability √icc, else for the context alone.
    """

    class OfRates(_Judge):
        name = f"rates-{sensitivity:g}-{specificity:g}" + (f"-{icc:g}" if icc else "")

        def answer(self, question: Question) -> Answer:
            label = read(question.explanation)
            assert label is not None, question.explanation
            meant = evidence(label, question) >= SAYS_YES[question.task]
            draw = uniform(question, salt=1)
            if icc:
                assert document is not None and question.contexts is not None
                of = document(question.contexts)
                key = int(text_sha256(question.explanation)[:12], 16)
                together = counter_hash(key, question.latent, of, meant.astype(np.uint64)) / np.float64(2**64)
                draw = np.where(uniform(question, salt=2) < np.sqrt(icc), together, draw)
            said = np.where(meant, draw < sensitivity, draw >= specificity)
            return Answer(said.astype(np.float32), said, None, None)

    return OfRates


def failing(base: type[_Judge], on_yes: float, on_no: float) -> type[_Judge]:
    """A judge that gives no answer to a share of what it would say yes to, and to another of what it would not.

    Failures thus depend on the truth, as refusals and broken replies of language models do.
    """

    class Failing(base):  # type: ignore[misc, valid-type]
        name = f"failing-{on_yes:g}-{on_no:g}-{base.name}"

        def answer(self, question: Question) -> Answer:
            given = super().answer(question)
            label = read(question.explanation)
            assert label is not None, question.explanation
            meant = evidence(label, question) >= SAYS_YES[question.task]
            fails = uniform(question, salt=3) < np.where(meant, on_yes, on_no)
            status = np.where(fails, "refused", "ok").tolist()
            reason = np.where(fails, "it would not say", "").tolist()
            return Answer(given.evidence, given.prediction, None, None, status, reason)

    return Failing


def shifted(base: type[_Judge]) -> type[_Judge]:
    """A judge to whom every mark is shown one token late."""

    class Shifted(base):  # type: ignore[misc, valid-type]
        name = f"shifted-{base.name}"

        def answer(self, question: Question) -> Answer:
            marks = question.marks
            if marks is not None:
                late = np.roll(marks, 1, axis=1)
                marks = late if question.masked is None else late & ~question.masked
            answer: Answer = super().answer(replace(question, marks=marks))
            return answer

    return Shifted


IGNORANT: tuple[type[_Judge], ...] = (AlwaysYes, AlwaysNo, Coin)
FINDERS: tuple[type[Finder], ...] = (Discerning, First, Tossing)


@contextmanager
def installed(*judges: type[_Judge], explainers: dict[str, type[Explainer]] | None = None) -> Iterator[None]:
    """Makes planted explainers, the perfect judge, the ignorant ones, `judges` and judges of trials known by name."""
    everyone: tuple[type[_Judge], ...] = (Perfect, *IGNORANT, *judges)
    known = {judge.name: judge for judge in everyone}
    made = {**PLANTED, **(explainers or {})}
    taken = (known.keys() & JUDGES.keys()) | (made.keys() & EXPLAINERS.keys())
    assert not taken, f"already known: {canonical(sorted(taken))}"
    JUDGES.update(known)
    JUDGES_OF_TRIALS.update({finder.name: finder for finder in FINDERS})
    EXPLAINERS.update(made)
    try:
        yield
    finally:
        for name in known:
            del JUDGES[name]
        for finder in FINDERS:
            del JUDGES_OF_TRIALS[finder.name]
        for name in made:
            del EXPLAINERS[name]
