"""Learns a `Pattern` from the explain contexts of one latent, by greedy maximum likelihood over tokens.

What belongs here: the learner. What rules mean is in `rules.py`. The learner sees explain contexts only. Nothing is
tuned on data that is scored later, and thresholds are chosen by the scorer.

Every token is a trial of known weight that fired or did not.

1. Go through the ways to name tokens (`vocabulary.KINDS`) from the general to the specific. Each group of tokens gets
   the level that best explains those of its tokens that no more specific item names. The group is named if this raises
   the log-likelihood by more than `PENALTY` over the level that its tokens have anyway.
2. Keep the best `MOST_ITEMS` groups and repeat the pass around them, so that a class is judged by what the more
   specific items leave of it.
3. Let the tokens that stand before other tokens compete in the same currency. Once all rules are used, a shift
   replaces the weakest level only if it gains more.

All steps are sums over the few thousand types of token in the examples, which takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentgloss.explanations.examples import Examples
from latentgloss.explanations.explainers.pattern.rules import (
    LEVELS,
    MAX_ITEMS,
    MAX_RULES,
    RATES,
    SHIFTS,
    Item,
    Pattern,
    Rule,
    levels,
    members,
)
from latentgloss.models.vocabulary import KINDS, Vocabulary

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

    Values = Float64[np.ndarray, " types"]
    Groups = Int64[np.ndarray, " types"]


MOST_ITEMS = 120
"""Most items in all `fires` rules together: a compromise between a readable sentence and a complete table."""

PENALTY = 0.7
"""Nats that a group must gain to be named. Tokens that fired once pass, rightly, because most of them fire again."""

SHIFT_PENALTY = 4.0
"""Nats that an item of an `after` rule must gain. Larger than `PENALTY`, because there are many candidates."""

PRIOR = 0.5
"""Weight, in average tokens, of the level that a group would have without a rule of its own."""

FAINT = 3
FAINT_WORTH = 0.1
"""Weight of the nats of a group below level `FAINT` with and without a rule, which hardly ever decides a window."""

ROUNDS = 2
"""Number of passes over the kinds of groups."""
MOST_SHIFTS = 2
"""Most `after` rules."""

HIT, MISS = np.log(RATES), np.log1p(-RATES)
"""Log-likelihood of a token that fired, and of a token that did not, per level."""
STEPS = np.array(sorted(SHIFTS))
"""The shifts that an `after` rule can make, ascending."""
_MOVED = np.clip(np.arange(len(LEVELS))[:, None] + STEPS, 0, len(LEVELS) - 1)
STEP_HIT, STEP_MISS = HIT[_MOVED] - HIT[:, None], MISS[_MOVED] - MISS[:, None]
"""Change of these log-likelihoods by a shift, level × step."""


@dataclass(frozen=True)
class _TypeCounts:
    """The examples as counts per type of token. Weights are scaled to a mean of 1 per token."""

    types: Int64[np.ndarray, " types"]
    """Token ids that occur, ascending."""
    index: Int64[np.ndarray, "n length"]
    """Each token's index in `types`."""
    weight: Float64[np.ndarray, "n length"]
    fired: Bool[np.ndarray, "n length"]
    total: Values
    """Weight of the tokens of each type."""
    hits: Values
    """Weight of the tokens of each type that fired."""
    names: dict[str, Groups]
    """Per kind, the vocabulary's number of each group that occurs, ascending."""
    groups: dict[str, Groups]
    """Per kind, each type's index in `names`; -1 if it has no group of this kind."""


@dataclass(frozen=True)
class _Pairs:
    """Tokens that a `fires` rule names, each with the token before it."""

    before: Int64[np.ndarray, " pairs"]
    """Index of the type of the token before, in `_TypeCounts.types`."""
    level: Int64[np.ndarray, " pairs"]
    weight: Float64[np.ndarray, " pairs"]
    fired: Bool[np.ndarray, " pairs"]


@dataclass(frozen=True)
class _Named:
    """A group (its index in `_TypeCounts.names`) with its level and the nats that naming it gains."""

    worth: float
    kind: str
    group: int
    level: int


def learn_pattern(examples: Examples, vocabulary: Vocabulary, max_rules: int = MAX_RULES) -> Pattern:
    """Learns a pattern of at most `max_rules` rules that predicts which tokens of the examples are active.

    Deterministic. Raises ExplainerError if no token is active, or if the arrays do not fit each other or the
    vocabulary.
    """
    examples.check(vocabulary)
    counts = _count_types(examples, vocabulary)
    room = max_rules - 1  # `otherwise` counts as a rule
    otherwise, named = _name_groups(counts)
    fires = _fires_rules(named, counts, vocabulary, room)
    weakest = min(_worth_of_levels(named).values(), default=0.0)
    pairs = _pairs(counts, otherwise, fires, vocabulary)
    shifts: list[Rule] = []
    while len(shifts) < min(MOST_SHIFTS, room - 1):
        found = _best_shift(counts, pairs, shifts, vocabulary)
        if found is None or (len(fires) + len(shifts) == room and found[0] <= weakest):
            break
        shifts.append(found[1])
        fires = _fires_rules(named, counts, vocabulary, room - len(shifts))
    return Pattern(otherwise, (*fires, *shifts), vocabulary)


