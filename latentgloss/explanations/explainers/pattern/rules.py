"""Patterns: at most ten rules about the tokens on which a latent fires, which one sentence states and arrays execute.

What belongs here: the rules and what they mean. They are learnt in `learning.py`, and written and read as a sentence in
`sentence.py`. The idea of a pattern that is learnt from contexts and then predicts is Neuron-to-Graph's (Foote et al.
2023, arXiv 2305.19911); rules, learner and sentence are our own, designed to be read by people.

A pattern gives each token one of nine *levels* (`LEVELS`, from "never" to "almost always"), each with a firing rate:

1. The level comes from the most specific `fires` rule that names the token. From specific to general, a rule names the
   token itself, its word in any case and spacing, all words with the same beginning, or its class. A token that no
   `fires` rule names has the level `otherwise`.
2. A token that a `fires` rule names is moved up or down the levels by every `after` rule that names the token right
   before it in the same window.

Let λ = -ln(1 - rate), the rate of a Poisson process that has at least one event with probability `rate`. The strength
is f_t = λ_t + `SUPPORT` Σ_s λ_s. Windows are thus ordered by their strongest token, and among equals by how much else
in them fires. The sum is the same for all tokens of a window, so it changes no comparison within a window.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.program_json import read_program
from latentgloss.models.vocabulary import KINDS, Vocabulary

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int8, UInt32


VERSION = 1
"""Version of the meaning of rules and of the learner; part of the recipe."""

LEVELS = (
    "never",
    "hardly ever",
    "very rarely",
    "rarely",
    "occasionally",
    "sometimes",
    "often",
    "usually",
    "almost always",
)
"""How often a token fires, in words, ascending."""
LOG_ODDS = np.array([-7.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.2, 2.5])
"""Log odds of firing per level, evenly spaced in the range of most tokens."""
RATES = 1 / (1 + np.exp(-LOG_ODDS))
"""Firing rate per level."""
_LAMBDA = -np.log1p(-RATES).astype(np.float32)

SHIFTS = {
    -3: "much less often",
    -2: "less often",
    -1: "a little less often",
    1: "a little more often",
    2: "more often",
    3: "much more often",
}
"""Number of levels by which an `after` rule moves a token, in words."""

SUPPORT = np.float32(0.1)
"""Weight of the whole window in a token's strength. All values between .03 and .3 order windows nearly alike."""

MAX_RULES = 10
"""Most rules of a pattern, counting `otherwise`."""
MAX_ITEMS = 24
"""Most items of a rule, because more would be a table and not a sentence. Items are in order of importance."""


@dataclass(frozen=True, order=True)
class Item:
    """A set of tokens: `kind` is one of `vocabulary.KINDS`, `name` a token's id or the text of a group."""

    kind: str
    name: str | int


