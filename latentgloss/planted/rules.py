"""The planted latents: `rules()`, with their vocabulary, activations and labels.

What belongs here: numbering of latents and tokens, and functions over all rules. `kinds.py` makes the rules of a kind,
`labels.py` defines rules and labels, `words.py` the words.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, Integer

from latentgloss.planted.kinds import INSTANCES, KINDS
from latentgloss.planted.labels import Label, PlantedRule, Seen
from latentgloss.planted.words import FILLERS, SPECIAL, Words
from latentgloss.statistics.counter_rng import counter_hash

STEP = 5
"""Distance between the ids of two planted latents. Latents between them never fire; the planted ones thus lie in two
blocks."""

LEVEL, JITTER, SALT = 2.0, 0.05, 0x9147
"""Activation where a rule's label says 1, the largest relative deviation from it, and the salt of the hash that draws
the deviation of each place."""

ANYTHING = Label("Any word.", lambda s: np.ones(s.tokens.shape, dtype=np.float32))
"""A label that is true of every token."""


@cache
def _made() -> tuple[tuple[PlantedRule, ...], tuple[str, ...]]:
    words = Words()
    found: list[PlantedRule] = []
    # One instance of each kind in turn, so that every block of latents holds several kinds.
    for instance in range(INSTANCES):
        for make, n in KINDS.values():
            if instance < n:
                first = STEP * len(found)
                for i, rule in enumerate(make(words)):
                    near = first if i and rule.kind != "strengths: graded" else None
                    found.append(replace(rule, instance=instance, latent=STEP * len(found), near=near))
    return tuple(found), (*SPECIAL, *FILLERS, ",", *words.given)


def rules() -> tuple[PlantedRule, ...]:
    """All planted latents in order of their ids; the same on every call."""
    return _made()[0]


def vocabulary() -> tuple[str, ...]:
    """The word of each token id."""
    return _made()[1]


@cache
def ids() -> dict[str, int]:
    """The token id of each word."""
    return {w: i for i, w in enumerate(vocabulary())}


def n_latents() -> int:
    """Number of latents of the SAE, most of which never fire."""
    return STEP * len(rules())


def rule_of(kind: str, instance: int = 0) -> PlantedRule:
    """The rule of a kind and instance."""
    return next(rule for rule in rules() if (rule.kind, rule.instance) == (kind, instance))


def activations(tokens: Integer[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length rules"]:
    """The activation of every rule's latent on every token of whole sequences."""
    seen = Seen(tokens, ids(), cut=False)
    out = np.zeros((*tokens.shape, len(rules())), dtype=np.float32)
    previous = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    for number, rule in enumerate(rules()):
        strength = rule.true.means(seen)
        row, at = np.nonzero(strength)
        draw = counter_hash(SALT, rule.latent, tokens[row, at], previous[row, at]) / np.float64(2**64)
        out[row, at, number] = LEVEL * strength[row, at] * (1 - JITTER + 2 * JITTER * draw)
    return out


@cache
def labels() -> dict[str, Label]:
    """All labels by their text; judges look up the meaning of an explanation here."""
    found = {ANYTHING.text: ANYTHING}
    for rule in rules():
        for label in (rule.true, rule.general, rule.specific):
            if label is not None:
                known = found.setdefault(label.text, label)
                assert known is label or rule.near is not None or rule.kind.startswith("strengths"), label.text
    return found


def fires(rule: PlantedRule, tokens: Integer[np.ndarray, "n length"]) -> Bool[np.ndarray, "n length"]:
    """Whether a rule's latent fires on each token of whole sequences."""
    return rule.true.means(Seen(tokens, ids(), cut=False)) > 0
