"""The words of planted text: fillers, special tokens, and words that each belong to one rule."""

from __future__ import annotations

SPECIAL = ("<unk>", "<s>", "</s>")
"""Special tokens; their ids are 0, 1 and 2."""
N_FILLERS, N_COMMON = 400, 11
"""Number of fillers (words without meaning), and of those fillers that the kind `common` fires on.

Half of all windows contain one of the latter."""

SINK = "SINK"
"""The word on which the model writes an activation of huge norm."""

ANY = "*"
"""Stands for any filler in a piece of text."""


def word(i: int) -> str:
    """The i-th pseudo-word of two syllables; i is below 4900."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    first = i % 70
    return syllables[first] + syllables[(i // 70 + 11 * first) % 70]


FILLERS = tuple(word(i) for i in range(N_FILLERS))
COMMON = FILLERS[:N_COMMON]
"""The fillers that the kind `common` fires on."""


class Words:
    """Hands out words, each only once."""

    def __init__(self) -> None:
        self.given: list[str] = []
        """All words handed out so far, in order."""

    def __call__(self, n: int = 1, *, capitals: bool = False) -> list[str]:
        """`n` new lower-case words. `capitals`: hands out their capitalised forms too, without returning them."""
        start = N_FILLERS + sum(w.islower() for w in self.given)
        new = [word(start + i) for i in range(n)]
        self.given += new + [w.capitalize() for w in new if capitals]
        return new

    def mark(self, text: str) -> str:
        """Adds `text` itself, such as a punctuation mark, to the words handed out, and returns it."""
        self.given.append(text)
        return text
