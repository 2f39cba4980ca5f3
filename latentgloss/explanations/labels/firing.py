"""Firing: on which types of units a latent fires in its examples, how often, and with how much activation.

What belongs here: turning `Examples` and the units of their windows into numbers per type. Counts are weighted to the
population of windows, as `Examples.weight` says. Nothing is read or written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from latentgloss.explanations.labels.units import stem

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

    from latentgloss.explanations.examples import Examples
    from latentgloss.explanations.labels.units import UnitReader

SMOOTH = 2.0
"""Occurrences by which the base rate counts in the rate of a type."""


@dataclass(frozen=True)
class Firing:
    """One latent in the explain split, by type of unit."""

    types: tuple[str, ...]
    texts: tuple[str, ...]
    """How each type is written where the latent fires most on it; the type itself where it never fires."""
    mass: Float64[np.ndarray, " types"]
    """Share of the latent's activation mass on units of this type. The sum is below 1 if special tokens have some."""
    fire: Float64[np.ndarray, " types"]
    """Units of the type on which it fires."""
    occur: Float64[np.ndarray, " types"]
    """Units of the type."""
    windows: Int64[np.ndarray, " types"]
    """Activating windows in which it fires on the type."""
    before: Float64[np.ndarray, " types"]
    """Share of the activation mass on units that stand right after one of this type."""
    before_all: Float64[np.ndarray, " types"]
    """Share of all units of activating windows that stand right after one of this type."""
    first: float
    """Share of the activation mass on the first unit of a window."""
    present: Bool[np.ndarray, "n types"]
    """Which types occur in each example; activating ones come first."""
    n_activating: int

    @cached_property
    def base(self) -> float:
        """Share of all units on which the latent fires."""
        return float(self.fire.sum() / max(self.occur.sum(), 1e-9))

    def rate(self, smooth: float = SMOOTH) -> Float64[np.ndarray, " types"]:
        """Share of the units of each type on which it fires, drawn to the base rate by `smooth` occurrences."""
        rate: Float64[np.ndarray, " types"] = (self.fire + smooth * self.base) / (self.occur + smooth)
        return rate

    @cached_property
    def stems(self) -> Int64[np.ndarray, " types"]:
        """Number of each type's stem; forms of one word share it."""
        _, numbers = np.unique([stem(name) for name in self.types], return_inverse=True)
        return np.asarray(numbers, dtype=np.int64)

    @cached_property
    def is_word(self) -> Bool[np.ndarray, " types"]:
        """Which types are words."""
        return np.array([name[0].isalpha() for name in self.types], dtype=np.bool_)

    def together_rate(self, chosen: Bool[np.ndarray, " types"]) -> float:
        """Share of the units of some types together on which it fires."""
        return float(self.fire[chosen].sum() / max(self.occur[chosen].sum(), 1e-9))


def firing_of(examples: Examples, reader: UnitReader) -> Firing:
    """What a latent's examples say about each type of unit."""
    windows = [reader(row) for row in examples.tokens]
    lengths = np.array([len(window.types) for window in windows])
    start = np.concatenate([[0], np.cumsum(lengths)])
    global_types = np.concatenate([np.empty(0, np.int32), *(window.types for window in windows)])
    numbers, types = np.unique(global_types, return_inverse=True)
    n = len(numbers)
    # By name, because a reader numbers types in the order of the windows that it has read before.
    order = sorted(range(n), key=lambda i: reader.types[numbers[i]])
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    numbers, types = numbers[order], place[types]
    weight = np.repeat(examples.weight.astype(np.float64), lengths)
    strength = np.zeros(len(types))
    total = 0.0
    for i, window in enumerate(windows):
        total += float(examples.activations[i].sum()) * float(examples.weight[i])
        fired = np.flatnonzero((examples.activations[i] > 0) & (window.of_token >= 0))
        # A word of several tokens counts once, by its strongest.
        np.maximum.at(strength, start[i] + window.of_token[fired], examples.activations[i, fired])
    on = strength > 0
    mass = weight * strength
    scale = max(mass.sum(), 1e-12)
    # Mass on special tokens belongs to no unit, so that a label cannot cover it.
    share = mass / scale * min(1.0, _share_on_units(examples, windows, total))
    previous = np.concatenate([[-1], types])[:-1]
    previous[start[:-1][lengths > 0]] = -1
    active = np.repeat((examples.activations > 0).any(axis=1), lengths)
    follows = previous >= 0
    present = np.zeros((len(windows), n), dtype=np.bool_)
    present[np.repeat(np.arange(len(windows)), lengths), types] = True
    texts = np.concatenate([np.empty(0, np.int32), *(window.texts for window in windows)])
    in_window = np.unique(np.stack([types[on], np.repeat(np.arange(len(windows)), lengths)[on]]), axis=1)
    firsts = start[:-1][lengths > 0]
    return Firing(
        tuple(reader.types[i] for i in numbers),
        _written(types[on], texts[on], mass[on], [reader.types[i] for i in numbers], reader.texts),
        np.bincount(types, share, n),
        np.bincount(types, weight * on, n),
        np.bincount(types, weight, n),
        np.bincount(in_window[0], minlength=n),
        np.bincount(previous[follows], share[follows], n),
        np.bincount(previous[follows & active], weight[follows & active], n)
        / max(weight[follows & active].sum(), 1e-12),
        float(share[firsts].sum()),
        present,
        int((examples.activations > 0).any(axis=1).sum()),
    )


def _share_on_units(examples: Examples, windows: list, total: float) -> float:  # type: ignore[type-arg]
    """Share of the activation mass that is on tokens of units."""
    inside = sum(
        float(examples.activations[i][window.of_token >= 0].sum()) * float(examples.weight[i])
        for i, window in enumerate(windows)
    )
    return inside / total if total > 0 else 0.0


def _written(
    types: np.ndarray, texts: np.ndarray, mass: np.ndarray, names: list[str], known: list[str]
) -> tuple[str, ...]:
    """How each type is written where it has most mass; its name where it has none."""
    found = list(names)
    if len(types):
        pairs, at = np.unique(np.stack([types, texts]), axis=1, return_inverse=True)
        sums = np.bincount(at.ravel(), mass)
        for pair in sorted(range(len(sums)), key=lambda i: (sums[i], known[pairs[1, i]])):
            found[pairs[0, pair]] = known[pairs[1, pair]]
    return tuple(found)
