"""From a label to the probability that the latent is active on a unit.

What belongs here: the features of a unit given a label, and the coefficients that turn them into log-odds. For a unit
of type t:

    named       1 if an item names t (as it is, as a mark of a class, or by its beginning), else 0
    place       for a named unit, 1 for the first item of the label to 0 for the last
    frequency   for a named unit, ln(1 + occurrences per 100,000 units of the corpus)
    cosine      for a word that is not named, its closeness to the words that the label names (`Lexicon.closeness`)
    hedged      1 if the item that names t is hedged, else 0

    log-odds = c · features + b

The coefficients are fitted by logistic regression on the units of *select* windows of at most `LATENTS` latents of the
SAE, weighted to the population, with a Gaussian prior of standard deviation 1 around `PRIOR`. With few latents they
stay near it. Test windows are never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentgloss.contexts.marks import dense_activations
from latentgloss.scores.judges.labels.lexicon import SCALE
from latentgloss.store.digests import frame_sha256, json_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl
    from jaxtyping import Float64, Int64, UInt32

    from latentgloss.scores.judges.labels.lexicon import Lexicon
    from latentgloss.scores.judges.labels.reading import Item

LATENTS = 256
"""Latents whose windows decide the coefficients: the first that have an explanation, in the registry's order."""
FEATURES = ("named", "place", "frequency", "cosine", "hedged", "constant")
PRIOR = (7.6, 1.6, -0.4, 6.8, -2.0, -5.6)
"""Coefficients before anything is fitted: about those of two residual SAEs of the demo."""
DECIMALS = 6
"""Coefficients are rounded to so many decimals, so that they are the same on any machine."""
MOST_STEPS = 100
"""Newton steps; about ten are needed."""


@dataclass(frozen=True)
class Fit:
    """Coefficients, and what they were fitted to."""

    coefficients: tuple[float, ...] = PRIOR
    """In the order of `FEATURES`."""
    latents: int = 0
    units: int = 0

    def facts(self) -> dict[str, Any]:
        """For display beside the scores."""
        named = dict(zip(FEATURES, self.coefficients, strict=True))
        return {"coefficients": named, "latents": self.latents, "units": self.units}


def features(
    items: list[Item], types: Int64[np.ndarray, " types"], lexicon: Lexicon, *, marks: bool = False
) -> Float64[np.ndarray, "types features"]:
    """The features of each type given the items of a label, in the order of `FEATURES`.

    `marks`: for fuzzing, which compares the units of a window with each other.
    """
    named, place, hedged = np.zeros((3, len(types)))
    row = {int(number): i for i, number in enumerate(types)}
    words: list[int] = []
    for k, item in enumerate(items):
        numbers = lexicon.numbers(item.names)
        words += numbers
        if item.prefix:
            rows = [i for number, i in row.items() if lexicon.names[number].startswith(item.names[0])]
        else:
            rows = [row[number] for number in numbers if number in row]
        for i in rows:
            if not named[i]:
                named[i], place[i], hedged[i] = 1, 1 - k / max(len(items) - 1, 1), item.hedged
    frequency = named * np.log1p(lexicon.share(types) * SCALE)
    cosine = lexicon.closeness(types, words, relative=marks) * (1 - named)
    return np.stack([named, place, frequency, cosine, hedged, np.ones(len(types))], axis=1)


class Lesson(NamedTuple):
    """What coefficients are fitted to: some latents, their labels and their select windows."""

    labels: pl.DataFrame
    """Columns latent, label and firing_rate, in the order in which latents were chosen."""
    activating: pl.DataFrame
    """Rows of `schema.CONTEXTS` of these latents in select: latent, context, offsets, activations."""
    silent: pl.DataFrame | None
    """Rows of `schema.NEGATIVES`: latent, context. None: activating windows alone, as in fuzzing."""

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        return json_sha256([None if frame is None else frame_sha256(frame) for frame in self])


def fitted(
    lesson: Lesson,
    lexicon: Lexicon,
    read: Callable[[str], list[Item]],
    windows: Callable[[np.ndarray], UInt32[np.ndarray, "windows length"]],
) -> Fit:
    """Coefficients for the judge of labels. `windows`: tokens of contexts by number."""
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    n_units = latents = 0
    for latent, label, rate in lesson.labels.select("latent", "label", "firing_rate").iter_rows():
        activating = lesson.activating.filter(latent=latent)
        items = read(label)
        if not activating.height or not items:
            continue
        numbers = activating["context"].to_numpy()
        silent = (
            np.empty(0, np.uint32)
            if lesson.silent is None
            else lesson.silent.filter(latent=latent)["context"].to_numpy()
        )
        tokens = windows(np.concatenate([numbers, silent]))
        units = lexicon.units(tokens)
        active = np.zeros(len(units.types), dtype=bool)
        where = units.of_token[: len(numbers)][dense_activations(activating, tokens.shape[1]) > 0]
        active[where[where >= 0]] = True
        share = (1.0, 0.0) if lesson.silent is None else (rate, 1 - rate)
        of_window = np.repeat(np.array(share) / np.maximum([len(numbers), len(silent)], 1), [len(numbers), len(silent)])
        weight = of_window[units.window]
        types, at = np.unique(units.types, return_inverse=True)
        on, all_ = (np.bincount(at, weight * chosen, len(types)) for chosen in (active, np.ones(len(active))))
        rows.append((features(items, types, lexicon, marks=lesson.silent is None), on, all_))
        n_units, latents = n_units + len(units.types), latents + 1
    if not rows:
        return Fit()
    x, on, total = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    scale = n_units / total.sum()
    found = logistic(x, on * scale, total * scale, np.array(PRIOR))
    return Fit(tuple(round(float(c), DECIMALS) for c in found), latents, n_units)


def logistic(
    x: Float64[np.ndarray, "rows features"],
    successes: Float64[np.ndarray, " rows"],
    trials: Float64[np.ndarray, " rows"],
    prior: Float64[np.ndarray, " features"],
) -> Float64[np.ndarray, " features"]:
    """The mode of a logistic regression with binomial weights and a Gaussian prior of standard deviation 1.

    Newton's method with halved steps; the loss is strictly convex, so that the result does not depend on the start.
    """

    def loss(c: Float64[np.ndarray, " features"]) -> float:
        z = x @ c
        return float((trials * np.logaddexp(0, z) - successes * z).sum() + ((c - prior) ** 2).sum() / 2)

    found, before = prior, loss(prior)
    for _ in range(MOST_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -500, 500)))
        gradient = x.T @ (trials * p - successes) + found - prior
        hessian = (x * (trials * p * (1 - p))[:, None]).T @ x + np.eye(len(prior))
        step = np.linalg.solve(hessian, gradient)
        while (after := loss(found - step)) > before and abs(step).max() > 1e-12:
            step /= 2
        found, before = found - step, after
        if abs(step).max() < 1e-9:
            break
    return found
