"""Learns a `Pattern` from the explain contexts of one latent, by greedy maximum likelihood over tokens.

What belongs here: the learner and nothing of what rules mean (`pattern`). It sees explain contexts only; nothing is
tuned on what is scored later, and thresholds are the scorer's.

Every token is a trial of known weight that fired or did not. Each way to name tokens (`windows.KINDS`) is gone
through from the general to the specific: a group gets the level that best explains its tokens, as far as nothing
more specific names them, if that raises the log-likelihood by more than `PENALTY` over the level they have anyway.
The best `MOST_ITEMS` groups stay, and the pass is repeated around them, so that a class is judged by what is left of
it. Then the tokens that stand before compete in the same currency. All steps are sums over the few thousand types of
token in the windows: milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentgloss.explanations.explainers.examples import Examples
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
"""Items in all `fires` rules together: a compromise between what a reader bears and what the table knows."""

PENALTY = 0.7
"""Nats a group must gain to be named. Tokens that fired once pass, and rightly: most of them fire again."""

SHIFT_PENALTY = 4.0
"""Nats for a token that stands before: there are many to choose from."""

PRIOR = 0.5
"""Weight, in average tokens, of the level that a group would have without a rule."""

FAINT = 3
FAINT_WORTH = 0.1
"""A group that stays below level `FAINT` either way hardly ever decides a window; its nats count for a tenth."""

ROUNDS = 2
MOST_SHIFTS = 2

HIT, MISS = np.log(RATES), np.log1p(-RATES)
STEPS = np.array(sorted(SHIFTS))
_MOVED = np.clip(np.arange(len(LEVELS))[:, None] + STEPS, 0, len(LEVELS) - 1)
STEP_HIT, STEP_MISS = HIT[_MOVED] - HIT[:, None], MISS[_MOVED] - MISS[:, None]
"""Change of a trial's log-likelihood, level × step."""


@dataclass(frozen=True)
class _Trials:
    """The windows as counts per type of token. Weights are scaled to a mean of 1 per token."""

    types: Int64[np.ndarray, " types"]
    """Token ids that occur, ascending."""
    index: Int64[np.ndarray, "n length"]
    """Each token's place in `types`."""
    weight: Float64[np.ndarray, "n length"]
    fired: Bool[np.ndarray, "n length"]
    total: Values
    hits: Values
    names: dict[str, Groups]
    """Per kind, the vocabulary's number of each group that occurs, ascending."""
    groups: dict[str, Groups]
    """Per kind, each type's place in `names`; -1 where it has no group."""


@dataclass(frozen=True)
class _Pairs:
    """Tokens that a `fires` rule names, each with the token before it (types by their place in `_Trials.types`)."""

    before: Int64[np.ndarray, " pairs"]
    level: Int64[np.ndarray, " pairs"]
    weight: Float64[np.ndarray, " pairs"]
    fired: Bool[np.ndarray, " pairs"]


@dataclass(frozen=True)
class _Named:
    """A group (its place in `_Trials.names`) with the level it was given and the nats it is worth."""

    worth: float
    kind: str
    group: int
    level: int


def learn_pattern(windows: Examples, vocabulary: Vocabulary, max_rules: int = MAX_RULES) -> Pattern:
    """The pattern of at most `max_rules` rules that best predicts which tokens of `windows` are active.

    Deterministic. Raises ExplainerError if no token is active, or the arrays do not fit each other or the vocabulary.
    """
    windows.check(vocabulary)
    trials = _trials(windows, vocabulary)
    room = max_rules - 1  # what is not named takes one
    otherwise, named = _name_groups(trials)
    fires = _fires_rules(named, trials, vocabulary, room)
    weakest = min(_worth_of_levels(named).values(), default=0.0)
    pairs = _pairs(trials, otherwise, fires, vocabulary)
    shifts: list[Rule] = []
    while len(shifts) < min(MOST_SHIFTS, room - 1):
        found = _best_shift(trials, pairs, shifts, vocabulary)
        if found is None or (len(fires) + len(shifts) == room and found[0] <= weakest):
            break
        shifts.append(found[1])
        fires = _fires_rules(named, trials, vocabulary, room - len(shifts))
    return Pattern(otherwise, (*fires, *shifts), vocabulary)


