"""Wording: a label made of the types that it names and of the latent's kind.

    the word 'compile' (compiled, compiler); also 'build'        single token
    numbers; also 'version'                                      token class
    words that begin with 'comp' (compile, compiler)             prefix
    what follows 'import': 'os', 'sys'                           phrase
    words such as 'section', 'module', 'part'                    words
    text about sockets, hosts, ports; often 'bind', 'listen'     topic

What belongs here: the form of a label for each kind. A name that the latent fires on in less than `HEDGE` of its
occurrences comes after "at times", so that a reader knows how far to trust it. Judges of labels read this form back
(docs/methods.md, Labels). Nothing is read or written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentgloss.explanations.labels.choice import chosen_types
from latentgloss.explanations.labels.firing import firing_of
from latentgloss.explanations.labels.kinds import class_members, evidence_of, kind_of, log_odds
from latentgloss.explanations.labels.shortening import MOST

if TYPE_CHECKING:
    from jaxtyping import Bool

    from latentgloss.explanations.examples import Examples
    from latentgloss.explanations.labels.firing import Firing
    from latentgloss.explanations.labels.kinds import Evidence
    from latentgloss.explanations.labels.units import UnitReader

VERSION = 1
"""Raise it when the same examples can give another label, coverage or kind; part of the recipe."""
HEDGE = 0.3
"""A name on which the latent fires less often than this is hedged."""
WHOLE_CLASS = 0.6
"""A class is named as a whole if the latent fires on it at least this often as on its members that would be named."""
TOPIC_WORDS, LEAST_Z = 4, 3.0
"""Most words of a topic, and the least z-score of the log odds ratio of each."""
FORMS = 3
"""Most forms of a word in brackets."""

MARKS = {
    ",": "commas",
    ".": "full stops",
    ":": "colons",
    ";": "semicolons",
    "(": "opening parentheses",
    ")": "closing parentheses",
    "[": "opening square brackets",
    "]": "closing square brackets",
    "{": "opening braces",
    "}": "closing braces",
    "\n": "line breaks",
    "0": "numbers",
    '"': "double quotes",
    "'": "single quotes",
    "`": "backticks",
    "_": "underscores",
    "-": "hyphens",
    "=": "equals signs",
    "*": "asterisks",
    "|": "vertical bars",
    "/": "slashes",
    "\\": "backslashes",
    "+": "plus signs",
    "%": "percent signs",
    "&": "ampersands",
    "^": "carets",
    "~": "tildes",
}
"""What a label calls marks and classes with one member. Others stand in quotation marks."""

_COMMON = frozenset(
    """
    a an the of to in on at by for from with as and or but not no nor if is are was were be been being has have had
    do does did it its this that these those there which who what when where how than then so such can could may
    might must shall should will would you your we our they their he his she her i my into onto over under about
    after before between out up down off only also any all each other some more most just like even via per see use
    used using one two
    """.split()  # noqa: SIM905
)
"""English words that tell no topic. Words of other languages are told apart by `LEAST_Z` alone."""


class Label(NamedTuple):
    """A label with what it says about the latent."""

    text: str
    coverage: float
    kind: str


def label_of(examples: Examples, reader: UnitReader) -> Label:
    """The label of a latent from its examples of the explain split."""
    firing = firing_of(examples, reader)
    if not len(firing.types) or firing.mass.sum() <= 0:
        return Label("no clear pattern", 0.0, "unclear")
    items = chosen_types(firing)
    named = np.isin(firing.stems, firing.stems[items]) & (firing.mass > 0)
    coverage = float(firing.mass[named].sum())
    found = evidence_of(firing)
    kind = kind_of(found, coverage)
    topic = _topic_words(firing) if kind == "topic" else []
    if kind == "topic" and len(topic) < FORMS:
        kind = "unclear"
    lead, said = _lead(firing, found, kind, items, topic)
    return Label(_written(firing, lead, kind, [j for j in items if not said[j]]), coverage, kind)


def _lead(
    firing: Firing, found: Evidence, kind: str, items: list[int], topic: list[str]
) -> tuple[str, Bool[np.ndarray, " types"]]:
    """The first part of a label, and the types that it names already."""
    said = np.zeros(len(firing.types), dtype=np.bool_)
    if kind == "single token":
        said = firing.stems == found.family
        forms = sorted(np.flatnonzero(said & (firing.mass > 0)), key=lambda j: -firing.mass[j])
        lead = _name(firing, int(forms[0]))
        if firing.is_word[forms[0]]:
            lead = f"the word {lead}"
            more = [firing.texts[j] for j in forms[1:] if firing.mass[j] > 0.02 * found.family_mass][:FORMS]
            more = [text for text in dict.fromkeys(more) if text.lower() != firing.types[forms[0]]]
            lead += f" ({', '.join(more)})" if more else ""
        return _hedged(lead, found.family_rate), said
    if kind in ("token class", "format"):
        return _class_lead(firing, found, items)
    if kind == "prefix":
        said = np.array([x.startswith(found.prefix) for x in firing.types])
        words = sorted(np.flatnonzero(said & (firing.mass > 0)), key=lambda j: -firing.mass[j])[: FORMS + 1]
        lead = _listed(f"words that begin with '{found.prefix}' (", [firing.types[j] for j in words]) + ")"
        return _hedged(lead, found.prefix_rate), said
    if kind == "phrase":
        return f"what follows {_name(firing, found.after)}", said
    if kind == "position":
        return "the start of a passage", said
    if kind == "topic":
        return f"text about {', '.join(topic)}", said
    return "", said


def _class_lead(firing: Firing, found: Evidence, items: list[int]) -> tuple[str, Bool[np.ndarray, " types"]]:
    """A class of units as a whole, or its members that the latent fires on."""
    members = class_members(firing, found.name)
    own = [j for j in items if members[j]]
    chosen = np.zeros_like(members)
    chosen[own] = True
    several = int((members & (firing.mass > 0.05)).sum()) != 1
    as_often = firing.together_rate(members) >= WHOLE_CLASS * firing.together_rate(chosen)
    if not own or (found.name != "punctuation" and several and as_often):
        return _hedged(found.name, firing.together_rate(members)), members
    return _hedged(_listed("", [_name(firing, j) for j in own]), firing.together_rate(chosen)), chosen


def _written(firing: Firing, lead: str, kind: str, items: list[int]) -> str:
    """The first part, then the names that fit: words before marks, the hedged ones last."""
    rate = firing.rate()
    names: dict[bool, list[str]] = {False: [], True: []}
    for j in sorted(items, key=lambda j: not firing.is_word[j]):
        name = _name(firing, j)
        if name not in lead:
            names[bool(rate[j] < HEDGE)].append(name)
    label = lead or ("words such as" if kind == "words" and names[False] else "no clear pattern")
    joint = {"phrase": ": ", "topic": "; often ", "unclear": "; often ", "words": " "}.get(kind, "; also ")
    for hedged in (False, True):
        label = _listed(label, names[hedged], "; at times " if hedged else joint)
    return label


def _listed(start: str, names: list[str], joint: str = "") -> str:
    """A text with as many of the names after it as fit into a label; the first comes after `joint`."""
    text = start
    for name in dict.fromkeys(names):
        longer = f"{text}{', ' if text != start else joint}{name}"
        if len(longer) < MOST - len("at times )"):  # room for what may come around a list
            text = longer
    return text


def _hedged(lead: str, rate: float) -> str:
    return f"at times {lead}" if rate < HEDGE else lead


def _name(firing: Firing, j: int) -> str:
    """What a label calls a type of unit."""
    return MARKS.get(firing.types[j]) or f"'{firing.texts[j]}'"


def _topic_words(firing: Firing) -> list[str]:
    """Words that windows in which the latent fires have more often than others, most telling first."""
    active = np.arange(len(firing.present)) < firing.n_activating
    z = log_odds(firing.present[active], firing.present[~active])
    found: dict[int, str] = {}
    for j in np.argsort(-z, kind="stable"):
        word = firing.types[j]
        if z[j] < LEAST_Z or len(found) == TOPIC_WORDS:
            break
        if firing.is_word[j] and len(word) > 2 and word not in _COMMON:
            found.setdefault(int(firing.stems[j]), word)
    return list(found.values())