def _count_types(examples: Examples, vocabulary: Vocabulary) -> _TypeCounts:
    """Counts the tokens of the examples by type."""
    weight = np.broadcast_to(examples.weight[:, None].astype(np.float64), examples.tokens.shape)
    weight = weight / weight.mean()
    fired = examples.activations > 0
    types = np.flatnonzero(np.bincount(examples.tokens.ravel(), minlength=len(vocabulary)))
    place = np.zeros(len(vocabulary), dtype=np.int64)
    place[types] = np.arange(len(types))
    index = place[examples.tokens]
    names, groups = {}, {}
    for kind in KINDS:
        of_types = vocabulary.groups(kind)[types]
        names[kind] = np.flatnonzero(np.bincount(of_types[of_types >= 0], minlength=1))
        groups[kind] = np.where(of_types >= 0, np.searchsorted(names[kind], of_types), -1)
    return _TypeCounts(
        types,
        index,
        weight,
        fired,
        total=np.bincount(index.ravel(), weight.ravel(), len(types)),
        hits=np.bincount(index[fired], weight[fired], len(types)),
        names=names,
        groups=groups,
    )


def _likeliest(hits: Values, total: Values) -> Groups:
    """The level of highest likelihood for each pair of weights."""
    level: Groups = np.argmax(hits[:, None] * HIT + (total - hits)[:, None] * MISS, axis=1)
    return level


def _name_groups(counts: _TypeCounts) -> tuple[int, list[_Named]]:
    """The level of tokens that are not named, and the groups worth naming, best first."""
    given = {kind: np.full(len(counts.types), -1) for kind in KINDS}
    named: list[_Named] = []
    otherwise = 0
    for _ in range(ROUNDS):
        rest = np.max([given[kind] for kind in KINDS], axis=0) < 0
        if rest.any():
            otherwise = int(_likeliest(counts.hits[rest].sum(keepdims=True), counts.total[rest].sum(keepdims=True))[0])
        level = np.full(len(counts.types), otherwise)
        worth, best = {}, {}
        for i, kind in enumerate(KINDS):
            specific = np.max([given[k] for k in KINDS[i + 1 :]], axis=0, initial=-1)
            free = (counts.groups[kind] >= 0) & (specific < 0)
            worth[kind], best[kind] = _name_kind(counts, kind, free, level)
            given[kind] = np.full(len(level), -1)
            given[kind][free] = np.where(worth[kind] > 0, best[kind], -1)[counts.groups[kind][free]]
            level = np.where(given[kind] >= 0, given[kind], level)
        named = _best(worth, best)
        for kind in KINDS:
            kept = np.zeros(len(worth[kind]) + 1, dtype=np.bool_)  # the last is for group -1, which is no group
            kept[[item.group for item in named if item.kind == kind]] = True
            given[kind][~kept[counts.groups[kind]]] = -1
    return otherwise, named


def _name_kind(
    counts: _TypeCounts, kind: str, free: Bool[np.ndarray, " types"], level: Groups
) -> tuple[Float64[np.ndarray, " groups"], Int64[np.ndarray, " groups"]]:
    """For every group of a kind, the nats that naming its free types gains (0: not worth naming), and its level.

    `free`: types that no more specific item names. `level`: each type's level without groups of this kind.
    """
    size, place, before = len(counts.names[kind]), counts.groups[kind][free], level[free]
    hits, total = counts.hits[free], counts.total[free]
    group_hits = np.bincount(place, hits, size)
    group_total = np.bincount(place, total, size)
    already = np.bincount(place, hits * HIT[before] + (total - hits) * MISS[before], size)
    share = 1 / np.maximum(group_total, np.finfo(float).tiny)
    expected = np.bincount(place, total * RATES[before], size) * share
    best = _likeliest(group_hits + PRIOR * expected, group_total + PRIOR)
    gain = group_hits * HIT[best] + (group_total - group_hits) * MISS[best] - already
    highest = np.maximum(best, np.bincount(place, total * before, size) * share)
    return np.where(gain > PENALTY, gain, 0.0) * np.where(highest < FAINT, FAINT_WORTH, 1.0), best