def _trials(windows: Examples, vocabulary: Vocabulary) -> _Trials:
    weight = np.broadcast_to(windows.weight[:, None].astype(np.float64), windows.tokens.shape)
    weight = weight / weight.mean()
    fired = windows.activations > 0
    types = np.flatnonzero(np.bincount(windows.tokens.ravel(), minlength=len(vocabulary)))
    place = np.zeros(len(vocabulary), dtype=np.int64)
    place[types] = np.arange(len(types))
    index = place[windows.tokens]
    names, groups = {}, {}
    for kind in KINDS:
        of_types = vocabulary.groups(kind)[types]
        names[kind] = np.flatnonzero(np.bincount(of_types[of_types >= 0], minlength=1))
        groups[kind] = np.where(of_types >= 0, np.searchsorted(names[kind], of_types), -1)
    return _Trials(
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
    level: Groups = np.argmax(hits[:, None] * HIT + (total - hits)[:, None] * MISS, axis=1)
    return level


def _name_groups(trials: _Trials) -> tuple[int, list[_Named]]:
    """The level of what is not named, and the groups worth naming, best first."""
    given = {kind: np.full(len(trials.types), -1) for kind in KINDS}
    named: list[_Named] = []
    otherwise = 0
    for _ in range(ROUNDS):
        rest = np.max([given[kind] for kind in KINDS], axis=0) < 0
        if rest.any():
            otherwise = int(_likeliest(trials.hits[rest].sum(keepdims=True), trials.total[rest].sum(keepdims=True))[0])
        level = np.full(len(trials.types), otherwise)
        worth, best = {}, {}
        for i, kind in enumerate(KINDS):
            specific = np.max([given[k] for k in KINDS[i + 1 :]], axis=0, initial=-1)
            free = (trials.groups[kind] >= 0) & (specific < 0)
            worth[kind], best[kind] = _name_kind(trials, kind, free, level)
            given[kind] = np.full(len(level), -1)
            given[kind][free] = np.where(worth[kind] > 0, best[kind], -1)[trials.groups[kind][free]]
            level = np.where(given[kind] >= 0, given[kind], level)
        named = _best(worth, best)
        for kind in KINDS:
            stays = np.zeros(len(worth[kind]) + 1, dtype=np.bool_)  # the last is group -1: none
            stays[[one.group for one in named if one.kind == kind]] = True
            given[kind][~stays[trials.groups[kind]]] = -1
    return otherwise, named


def _name_kind(
    trials: _Trials, kind: str, free: Bool[np.ndarray, " types"], level: Groups
) -> tuple[Float64[np.ndarray, " groups"], Int64[np.ndarray, " groups"]]:
    """For every group of a kind, the nats it is worth to name its free types (0: not worth it), and the level."""
    size, place, before = len(trials.names[kind]), trials.groups[kind][free], level[free]
    hits, total = trials.hits[free], trials.total[free]
    hit = np.bincount(place, hits, size)
    all_ = np.bincount(place, total, size)
    already = np.bincount(place, hits * HIT[before] + (total - hits) * MISS[before], size)
    share = 1 / np.maximum(all_, np.finfo(float).tiny)
    expected = np.bincount(place, total * RATES[before], size) * share
    best = _likeliest(hit + PRIOR * expected, all_ + PRIOR)
    gain = hit * HIT[best] + (all_ - hit) * MISS[best] - already
    reach = np.maximum(best, np.bincount(place, total * before, size) * share)
    return np.where(gain > PENALTY, gain, 0.0) * np.where(reach < FAINT, FAINT_WORTH, 1.0), best


def _best(worth: dict[str, Values], best: dict[str, Groups]) -> list[_Named]:
    """The `MOST_ITEMS` groups worth most; among equals the more general kind, then the lower number."""
    everything = np.concatenate([worth[kind] for kind in KINDS])
    starts = np.cumsum([0] + [len(worth[kind]) for kind in KINDS])
    found = []
    for i in np.argsort(-everything, kind="stable")[:MOST_ITEMS]:
        if everything[i] <= 0:
            break
        k = int(np.searchsorted(starts, i, side="right")) - 1
        group = int(i - starts[k])
        found.append(_Named(float(everything[i]), KINDS[k], group, int(best[KINDS[k]][group])))
    return found


def _worth_of_levels(named: list[_Named]) -> dict[int, float]:
    worth: dict[int, float] = {}
    for one in named:
        worth[one.level] = worth.get(one.level, 0.0) + one.worth
    return worth


def _fires_rules(named: list[_Named], trials: _Trials, vocabulary: Vocabulary, most: int) -> tuple[Rule, ...]:
    """At most `most` rules out of the groups: one per level, strongest level first, best items first.

    What does not fit its level's rule moves to the level beside it, if there is room; a level too many merges so.
    """
    worth = _worth_of_levels(named)
    kept = sorted(worth, key=lambda level: (-worth[level], level))[:most]
    rules: dict[int, list[Item]] = {level: [] for level in kept}
    for one in named:
        for level in (one.level, one.level + 1, one.level - 1):
            if level in rules and len(rules[level]) < MAX_ITEMS:
                rules[level].append(_item(one.kind, one.group, trials, vocabulary))
                break
    return tuple(Rule("fires", level, tuple(rules[level])) for level in sorted(rules, reverse=True) if rules[level])


def _item(kind: str, group: int, trials: _Trials, vocabulary: Vocabulary) -> Item:
    return Item(kind, vocabulary.name(kind, int(trials.names[kind][group])))


def _pairs(trials: _Trials, otherwise: int, fires: tuple[Rule, ...], vocabulary: Vocabulary) -> _Pairs:
    types = trials.types.astype(np.uint32)[None]
    level = levels(otherwise, fires, types, vocabulary)[0].astype(np.int64)
    named = members(tuple(item for rule in fires for item in rule.items), vocabulary)[types[0]]
    here = named[trials.index]
    here[:, 0] = False
    at = np.flatnonzero(here)
    index = trials.index.ravel()
    return _Pairs(index[at - 1], level[index[at]], trials.weight.ravel()[at], trials.fired.ravel()[at])


def _best_shift(
    trials: _Trials, pairs: _Pairs, shifts: list[Rule], vocabulary: Vocabulary
) -> tuple[float, Rule] | None:
    """The shift rule that gains most beside those found, with its nats; None if none is worth it."""
    types, level = trials.types.astype(np.uint32)[None], pairs.level
    for rule in shifts:
        met = members(rule.items, vocabulary)[types[0]][pairs.before]
        level = np.where(met, np.clip(level + rule.value, 0, len(LEVELS) - 1), level)
    cell = pairs.before * len(LEVELS) + level
    shape = (len(trials.types), len(LEVELS))
    total = np.bincount(cell, pairs.weight, shape[0] * shape[1]).reshape(shape)
    hits = np.bincount(cell[pairs.fired], pairs.weight[pairs.fired], shape[0] * shape[1]).reshape(shape)
    gain_of_type = hits @ STEP_HIT + (total - hits) @ STEP_MISS
    best: tuple[float, Rule] | None = None
    # A rule is of one kind, or one token could gain twice: classes, or words, or what is no word.
    for kind in ("class", "word", "token"):
        fits = trials.groups[kind] >= 0
        if kind == "token":
            fits &= trials.groups["word"] < 0
        column = trials.groups[kind][fits, None] * len(STEPS) + np.arange(len(STEPS))
        size = len(trials.names[kind]) * len(STEPS)
        gain = np.bincount(column.ravel(), gain_of_type[fits].ravel(), size).reshape(-1, len(STEPS)) - SHIFT_PENALTY
        own = np.argmax(gain, axis=1)  # a group joins the rule of its own best step only
        for j, step in enumerate(STEPS):
            joined = np.flatnonzero((own == j) & (gain[:, j] > 0))
            joined = joined[np.argsort(-gain[joined, j], kind="stable")][:MAX_ITEMS]
            nats = float(gain[joined, j].sum())
            if len(joined) and (best is None or nats > best[0]):
                best = nats, Rule("after", int(step), tuple(_item(kind, int(g), trials, vocabulary) for g in joined))
    return best
