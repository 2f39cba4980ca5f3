"""Judges of known skill, and explainers of known truth.

What belongs here: judges that answer from the *text* of an explanation, by looking up what it means (`rules.labels`),
so that a null or a wrong text is judged by what it says; judges that know nothing; and explainers that say of each
latent what its rule's labels say. `installed` makes the stages know them by name for as long as it lasts.

Evidence. Detection: the strongest token of the window, max_t f_t. Fuzzing: mean f over the marked tokens - mean f over
the others, masked tokens in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64, UInt32

from latentgloss.explanations.explainers import EXPLAINERS
from latentgloss.explanations.explainers.base import Evidence, Explained, Explainer, Tools
from latentgloss.planted.rules import ANYTHING, Label, Rule, Seen, ids, labels, rules, vocabulary
from latentgloss.protocols import Answer, Question
from latentgloss.schema import GRAM
from latentgloss.scores.judges.intruder import named
from latentgloss.scores.judges.opening import JUDGES, JUDGES_OF_TRIALS
from latentgloss.statistics.counter_rng import counter_hash
from latentgloss.store.digests import canonical, json_sha256, text_sha256

if TYPE_CHECKING:
    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.explanations.explainers.base import Need
    from latentgloss.models.vocabulary import Vocabulary


SHOWN = 40
"""Contexts that the memoriser is shown."""

PASSAGES = "Exactly these passages: "
"""How a memoriser's explanation begins."""

SAYS_YES = {"detection": 0.75, "fuzzing": 0.3}
"""Evidence from which the meaning of a text says yes, where a judge decides by itself."""

Documents = Callable[[UInt32[np.ndarray, " contexts"]], UInt32[np.ndarray, " contexts"]]


def read(text: str) -> Label | None:
    """What a text means; None if it is none of the planted ones."""
    if text.startswith(PASSAGES):
        return _passages(text)
    return labels().get(text)


def strength(label: Label, tokens: UInt32[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length"]:
    """f_t: how strongly a latent of which the label is true should fire, as far as the window tells.

    In units of the weakest activation that is meant; one half where it depends on what the window cuts off.
    """
    f: Float32[np.ndarray, "n length"] = label.means(Seen(tokens, cut=True)).astype(np.float32)
    return f


def evidence(label: Label, question: Question) -> Float32[np.ndarray, " contexts"]:
    f = strength(label, question.tokens)
    if question.marks is None:
        strongest: Float32[np.ndarray, " contexts"] = f.max(axis=1)
        return strongest
    marked = question.marks
    others = ~marked if question.masked is None else ~marked & ~question.masked
    inside, outside = ((f * of).sum(axis=1) / np.maximum(of.sum(axis=1), 1) for of in (marked, others))
    contrast: Float32[np.ndarray, " contexts"] = (inside - outside).astype(np.float32)
    return contrast


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


def explainer(name: str, label_of: Callable[[Rule], Label | None]) -> type[Explainer]:
    """One that says of each planted latent what `label_of` says of its rule; `failed` where that is nothing."""
    said = {rule.latent: label for rule in rules() if (label := label_of(rule)) is not None}

    class Scripted:
        computes = False
        asks = False
        needs: frozenset[Need] = frozenset()

        def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
            """Nothing is learnt."""

        @staticmethod
        def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
            return {"explainer": name, "texts": json_sha256([[i, label.text] for i, label in said.items()])}

        def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
            for each in evidence:
                if each.latent in said:
                    yield Explained(each.latent, "ok", text=said[each.latent].text)
                else:
                    yield Explained(each.latent, "failed", "there is no such label of this rule")

    return Scripted


class Memoriser:
    """Says nothing but which contexts it was shown."""

    computes = False
    asks = False
    needs: frozenset[Need] = frozenset()

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        """Nothing is learnt."""

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        return {"explainer": "memoriser", "shown": SHOWN}

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        words = np.array(vocabulary())
        for each in evidence:
            active = np.flatnonzero(each.windows.activations.any(axis=1))[:SHOWN]
            passages = [" ".join(words[row]) for row in each.windows.tokens[active]]
            shown = tuple(each.context_ids[i] for i in active)
            yield Explained(each.latent, "ok", text=PASSAGES + " | ".join(passages), context_ids=shown)


def _passages(text: str) -> Label:
    """True of what shares 13 tokens in a row with a passage, and of windows that share half of their bigrams."""
    numbers = ids()
    passages = [[numbers[w] for w in p.split()] for p in text.removeprefix(PASSAGES).split(" | ")]
    grams = {tuple(p[i : i + GRAM]) for p in passages for i in range(len(p) - GRAM + 1)}
    pairs = [set(pairwise(p)) for p in passages]

    def means(seen: Seen) -> Float32[np.ndarray, "n length"]:
        out = np.zeros(seen.tokens.shape, dtype=np.float32)
        for row, window in zip(out, seen.tokens.tolist(), strict=True):
            for i in range(len(window) - GRAM + 1):
                if tuple(window[i : i + GRAM]) in grams:
                    row[i : i + GRAM] = 1
            mine = set(pairwise(window))
            if any(2 * len(mine & theirs) >= len(mine) for theirs in pairs):
                row[:] = 1
        return out

    return Label(text, means)


PLANTED: dict[str, type[Explainer]] = {
    "truth": explainer("truth", lambda rule: rule.true),
    "general": explainer("general", lambda rule: rule.general),
    "specific": explainer("specific", lambda rule: rule.specific),
    "anything": explainer("anything", lambda rule: ANYTHING),
    "memoriser": Memoriser,
}
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