def _best(worth: dict[str, Values], best: dict[str, Groups]) -> list[_Named]:
    """The `MOST_ITEMS` groups of the highest worth; among equals the more general kind, then the lower number."""
    all_groups = np.concatenate([worth[kind] for kind in KINDS])
    starts = np.cumsum([0] + [len(worth[kind]) for kind in KINDS])
    found = []
    for i in np.argsort(-all_groups, kind="stable")[:MOST_ITEMS]:
        if all_groups[i] <= 0:
            break
        k = int(np.searchsorted(starts, i, side="right")) - 1
        group = int(i - starts[k])
        found.append(_Named(float(all_groups[i]), KINDS[k], group, int(best[KINDS[k]][group])))
    return found


def _worth_of_levels(named: list[_Named]) -> dict[int, float]:
    """Per level, the nats of all groups with this level."""
    worth: dict[int, float] = {}
    for item in named:
        worth[item.level] = worth.get(item.level, 0.0) + item.worth
    return worth


def _fires_rules(named: list[_Named], counts: _TypeCounts, vocabulary: Vocabulary, most: int) -> tuple[Rule, ...]:
    """At most `most` rules made of the groups: one per level, highest level first, best items first.

    A group moves to the next level up or down if its own level has no rule, or a full one, and is dropped if there is
    no room there either. So the groups of a level for which there is no rule join the levels beside it.
    """
    worth = _worth_of_levels(named)
    kept = sorted(worth, key=lambda level: (-worth[level], level))[:most]
    rules: dict[int, list[Item]] = {level: [] for level in kept}
    for item in named:
        for level in (item.level, item.level + 1, item.level - 1):
            if level in rules and len(rules[level]) < MAX_ITEMS:
                rules[level].append(_item(item.kind, item.group, counts, vocabulary))
                break
    return tuple(Rule("fires", level, tuple(rules[level])) for level in sorted(rules, reverse=True) if rules[level])


def _item(kind: str, group: int, counts: _TypeCounts, vocabulary: Vocabulary) -> Item:
    return Item(kind, vocabulary.name(kind, int(counts.names[kind][group])))


def _pairs(counts: _TypeCounts, otherwise: int, fires: tuple[Rule, ...], vocabulary: Vocabulary) -> _Pairs:
    """All tokens that a `fires` rule names, with the tokens before them in the same window."""
    types = counts.types.astype(np.uint32)[None]
    level = levels(otherwise, fires, types, vocabulary)[0].astype(np.int64)
    named = members(tuple(item for rule in fires for item in rule.items), vocabulary)[types[0]]
    here = named[counts.index]
    here[:, 0] = False
    at = np.flatnonzero(here)
    index = counts.index.ravel()
    return _Pairs(index[at - 1], level[index[at]], counts.weight.ravel()[at], counts.fired.ravel()[at])


def _best_shift(
    counts: _TypeCounts, pairs: _Pairs, shifts: list[Rule], vocabulary: Vocabulary
) -> tuple[float, Rule] | None:
    """The `after` rule that gains most in addition to `shifts`, with its nats; None if none gains anything."""
    types, level = counts.types.astype(np.uint32)[None], pairs.level
    for rule in shifts:
        moved = members(rule.items, vocabulary)[types[0]][pairs.before]
        level = np.where(moved, np.clip(level + rule.value, 0, len(LEVELS) - 1), level)
    cell = pairs.before * len(LEVELS) + level
    shape = (len(counts.types), len(LEVELS))
    total = np.bincount(cell, pairs.weight, shape[0] * shape[1]).reshape(shape)
    hits = np.bincount(cell[pairs.fired], pairs.weight[pairs.fired], shape[0] * shape[1]).reshape(shape)
    gain_of_type = hits @ STEP_HIT + (total - hits) @ STEP_MISS
    best: tuple[float, Rule] | None = None
    # All items of a rule are classes, or words, or tokens that are not words; otherwise a token could gain twice.
    for kind in ("class", "word", "token"):
        fits = counts.groups[kind] >= 0
        if kind == "token":
            fits &= counts.groups["word"] < 0
        column = counts.groups[kind][fits, None] * len(STEPS) + np.arange(len(STEPS))
        size = len(counts.names[kind]) * len(STEPS)
        gain = np.bincount(column.ravel(), gain_of_type[fits].ravel(), size).reshape(-1, len(STEPS)) - SHIFT_PENALTY
        own = np.argmax(gain, axis=1)  # a group can only be in the rule of its own best step
        for j, step in enumerate(STEPS):
            joined = np.flatnonzero((own == j) & (gain[:, j] > 0))
            joined = joined[np.argsort(-gain[joined, j], kind="stable")][:MAX_ITEMS]
            nats = float(gain[joined, j].sum())
            if len(joined) and (best is None or nats > best[0]):
                best = nats, Rule("after", int(step), tuple(_item(kind, int(g), counts, vocabulary) for g in joined))
    return best
