"""Judges of known skill, and `installed`, which makes planted judges and explainers known to the stages by name.

What belongs here: judges that look up what the *text* of an explanation means (`meaning.read`), so that a null or wrong
explanation is judged by what it says; and judges that know nothing.
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
"""Evidence from which a judge that decides by itself says yes, by task."""

Documents = Callable[[UInt32[np.ndarray, " contexts"]], UInt32[np.ndarray, " contexts"]]
"""Returns the document of each context."""


class _Judge:
    name = ""
    embedder = ""
    decides = False
    version = "1"

    def __init__(self, vocabulary: Vocabulary) -> None:
        """`vocabulary` is not used, because planted texts consist of planted words."""

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Everything that decides its answers."""
        return {"judge": cls.name, "version": cls.version}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order."""
        return map(self.answer, questions)

    def answer(self, question: Question) -> Answer:
        """The answer to one question."""
        raise NotImplementedError


class Perfect(_Judge):
    """Knows what the text means and nothing else. The scorer chooses the threshold."""

    name = "perfect"

    def answer(self, question: Question) -> Answer:
        """The evidence for each context; `unsupported` for a text that is not planted."""
        label = read(question.explanation)
        if label is None:
            n = len(question.tokens)
            return Answer(np.full(n, np.nan, np.float32), None, None, None, ["unsupported"] * n, ["unknown text"] * n)
        return Answer(evidence(label, question), None, None, None)


class Always(_Judge):
    """Gives every context the same answer."""

    said = True

    def answer(self, question: Question) -> Answer:
        """`said` for every context."""
        said = np.full(len(question.tokens), self.said)
        return Answer(said.astype(np.float32), said, None, None)


class AlwaysYes(Always):
    """Says yes to every context."""

    name = "yes"


class AlwaysNo(Always):
    """Says no to every context."""

    name, said = "no", False


class Coin(_Judge):
    """Tosses a coin for every context and every set of marks on it."""

    name = "coin"

    def answer(self, question: Question) -> Answer:
        """A uniform draw as evidence; yes from one half."""
        draw = uniform(question, salt=0xC014)
        return Answer(draw.astype(np.float32), draw >= 0.5, None, None)


class Finder(_Judge):
    """A judge of intruder detection: names one context of each trial."""

    decides = True

    def answer(self, question: Question) -> Answer:
        """The answer that names the context at `place`."""
        return named(self.place(question), len(question.tokens))

    def place(self, question: Question) -> int:
        """Place of the named context in the trial, from 0."""
        raise NotImplementedError


class Discerning(Finder):
    """Knows what the latent fires on, and names the context whose marks fit that least."""

    name = "perfect"

    def place(self, question: Question) -> int:
        """Place of the context with the least evidence under the true label."""
        (rule,) = (rule for rule in rules() if rule.latent == question.latent)
        return int(evidence(rule.true, question).argmin())


class First(Finder):
    """Always names the first context."""

    name = "first"

    def place(self, question: Question) -> int:
        """Always 0."""
        return 0


class Tossing(Finder):
    """Names a context at random."""

    name = "coin"

    def place(self, question: Question) -> int:
        """A uniformly drawn place."""
        return int(uniform(question, salt=0xC014).argmax())


def uniform(question: Question, salt: int) -> Float64[np.ndarray, " contexts"]:
    """A number in [0, 1) per context, drawn from task, explanation, latent, tokens and marks by a hash.

    It does not depend on the other contexts of the question.
    """
    key = int(text_sha256(question.task + question.explanation)[:12], 16)
    marks = np.zeros((len(question.tokens), 1), bool) if question.marks is None else question.marks
    packed = np.packbits(marks, axis=1).astype(np.uint64)
    content = counter_hash(salt, *packed.T, *question.tokens.T.astype(np.uint64))
    return counter_hash(key, question.latent, content) / np.float64(2**64)


def of_rates(
    sensitivity: float, specificity: float, icc: float = 0.0, document: Documents | None = None
) -> type[_Judge]:
    """A judge with known error rates.

    It says yes to contexts that the text is true of at rate `sensitivity`, and no to the others at rate `specificity`.
    `icc`: correlation of its errors within a document; needs `document`, which returns the document of each context. An
    error is drawn for the whole document with probability √icc, else for the context alone.
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
                documents = document(question.contexts)
                key = int(text_sha256(question.explanation)[:12], 16)
                shared = counter_hash(key, question.latent, documents, meant.astype(np.uint64)) / np.float64(2**64)
                draw = np.where(uniform(question, salt=2) < np.sqrt(icc), shared, draw)
            said = np.where(meant, draw < sensitivity, draw >= specificity)
            return Answer(said.astype(np.float32), said, None, None)

    return OfRates


def failing(base: type[_Judge], on_yes: float, on_no: float) -> type[_Judge]:
    """A judge like `base` that leaves some contexts unanswered.

    `on_yes`, `on_no`: the unanswered share of the contexts that the text is true of, and of the others. Failures thus
    depend on the truth, like refusals and unparsable replies of language models.
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
    """A judge like `base` that sees every mark one token late."""

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
"""Judges that know nothing."""
FINDERS: tuple[type[Finder], ...] = (Discerning, First, Tossing)
"""Judges of intruder detection."""


@contextmanager
def installed(*judges: type[_Judge], explainers: dict[str, type[Explainer]] | None = None) -> Iterator[None]:
    """Inside the block the stages know planted explainers and judges by name.

    These are `PLANTED` and `explainers`; the perfect judge, `IGNORANT` and `judges`; and `FINDERS`.
    """
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
