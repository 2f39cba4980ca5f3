"""Documents of planted text: fillers into which the pieces of the rules are strewn.

What belongs here: `documents`, which draws them from a seed. Places are filled independently of each other, so that
what one rule fires on says nothing of another. Beside plain documents there are those of real corpora: paragraphs
that many documents share, near-copies of whole documents, and one word that is almost all in a few long documents.
"""

from __future__ import annotations

from itertools import chain

import numpy as np

from latentgloss.planted.rules import ANY, FILLERS, rule_of, rules

SHORTEST, LONGEST = 40, 260
"""Places of a document."""
PARAGRAPH, N_PARAGRAPHS, WITH_PARAGRAPH = 40, 10, 0.05
"""Places of a shared paragraph, how many there are, and the share of documents that hold one."""
COPIES, REPLACED = 0.03, 0.04
"""Share of documents that are copied, and of a copy's words that are other ones."""
CLUSTERED = {"in one document": (1, 240), "in eight documents": (8, 60)}
"""Kind → documents that hold its word, and how often each does; every 25 places."""


def documents(n: int, seed: int = 0) -> list[str]:
    """About `n` documents, in no order. A smaller n is not the beginning of a larger one."""
    rng = np.random.default_rng(seed)
    pieces = [(), *chain.from_iterable(rule.pieces for rule in rules())]
    rate = np.array([0.0, *chain.from_iterable(rule.pieces.values() for rule in rules())]) / 1000
    rate[0] = 1 - rate.sum()

    def draw(places: int) -> list[str]:
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
            other = rng.random(len(words)) < REPLACED
            found.append(
                [FILLERS[int(rng.integers(len(FILLERS)))] if o else w for w, o in zip(words, other, strict=True)]
            )
    for kind, (n_documents, times) in CLUSTERED.items():
        (clustered,) = _words_of(kind)
        found += [[w for _ in range(times) for w in (*draw(24), clustered)] for _ in range(n_documents)]
    order = rng.permutation(len(found))
    return [" ".join(found[i]) for i in order]


def _words_of(kind: str) -> list[str]:
    """The word that a rule of one word names."""
    return [rule_of(kind).true.text.split()[2].rstrip(",")]
