"""The `pattern` explainer: what a latent fires on as at most ten rules, which one sentence says and arrays execute.

What belongs here: the rules and what they mean. They are learnt in `pattern_learning`, written and read as a
sentence in `pattern_text`. The idea of a pattern that is learnt from contexts and then predicts is Neuron-to-Graph's
(Foote et al. 2023, arXiv 2305.19911); rules, learner and sentence are made for being read by people.

A pattern gives each token one of nine *levels* (`LEVELS`, from "never" to "almost always"), each a firing rate:

1. the level of the most specific `fires` rule that names the token: the token itself, then its word in any case and
   spacing, then words that begin alike, then its class; else `otherwise`;
2. a token that a `fires` rule names is moved up or down the levels by every `after` rule of which an item stands
   right before the token, in the window itself.

With λ = -ln(1 - rate), the rate of events that makes a Poisson process fire with that probability, the strength is
f_t = λ_t + `SUPPORT` Σ_s λ_s: windows are ordered by their strongest token, and among equals by how much else in
them fires. The sum is the same for all tokens of a window, so it changes no comparison within one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from latentgloss.errors import ExplainerError
from latentgloss.models.vocabulary import KINDS, Vocabulary

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int8, UInt32


VERSION = 1
"""Of the meaning of rules and of the learner; part of the recipe."""

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
LOG_ODDS = np.array([-7.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.2, 2.5])
"""Of firing, per level: evenly spaced where the levels of most tokens lie."""
RATES = 1 / (1 + np.exp(-LOG_ODDS))
_LAMBDA = -np.log1p(-RATES).astype(np.float32)

SHIFTS = {
    -3: "much less often",
    -2: "less often",
    -1: "a little less often",
    1: "a little more often",
    2: "more often",
    3: "much more often",
}
"""Steps on the ladder of levels."""

SUPPORT = np.float32(0.1)
"""Share of the whole window in a token's strength. Any value between .03 and .3 orders windows nearly alike."""

MAX_RULES = 10
MAX_ITEMS = 24
"""Items in one rule; more would be a table, not a sentence. They stand in order of importance."""


@dataclass(frozen=True, order=True)
class Item:
    """A set of tokens: `kind` is one of `windows.KINDS`, `name` a token's id or the group's text."""

    kind: str
    name: str | int


@dataclass(frozen=True)
class Rule:
    """One clause of the sentence.

    `fires`: the items fire at level `value`. `after`: tokens that a `fires` rule names move by `value` levels right
    after one of the items.
    """

    form: Literal["fires", "after"]
    value: int
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Pattern:
    """Rules, and the level of everything that no `fires` rule names (which counts as a rule)."""

    otherwise: int
    rules: tuple[Rule, ...]
    vocabulary: Vocabulary = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.rules) + 1 > MAX_RULES:
            raise ExplainerError(f"a pattern of {len(self.rules) + 1} rules", expected=f"at most {MAX_RULES}")
        if not 0 <= self.otherwise < len(LEVELS):
            raise ExplainerError(f"level {self.otherwise}", expected=f"0 to {len(LEVELS) - 1}")
        for rule in self.rules:
            if rule.form not in ("fires", "after"):
                raise ExplainerError(f"a rule of form {rule.form!r}", expected="fires or after")
            if not 1 <= len(rule.items) <= MAX_ITEMS:
                raise ExplainerError(f"a rule with {len(rule.items)} items", expected=f"1 to {MAX_ITEMS}")
            if rule.value not in (range(len(LEVELS)) if rule.form == "fires" else SHIFTS):
                raise ExplainerError(f"a {rule.form!r} rule of value {rule.value}", expected="a level or a shift")

    def levels(self, tokens: UInt32[np.ndarray, "n length"]) -> Int8[np.ndarray, "n length"]:
        """Level of every token. Raises ExplainerError if a token id is outside the vocabulary."""
        self.vocabulary.check(tokens)
        return levels(self.otherwise, self.rules, tokens, self.vocabulary)

    def strength(self, tokens: UInt32[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length"]:
        """f_t (module docstring), from each window alone. Raises ExplainerError for a token id out of range."""
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
        """Inverse of `to_json`. Raises ExplainerError if it is no pattern of this version and vocabulary."""
        try:
            read = json.loads(program)
            if read["kind"] != "pattern" or read["version"] != VERSION:
                raise ExplainerError(
                    f"a program of kind {read['kind']!r}, version {read['version']!r}",
                    expected=f"kind 'pattern', version {VERSION}",
                    todo="compute the explanations again",
                )
            rules = tuple(
                Rule(rule["form"], rule["value"], tuple(Item(kind, name) for kind, name in rule["items"]))
                for rule in read["rules"]
            )
            pattern = cls(read["otherwise"], rules, vocabulary)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
            raise ExplainerError(f"not a pattern's program ({e})", expected="what `Pattern.to_json` wrote") from e
        for rule in pattern.rules:
            for item in rule.items:
                vocabulary.group(item.kind, item.name)
        return pattern


def levels(
    otherwise: int, rules: tuple[Rule, ...], tokens: UInt32[np.ndarray, "n length"], vocabulary: Vocabulary
) -> Int8[np.ndarray, "n length"]:
    """Level of every token under the rules (module docstring)."""
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
    """Level of each token of the vocabulary by the `fires` rules; -1 where none names it."""
    level = np.full(len(vocabulary), -1, dtype=np.int8)
    for kind in KINDS:
        # Two levels for one set of tokens: the higher, whatever the order of the rules.
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
    """Which tokens of the vocabulary belong to any of the items."""
    found = np.zeros(len(vocabulary), dtype=np.bool_)
    for item in items:
        found[vocabulary.ids(item.kind, vocabulary.group(item.kind, item.name))] = True
    return found
