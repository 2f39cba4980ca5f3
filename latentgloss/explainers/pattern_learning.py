"""Learns a `Pattern` from the explain contexts of one latent, by greedy maximum likelihood over tokens.

What belongs here: the learner and nothing of what rules mean (`pattern`). It sees explain contexts only; nothing is
tuned on what is scored later, and thresholds are the scorer's.

Every token is a trial of known weight that fired or did not. Each way to name tokens (`windows.KINDS`) is gone
through from the general to the specific: a group gets the level that best explains its tokens, as far as nothing
more specific names them, if that raises the log-likelihood by more than `PENALTY` over the level they have anyway.
The best groups stay, and the pass is repeated around them, so that a class is judged by what is left of it. Then the
conditions on preceding tokens compete in the same currency. All steps are sums over arrays: a few milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from latentgloss.explainers.pattern import (
    LOG_ODDS,
    MAX_ITEMS,
    MAX_RULES,
    RATES,
    REACH,
    SHIFTS,
    Item,
    Pattern,
    Rule,
    levels,
    members,
)
from latentgloss.explainers.windows import KINDS, Vocabulary, Windows

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int8, Int64

    Values = Float64[np.ndarray, " types"]
    Groups = Int64[np.ndarray, " types"]

MOST=120
PENALTY = 0.7
"""Nats a group must gain to be named. Half a nat lets noise in; two nats leave a third of the gain on the table."""

SHIFT_PENALTY = 2.0
"""Nats for a preceding token: there are many more of them to choose from."""

PRIOR = 2.0
"""Weight, in average tokens, of the level that a group would have without a rule."""

LOW, LOWCUT = 1.0, 3
ROUNDS = 1
MOST_SHIFTS = 2
MOST_NEAR = 4000
"""Tokens looked at for conditions `REACH` tokens back, the costliest statistic."""

HIT, MISS = np.log(RATES), np.log1p(-RATES)
TOP = len(LOG_ODDS) - 1


@dataclass
class _Trials:
    """The windows as counts per token type. Weights are scaled to a mean of 1 per token."""

    types: Int64[np.ndarray, " types"]
    """Token ids that occur, ascending."""
    index: Int64[np.ndarray, "n length"]
    """Each token's place in `types`."""
    weight: Float64[np.ndarray, "n length"]
    fired: Bool[np.ndarray, "n length"]
    total: Values
    hits: Values


@dataclass(frozen=True)
class _Named:
    """A group with the level it was given and the nats it gains; `group` numbers it within its kind."""

    gain: float
    kind: str
    group: int
    level: int


def learn_pattern(windows: Windows, vocabulary: Vocabulary, max_rules: int = MAX_RULES) -> Pattern:
    """The pattern of at most `max_rules` rules that best predicts which tokens of `windows` are active.

    Deterministic. Raises ExplainerError if no token is active, or the arrays do not fit each other or the vocabulary.
    """
    windows.check(vocabulary)
    trials = _trials(windows, len(vocabulary))
    room = max_rules - 1  # what is not named takes one
    otherwise, named = _name_groups(trials, vocabulary, MOST)
    fires = _fires_rules(named, vocabulary, room)
    listed = members(_items(fires), windows.tokens, vocabulary)
    shifts: list[Rule] = []
    while len(shifts) < min(MOST_SHIFTS, room - 1):
        level = levels(otherwise, (*fires, *shifts), windows.tokens, vocabulary)
        found = _best_shift(trials, level, listed, windows, vocabulary)
        weakest = _weakest_level(named) if len(fires) + len(shifts) >= room else 0.0
        if found is None or found[0] <= weakest:
            break
        shifts.append(found[1])
        fires = _fires_rules(named, vocabulary, room - len(shifts))
    return Pattern(otherwise, (*fires, *shifts), vocabulary)


