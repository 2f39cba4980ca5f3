"""Kinds: what sort of latent it is by its evidence alone, without a model.

What belongs here: the numbers that decide, and the rule. A kind says how a latent is best described (one word, a class
of tokens, what stands before, the topic), so it decides the form of the label; people filter latents by it. Nothing is
read or written. Thresholds were set on the demo's SAEs (docs/methods.md, Labels).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentgloss.explanations.labels.units import LINE, NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool

    from latentgloss.explanations.labels.firing import Firing

KINDS = ("single token", "token class", "format", "prefix", "phrase", "position", "words", "topic", "unclear")

CLASSES: dict[str, Callable[[str], bool]] = {
    "numbers": lambda x: x == NUMBER,
    "line breaks": lambda x: x == LINE,
    "quotation marks": lambda x: x in "\"'`“”‘’«»",
    "opening brackets": lambda x: x in "([{<",
    "closing brackets": lambda x: x in ")]}>",
    "ends of sentences": lambda x: x in ".!?…",
    "commas and colons": lambda x: x in ",;:",
    "punctuation": lambda x: len(x) == 1 and not x.isalnum() and x not in (NUMBER, LINE),
}
"""Classes of units by what a label calls them."""

LETTERS = 4
"""Letters that words must share to be a prefix."""


@dataclass(frozen=True)
class Evidence:
    """The numbers that decide a kind. Masses are shares of the activation mass."""

    family: int
    """The stem with most mass."""
    family_is_class: bool
    """Whether that is all numbers or all line breaks, which are one type here."""
    family_mass: float
    family_rate: float
    """Share of its units on which the latent fires."""
    name: str
    """The class of `CLASSES` with most mass."""
    class_mass: float
    prefix: str
    prefix_mass: float
    prefix_rate: float
    prefix_stems: int
    """Different words with that beginning."""
    after: int
    """The type of unit that most tells of the ones before it."""
    after_mass: float
    after_ratio: float
    """Its mass over its share of all units of activating windows."""
    first: float
    expected_rate: float
    """Mean firing rate of the types on which the latent fires, by mass."""
    topic: float
    """AUROC of activating against other windows by their words, from one half of the examples to the other."""


def evidence_of(firing: Firing) -> Evidence:
    """The numbers that decide the kind of a latent."""
    mass = firing.mass / max(firing.mass.sum(), 1e-12)
    families = np.bincount(firing.stems, mass)
    family = int(families.argmax())
    classes = {name: float(mass[class_members(firing, name)].sum()) for name in CLASSES}
    name = max(classes, key=lambda c: classes[c])
    prefix, prefix_mass = _prefix(firing, mass)
    begins = np.array([bool(prefix) and x.startswith(prefix) for x in firing.types])
    ratio = firing.before / (firing.before_all + 1e-4)
    telling = firing.before * np.log((firing.before + 1e-3) / (firing.before_all + 1e-3))
    after = int(telling.argmax())
    return Evidence(
        family,
        firing.types[int(np.flatnonzero(firing.stems == family)[0])] in (NUMBER, LINE),
        float(families[family]),
        firing.together_rate(firing.stems == family),
        name,
        classes[name],
        prefix,
        prefix_mass,
        firing.together_rate(begins),
        len(set(firing.stems[begins & (mass > 0)].tolist())),
        after,
        float(firing.before[after]),
        float(ratio[after]),
        firing.first,
        float((mass * np.minimum(firing.rate(), 1)).sum()),
        _topic(firing),
    )


def kind_of(found: Evidence, coverage: float) -> str:
    """The first kind of `KINDS` that fits. `coverage`: share of the mass on what the label names."""
    if found.family_mass >= 0.5 and found.family_rate >= 0.3 and not found.family_is_class:
        return "single token"
    if found.class_mass >= 0.5:
        return "format" if found.name == "line breaks" else "token class"
    if found.prefix_mass >= 0.4 and found.prefix_stems >= 2 and found.prefix_rate >= 0.5:
        return "prefix"
    if found.after_mass >= 0.5 and found.after_ratio >= 4:
        return "phrase"
    if found.first >= 0.5:
        return "position"
    if coverage >= 0.35 and found.expected_rate >= 0.25:
        return "words"
    return "topic" if found.topic >= 0.65 else "unclear"


def class_members(firing: Firing, name: str) -> Bool[np.ndarray, " types"]:
    """Which types belong to a class of `CLASSES`."""
    return np.array([CLASSES[name](x) for x in firing.types], dtype=np.bool_)


def _prefix(firing: Firing, mass: np.ndarray) -> tuple[str, float]:
    """The longest beginning of the words with most mass that share `LETTERS` letters, and their mass."""
    shared: dict[str, float] = defaultdict(float)
    words: dict[str, list[str]] = defaultdict(list)
    for j in np.flatnonzero((mass > 0) & firing.is_word):
        word = firing.types[j]
        if len(word) >= LETTERS:
            shared[word[:LETTERS]] += float(mass[j])
            words[word[:LETTERS]].append(word)
    best = max(shared, key=lambda p: (shared[p], p), default="")
    if not best:
        return "", 0.0
    first, last = min(words[best]), max(words[best])
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:same], float(shared[best])


def _topic(firing: Firing) -> float:
    """AUROC of activating windows by their words: weights from one half of the examples, tried on the other."""
    from scipy.stats import rankdata

    truth = np.arange(len(firing.present)) < firing.n_activating
    half = np.arange(len(truth)) % 2 == 0
    found: list[float] = []
    for learn in (half, ~half):
        a, b = firing.present[learn & truth], firing.present[learn & ~truth]
        tried = firing.present[~learn]
        right = truth[~learn]
        if min(len(a), len(b), right.sum(), (~right).sum()) < 5:
            continue
        score = tried[:, firing.is_word] @ log_odds(a, b)[firing.is_word]
        rank = rankdata(score)
        n = int(right.sum())
        found.append(float((rank[right].sum() - n * (n + 1) / 2) / (n * (len(right) - n))))
    return float(np.mean(found)) if found else 0.5


def log_odds(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per type, how much more often windows of `a` than of `b` have it: the log odds ratio over its standard error."""
    x, y = a.sum(axis=0), b.sum(axis=0)
    odds = np.log((x + 0.5) / (len(a) - x + 0.5)) - np.log((y + 0.5) / (len(b) - y + 0.5))
    error = np.sqrt(1 / (x + 0.5) + 1 / (len(a) - x + 0.5) + 1 / (y + 0.5) + 1 / (len(b) - y + 0.5))
    found: np.ndarray = odds / error
    return found
