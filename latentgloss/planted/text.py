"""Documents of planted text: fillers with the pieces of the rules strewn among them.

What belongs here: `documents`, which draws them from a seed. Places are filled independently of each other, so that the
pieces of one rule carry no information about another. Some documents imitate difficulties of real corpora: paragraphs
shared by many documents, near-copies of whole documents, and a word that occurs almost only in a few long documents.
"""

from __future__ import annotations

from itertools import chain

import numpy as np

from latentgloss.planted.rules import rule_of, rules
from latentgloss.planted.words import ANY, FILLERS

SHORTEST, LONGEST = 40, 260
"""Fewest and most places of a document; a place holds a filler or a piece of a rule."""
PARAGRAPH, N_PARAGRAPHS, WITH_PARAGRAPH = 40, 10, 0.05
"""Places of a shared paragraph, number of such paragraphs, and share of documents that contain one."""
COPIES, REPLACED = 0.03, 0.04
"""Share of documents that are copied, and share of a copy's words that are replaced."""
CLUSTERED = {"in one document": (1, 240), "in eight documents": (8, 60)}
"""Kind → number of documents that contain its word, and how often each does, once after every 24 places."""


def documents(n: int, seed: int = 0) -> list[str]:
    """About `n` documents in random order. The documents of a smaller `n` are not the first ones of a larger `n`."""
    rng = np.random.default_rng(seed)
    pieces = [(), *chain.from_iterable(rule.pieces for rule in rules())]
    rate = np.array([0.0, *chain.from_iterable(rule.pieces.values() for rule in rules())]) / 1000
    rate[0] = 1 - rate.sum()

    def draw(places: int) -> list[str]:
        """`places` places, each filled with a filler or a piece of a rule."""
        words: list[str] = []
        fillers = iter(rng.integers(0, len(FILLERS), 10 * places).tolist())
        for kind in rng.choice(len(pieces), places, p=rate).tolist():
            words += [FILLERS[next(fillers)] if w == ANY else w for w in pieces[kind] or (ANY,)]
        return words

    paragraphs = [draw(PARAGRAPH) for _ in range(N_PARAGRAPHS)]
    found: list[list[str]] = []
    for _ in range(n):
        words = draw(int(rng.integers(SHORTEST, LONGEST)))
        if rng.random() < WITH_PARAGRAPH:
            at = int(rng.integers(0, len(words)))
            words[at:at] = paragraphs[int(rng.integers(N_PARAGRAPHS))]
        found.append(words)
        if rng.random() < COPIES:
            replaced = rng.random(len(words)) < REPLACED
            found.append(
                [FILLERS[int(rng.integers(len(FILLERS)))] if r else w for w, r in zip(words, replaced, strict=True)]
            )
    for kind, (n_documents, times) in CLUSTERED.items():
        (clustered,) = _words_of(kind)
        found += [[w for _ in range(times) for w in (*draw(24), clustered)] for _ in range(n_documents)]
    order = rng.permutation(len(found))
    return [" ".join(found[i]) for i in order]


def _words_of(kind: str) -> list[str]:
    """The word of a kind whose rule fires on one word, taken from the label's text."""
    return [rule_of(kind).true.text.split()[2].rstrip(",")]