def _trials(windows: Windows, size: int) -> _Trials:
    weight = np.broadcast_to(windows.weight[:, None].astype(np.float64), windows.tokens.shape)
    weight = weight / weight.mean()
    fired = windows.activations > 0
    types = np.flatnonzero(np.bincount(windows.tokens.ravel(), minlength=size))
    place = np.zeros(size, dtype=np.int64)
    place[types] = np.arange(len(types))
    index = place[windows.tokens]
    total = np.bincount(index.ravel(), weight.ravel(), len(types))
    hits = np.bincount(index[fired], weight[fired], len(types))
    return _Trials(types, index, weight, fired, total, hits)


def _likeliest(hits: Values, total: Values) -> Groups:
    return np.argmax(np.outer(hits, HIT) + np.outer(total - hits, MISS), axis=1)


def _name_groups(trials: _Trials, vocabulary: Vocabulary, most: int) -> tuple[int, list[_Named]]:
    """The level of what is not named, and the groups worth naming, best first."""
    groups = {kind: vocabulary.groups(kind)[trials.types].astype(np.int64) for kind in KINDS}
    given = {kind: np.full(len(trials.types), -1) for kind in KINDS}
    named: list[_Named] = []
    otherwise = 0
    for _ in range(ROUNDS):
        covered = np.max([given[kind] for kind in KINDS], axis=0) >= 0
        rest = ~covered if not covered.all() else covered
        otherwise = int(_likeliest(trials.hits[rest].sum(keepdims=True), trials.total[rest].sum(keepdims=True))[0])
        level = np.full(len(trials.types), otherwise)
        named = []
        for i, kind in enumerate(KINDS):
            specific = np.max([given[k] for k in KINDS[i + 1 :]], axis=0, initial=-1)
            free = (groups[kind] >= 0) & (specific < 0)
            named += _name_kind(trials, kind, groups[kind], free, level, given)
            level = np.where(given[kind] >= 0, given[kind], level)
        named.sort(key=lambda one: (-one.gain, one.kind, one.group))
        for one in named[most:]:
            given[one.kind][groups[one.kind] == one.group] = -1
        del named[most:]
    return otherwise, named


def _name_kind(
    trials: _Trials, kind: str, groups: Groups, free: Bool[np.ndarray, " types"], level: Groups, given: dict[str, Groups]
) -> list[_Named]:
    """Levels for the groups of one kind that are worth naming; writes them to `given` and returns them."""
    given[kind] = np.full(len(groups), -1)
    if not free.any():
        return []
    found, place = np.unique(groups[free], return_inverse=True)
    before = level[free]
    hits, total = trials.hits[free], trials.total[free]
    sums = [np.bincount(place, values, len(found)) for values in (
        hits, total, hits * HIT[before] + (total - hits) * MISS[before], total * RATES[before])]  # fmt: skip
    hit, all_, already, expected = sums
    prior = PRIOR * expected / all_
    best = _likeliest(hit + prior, all_ + PRIOR)
    gain = hit * HIT[best] + (all_ - hit) * MISS[best] - already
    was = np.bincount(place, total * before, len(found)) / all_
    high = np.maximum(best, was)
    scale = np.where(high < LOWCUT, LOW, 1.0)
    gain = np.where(gain>PENALTY, gain*scale, 0)
    worth = gain > 0
    table = np.where(worth, best, -1)
    given[kind][free] = table[place]
    return [
        _Named(float(gain[i]), kind, int(found[i]), int(best[i])) for i in np.flatnonzero(worth)
    ]


def _worth(named: list[_Named]) -> dict[int, float]:
    """Nats gained by the groups of each level."""
    worth: dict[int, float] = {}
    for one in named:
        worth[one.level] = worth.get(one.level, 0.0) + one.gain
    return worth


def _weakest_level(named: list[_Named]) -> float:
    return min(_worth(named).values(), default=0.0)


def _fires_rules(named: list[_Named], vocabulary: Vocabulary, most: int) -> tuple[Rule, ...]:
    """At most `most` rules out of the groups: one per level, strongest level first, best items first.

    What does not fit its level's rule moves to the level beside it, if there is room; a level too many merges so.
    """
    worth = _worth(named)
    kept = sorted(worth, key=lambda level: (-worth[level], level))[:most]
    rules: dict[int, list[Item]] = {level: [] for level in kept}
    for one in named:
        for level in (one.level, one.level + 1, one.level - 1):
            if level in rules and len(rules[level]) < MAX_ITEMS:
                rules[level].append(Item(one.kind, vocabulary.name(one.kind, one.group)))
                break
    return tuple(Rule("fires", level, tuple(rules[level])) for level in sorted(rules, reverse=True) if rules[level])