@dataclass(frozen=True)
class Rule:
    """One clause of the sentence.

    Form `fires`: the items fire at level `value`. Form `after`: tokens that a `fires` rule names move by `value` levels
    if they stand right after one of the items.
    """

    form: Literal["fires", "after"]
    value: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Pattern:
    """Rules, and the level `otherwise` of all tokens that no `fires` rule names, which counts as a rule.

    Raises ExplainerError if a bound of this module is exceeded.
    """

    otherwise: int
    rules: tuple[Rule, ...]
    vocabulary: Vocabulary = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.rules) + 1 > MAX_RULES:
            raise ExplainerError(f"a pattern of {len(self.rules) + 1} rules", expected=f"at most {MAX_RULES}")
        if not 0 <= self.otherwise < len(LEVELS):
            raise ExplainerError(
                f"a pattern with `otherwise` at level {self.otherwise}", expected=f"0 to {len(LEVELS) - 1}"
            )
        for rule in self.rules:
            if rule.form not in ("fires", "after"):
                raise ExplainerError(f"a rule of form {rule.form!r}", expected="fires or after")
            if not 1 <= len(rule.items) <= MAX_ITEMS:
                raise ExplainerError(f"a rule with {len(rule.items)} items", expected=f"1 to {MAX_ITEMS}")
            if rule.value not in (range(len(LEVELS)) if rule.form == "fires" else SHIFTS):
                raise ExplainerError(
                    f"a rule of form {rule.form!r} and value {rule.value}",
                    expected=f"a level from 0 to {len(LEVELS) - 1} for fires, a shift from {list(SHIFTS)} for after",
                )

    def levels(self, tokens: UInt32[np.ndarray, "n length"]) -> Int8[np.ndarray, "n length"]:
        """The level of every token. Raises ExplainerError if a token id is outside the vocabulary."""
        self.vocabulary.check(tokens)
        return levels(self.otherwise, self.rules, tokens, self.vocabulary)

    def strength(self, tokens: UInt32[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length"]:
        """f_t (see the module docstring), computed from each window alone.

        Raises ExplainerError if a token id is outside the vocabulary.
        """
        rate = _LAMBDA[self.levels(tokens)]
        strength: Float32[np.ndarray, "n length"] = rate + SUPPORT * rate.sum(axis=1, keepdims=True)
        return strength

    def to_json(self) -> str:
        """The pattern as JSON, without the vocabulary."""
        rules = [
            {"form": rule.form, "value": rule.value, "items": [[item.kind, item.name] for item in rule.items]}
            for rule in self.rules
        ]
        program = {"kind": "pattern", "version": VERSION, "otherwise": self.otherwise, "rules": rules}
        return json.dumps(program, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, program: str, vocabulary: Vocabulary) -> Pattern:
        """Inverse of `to_json`. Raises ExplainerError if it is not a pattern of this version and vocabulary."""

        def build(content: dict[str, Any]) -> Pattern:
            rules = tuple(
                Rule(rule["form"], rule["value"], tuple(Item(kind, name) for kind, name in rule["items"]))
                for rule in content["rules"]
            )
            return cls(content["otherwise"], rules, vocabulary)

        pattern = read_program(program, "pattern", VERSION, build)
        for rule in pattern.rules:
            for item in rule.items:
                vocabulary.group(item.kind, item.name)
        return pattern


def levels(
    otherwise: int, rules: tuple[Rule, ...], tokens: UInt32[np.ndarray, "n length"], vocabulary: Vocabulary
) -> Int8[np.ndarray, "n length"]:
    """The level of every token under the rules (see the module docstring)."""
    level: Int8[np.ndarray, "n length"] = _fires(rules, vocabulary)[tokens]
    shift = np.zeros(len(vocabulary), dtype=np.int8)
    for rule in rules:
        if rule.form != "fires":
            shift += np.int8(rule.value) * members(rule.items, vocabulary)
    moved = level.copy()
    moved[:, 1:] += shift[tokens[:, :-1]]
    np.clip(moved, 0, len(LEVELS) - 1, out=moved)
    moved[level < 0] = otherwise
    return moved


def _fires(rules: tuple[Rule, ...], vocabulary: Vocabulary) -> Int8[np.ndarray, " vocabulary"]:
    """The level of each token of the vocabulary under the `fires` rules; -1 for a token that none of them names."""
    level = np.full(len(vocabulary), -1, dtype=np.int8)
    for kind in KINDS:
        # If two rules name one set of tokens, the higher level holds, whatever the order of the rules.
        named: dict[int, int] = {}
        for rule in rules:
            for item in rule.items if rule.form == "fires" else ():
                if item.kind == kind:
                    group = vocabulary.group(kind, item.name)
                    named[group] = max(named.get(group, 0), rule.value)
        for group, value in named.items():
            level[vocabulary.ids(kind, group)] = value
    return level


def members(items: tuple[Item, ...], vocabulary: Vocabulary) -> Bool[np.ndarray, " vocabulary"]:
    """Which tokens of the vocabulary belong to at least one of the items."""
    found = np.zeros(len(vocabulary), dtype=np.bool_)
    for item in items:
        found[vocabulary.ids(item.kind, vocabulary.group(item.kind, item.name))] = True
    return found
