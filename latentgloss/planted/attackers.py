"""Attackers: what can be told of the truth without the meaning of an explanation. It must be nothing.

What belongs here: what each attacker sees (features of what is asked, never of the explanation), and `attack`, which
learns on some latents what it makes of others. A feature that alone tells anything is a leak: a judge that happens to
lean on it is off .5 with any explanation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Integer

Features = Float64[np.ndarray, "rows features"]

FOLDS, RIDGE, STEPS = 4, 1.0, 20


def attack(
    features: Features,
    truth: Bool[np.ndarray, " rows"],
    latent: Integer[np.ndarray, " rows"],
    fold: Integer[np.ndarray, " rows"] | None = None,
) -> tuple[float, float]:
    """Mean AUROC within latents, and its standard error, of a logistic regression learnt on the other latents.

    `fold` says which are learnt from together (default: every fourth latent): those that fire in the same windows must
    not learn from each other. An AUROC below .5 is as much of a leak as one above.
    """
    fold = np.unique(latent, return_inverse=True)[1] % FOLDS if fold is None else fold
    evidence = np.zeros(len(truth))
    for k in np.unique(fold):
        learn, apply = fold != k, fold == k
        evidence[apply] = _logistic(features[learn], truth[learn])(features[apply])
    areas = [auroc(evidence[latent == one], truth[latent == one]) for one in np.unique(latent)]
    known = np.array([area for area in areas if not np.isnan(area)])
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))


def auroc(evidence: Float64[np.ndarray, " rows"], truth: Bool[np.ndarray, " rows"]) -> float:
    """Area under the ROC curve, ties counting half; NaN where a class is missing."""
    positive, negative = evidence[truth][:, None], evidence[~truth][None]
    if not positive.size or not negative.size:
        return float("nan")
    return float(((positive > negative) + (positive == negative) / 2).mean())


def of_marks(marks: Bool[np.ndarray, "rows length"]) -> Features:
    """What marks look like to one who sees nothing else: number, runs, ends, middle, and each place."""
    number = marks.sum(axis=1)
    runs = (marks[:, 1:] & ~marks[:, :-1]).sum(axis=1) + marks[:, 0]
    first, last = marks.argmax(axis=1), marks.shape[1] - 1 - marks[:, ::-1].argmax(axis=1)
    middle = (marks * np.arange(marks.shape[1])).sum(axis=1) / np.maximum(number, 1)
    return np.column_stack([number, runs, first, last, last - first - number, middle, marks]).astype(float)


def of_place(contexts: Integer[np.ndarray, " rows"], per_sequence: int) -> Features:
    """Where a window lies in its sequence."""
    place: Features = ((contexts % per_sequence)[:, None] == np.arange(per_sequence)).astype(float)
    return place


def of_boundaries(tokens: Integer[np.ndarray, "rows length"], separator: int) -> Features:
    """Where documents end in a window: whether and how often one does, and where first and last."""
    ends = tokens == separator
    number = ends.sum(axis=1)
    first, last = ends.argmax(axis=1), ends.shape[1] - 1 - ends[:, ::-1].argmax(axis=1)
    return np.column_stack([number > 0, number, first, np.where(number > 0, last, 0)]).astype(float)


def of_order(question: Integer[np.ndarray, " rows"]) -> Features:
    """The place among the contexts of one question; rows of a question stand together, in its order."""
    place, size = _places(question)
    return np.column_stack([place, place / size, place % 5, place == 0, place == size - 1]).astype(float)


def of_prompt(question: Integer[np.ndarray, " rows"], truth: Bool[np.ndarray, " rows"], size: int) -> Features:
    """The right answers to everything else in a prompt of `size` contexts in the order of the question."""
    place, _ = _places(question)
    prompt = np.unique(np.column_stack([question, place // size]), axis=0, return_inverse=True)[1].ravel()
    total, n = np.bincount(prompt, weights=truth), np.bincount(prompt)
    others = n[prompt] - 1
    return np.column_stack([(total[prompt] - truth) / np.maximum(others, 1), others]).astype(float)


def _places(
    question: Integer[np.ndarray, " rows"],
) -> tuple[Integer[np.ndarray, " rows"], Integer[np.ndarray, " rows"]]:
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