def _items(rules: tuple[Rule, ...]) -> tuple[Item, ...]:
    return tuple(item for rule in rules for item in rule.items)


def _best_shift(
    trials: _Trials,
    level: Int8[np.ndarray, "n length"],
    listed: Bool[np.ndarray, "n length"],
    windows: Windows,
    vocabulary: Vocabulary,
) -> tuple[float, Rule] | None:
    """The shift rule that gains most on the listed tokens, with its gain in nats; None if none is worth it."""
    best: tuple[float, Rule] | None = None
    forms: tuple[Literal["after", "near"], ...] = ("after", "near")
    for form in forms:
        where, before = _preceding(listed, form)
        if not len(where):
            continue
        context = windows.tokens.ravel()[before]
        for kind in ("class", "word", "token"):
            group = vocabulary.groups(kind)[context].astype(np.int64)
            if kind == "token":  # only what has no word: blank space, line breaks
                group = np.where(vocabulary.groups("word")[context] < 0, group, -1)
            found = _shift_of_kind(trials, level, where, group, form, kind, vocabulary)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
    return best


def _preceding(
    listed: Bool[np.ndarray, "n length"], form: Literal["after", "near"]
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Pairs (listed token, token before it), as flat indexes into the windows."""
    n, length = listed.shape
    where = np.flatnonzero(listed)
    if form == "near" and len(where) > MOST_NEAR:
        where = where[np.linspace(0, len(where) - 1, MOST_NEAR).astype(np.int64)]
    steps = np.arange(1, (REACH if form == "near" else 1) + 1)
    before = where[:, None] - steps
    inside = before >= (where // length * length)[:, None]
    return np.repeat(where, len(steps))[inside.ravel()], before[inside]


def _shift_of_kind(
    trials: _Trials,
    level: Int8[np.ndarray, "n length"],
    where: Int64[np.ndarray, " pairs"],
    group: Int64[np.ndarray, " pairs"],
    form: Literal["after", "near"],
    kind: str,
    vocabulary: Vocabulary,
) -> tuple[float, Rule] | None:
    where, group = where[group >= 0], group[group >= 0]
    if form == "near":  # a group that stands before a token twice counts once
        pair = np.unique(where * vocabulary.size(kind) + group)
        where, group = pair // vocabulary.size(kind), pair % vocabulary.size(kind)
    if not len(where):
        return None
    found, place = np.unique(group, return_inverse=True)
    cell = place * len(LOG_ODDS) + level.ravel()[where]
    weight, fired = trials.weight.ravel()[where], trials.fired.ravel()[where]
    shape = (len(found), len(LOG_ODDS))
    total = np.bincount(cell, weight, shape[0] * shape[1]).reshape(shape)
    hits = np.bincount(cell[fired], weight[fired], shape[0] * shape[1]).reshape(shape)
    steps = np.array(sorted(SHIFTS))
    moved = np.clip(np.arange(len(LOG_ODDS))[:, None] + steps, 0, TOP)
    gain = hits @ (HIT[moved] - HIT[:, None]) + (total - hits) @ (MISS[moved] - MISS[:, None])
    gain -= SHIFT_PENALTY
    own = np.argmax(gain, axis=1)  # a group joins the rule of its own best step only
    best: tuple[float, Rule] | None = None
    for j, step in enumerate(steps):
        members = np.flatnonzero((own == j) & (gain[:, j] > 0))
        members = members[np.argsort(-gain[members, j], kind="stable")][:MAX_ITEMS]
        worth = float(gain[members, j].sum())
        if len(members) and (best is None or worth > best[0]):
            items = tuple(Item(kind, vocabulary.name(kind, int(found[m]))) for m in members)
            best = worth, Rule(form, int(step), items)
    return best


