"""What the text of a planted explanation means, and the evidence it gives about contexts.

What belongs here: reading a text (`read`), and how strongly a latent that the text is true of should fire (`strength`).

Evidence (`evidence`). Detection: the strongest token of the window, max_t f_t. Fuzzing: the mean of f over the marked
tokens minus the mean over the others; masked tokens are in neither.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Float32, UInt32

from latentgloss.planted.labels import Label, Seen
from latentgloss.planted.rules import ids, labels
from latentgloss.protocols import Question
from latentgloss.schema import GRAM

PASSAGES = "Exactly these passages: "
"""How a memoriser's explanation begins."""


def read(text: str) -> Label | None:
    """The label that a text stands for; None if it is not a planted text."""
    if text.startswith(PASSAGES):
        return _passages(text)
    return labels().get(text)


def strength(label: Label, tokens: UInt32[np.ndarray, "n length"]) -> Float32[np.ndarray, "n length"]:
    """f_t: how strongly a latent that the label is true of should fire on each token, judged from the window alone.

    In units of the weakest activation that the label describes; one half where it depends on tokens cut off.
    """
    f: Float32[np.ndarray, "n length"] = label.means(Seen(tokens, ids(), cut=True)).astype(np.float32)
    return f


def evidence(label: Label, question: Question) -> Float32[np.ndarray, " contexts"]:
    """The evidence for each context of a question, as defined at the top of this module."""
    f = strength(label, question.tokens)
    if question.marks is None:
        strongest: Float32[np.ndarray, " contexts"] = f.max(axis=1)
        return strongest
    marked = question.marks
    others = ~marked if question.masked is None else ~marked & ~question.masked
    inside, outside = ((f * part).sum(axis=1) / np.maximum(part.sum(axis=1), 1) for part in (marked, others))
    contrast: Float32[np.ndarray, " contexts"] = (inside - outside).astype(np.float32)
    return contrast


def _passages(text: str) -> Label:
    """The label of a memoriser's text: true where 13 tokens in a row are in a passage.

    It is also true of a whole window if a passage contains at least half of the window's bigrams.
    """
    numbers = ids()
    passages = [[numbers[w] for w in p.split()] for p in text.removeprefix(PASSAGES).split(" | ")]
    grams = {tuple(p[i : i + GRAM]) for p in passages for i in range(len(p) - GRAM + 1)}
    pairs = [set(pairwise(p)) for p in passages]

    def means(seen: Seen) -> Float32[np.ndarray, "n length"]:
        out = np.zeros(seen.tokens.shape, dtype=np.float32)
        for row, window in zip(out, seen.tokens.tolist(), strict=True):
            for i in range(len(window) - GRAM + 1):
                if tuple(window[i : i + GRAM]) in grams:
                    row[i : i + GRAM] = 1
            own = set(pairwise(window))
            if any(2 * len(own & passage) >= len(own) for passage in pairs):
                row[:] = 1
        return out

    return Label(text, means)
