"""Attackers: classifiers that try to find the truth of questions without the explanation. They must fail.

What belongs here: the features that each attacker sees (of the question, never of the explanation), and `attack`, which
learns from some latents and predicts the truth for others. A feature that predicts the truth by itself is a leak: a
judge that relies on it scores off .5 with any explanation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Integer

Features = Float64[np.ndarray, "rows features"]
"""One row per judged context."""

FOLDS, RIDGE, STEPS = 4, 1.0, 20
"""Number of folds, penalty of the logistic regression, and number of Newton steps."""


def attack(
    features: Features,
    truth: Bool[np.ndarray, " rows"],
    latent: Integer[np.ndarray, " rows"],
    fold: Integer[np.ndarray, " rows"] | None = None,
) -> tuple[float, float]:
    """Mean AUROC within latents, with its standard error, of a logistic regression that was fitted to other folds.

    `fold`: number of each row's fold (default: every fourth latent). Latents that fire in the same windows must be in
    the same fold, so that none is predicted from another. An AUROC below .5 is as much of a leak as one above.
    """
    fold = np.unique(latent, return_inverse=True)[1] % FOLDS if fold is None else fold
    predicted = np.zeros(len(truth))
    for k in np.unique(fold):
        learn, apply = fold != k, fold == k
        predicted[apply] = _logistic(features[learn], truth[learn])(features[apply])
    areas = [auroc(predicted[latent == one], truth[latent == one]) for one in np.unique(latent)]
    known = np.array([area for area in areas if not np.isnan(area)])
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))


def auroc(evidence: Float64[np.ndarray, " rows"], truth: Bool[np.ndarray, " rows"]) -> float:
    """Area under the ROC curve, with ties counting one half; NaN if a class is missing."""
    positive, negative = evidence[truth][:, None], evidence[~truth][None]
    if not positive.size or not negative.size:
        return float("nan")
    return float(((positive > negative) + (positive == negative) / 2).mean())


def of_marks(marks: Bool[np.ndarray, "rows length"]) -> Features:
    """Features of the marks alone: number, number of runs, first, last, last - first - number, mean, each place."""
    number = marks.sum(axis=1)
    runs = (marks[:, 1:] & ~marks[:, :-1]).sum(axis=1) + marks[:, 0]
    first, last = marks.argmax(axis=1), marks.shape[1] - 1 - marks[:, ::-1].argmax(axis=1)
    middle = (marks * np.arange(marks.shape[1])).sum(axis=1) / np.maximum(number, 1)
    return np.column_stack([number, runs, first, last, last - first - number, middle, marks]).astype(float)


def of_place(contexts: Integer[np.ndarray, " rows"], per_sequence: int) -> Features:
    """The place of each context in its sequence, one-hot. `per_sequence`: contexts per sequence."""
    place: Features = ((contexts % per_sequence)[:, None] == np.arange(per_sequence)).astype(float)
    return place


def of_boundaries(tokens: Integer[np.ndarray, "rows length"], separator: int) -> Features:
    """Where documents end in a context: whether any does, how many do, and the first and last place.

    `separator`: id of the token that ends a document.
    """
    ends = tokens == separator
    number = ends.sum(axis=1)
    first, last = ends.argmax(axis=1), ends.shape[1] - 1 - ends[:, ::-1].argmax(axis=1)
    return np.column_stack([number > 0, number, first, np.where(number > 0, last, 0)]).astype(float)


def of_order(question: Integer[np.ndarray, " rows"]) -> Features:
    """The place of each context in its question. Rows of a question are adjacent and in the question's order."""
    place, size = _places(question)
    return np.column_stack([place, place / size, place % 5, place == 0, place == size - 1]).astype(float)


def of_prompt(question: Integer[np.ndarray, " rows"], truth: Bool[np.ndarray, " rows"], size: int) -> Features:
    """The share of true contexts among the others in the same prompt, and their number.

    A prompt holds `size` contexts in the order of the question.
    """
    place, _ = _places(question)
    prompt = np.unique(np.column_stack([question, place // size]), axis=0, return_inverse=True)[1].ravel()
    total, n = np.bincount(prompt, weights=truth), np.bincount(prompt)
    others = n[prompt] - 1
    return np.column_stack([(total[prompt] - truth) / np.maximum(others, 1), others]).astype(float)


def _places(
    question: Integer[np.ndarray, " rows"],
) -> tuple[Integer[np.ndarray, " rows"], Integer[np.ndarray, " rows"]]:
    """The place of each row in its question, and the question's number of rows."""
    start = np.flatnonzero(np.diff(question, prepend=question[:1] - 1))
    size = np.diff(start, append=len(question))
    return np.arange(len(question)) - np.repeat(start, size), np.repeat(size, size)


def _logistic(x: Features, y: Bool[np.ndarray, " rows"]) -> Callable[[Features], Float64[np.ndarray, " rows"]]:
    """Logits of a ridge-penalised logistic regression, by Newton's method."""
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-9

    def design(x: Features) -> Float64[np.ndarray, "rows weights"]:
        return np.column_stack([np.ones(len(x)), (x - centre) / scale])

    z, weights = design(x), np.zeros(x.shape[1] + 1)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-z @ weights))
        curve = (z * (p * (1 - p))[:, None]).T @ z + RIDGE * np.eye(len(weights))
        weights += np.linalg.solve(curve, z.T @ (y - p) - RIDGE * weights)
    return lambda x: design(x) @ weights
