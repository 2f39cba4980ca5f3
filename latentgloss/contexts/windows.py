"""What activating and non-activating contexts share: windows of a corpus, and where latents fire in them.

What belongs here: which latents are asked for, the windows a sample may hold, a block's activations gathered per
(latent, window), counter-based randomness, and the loop over blocks. Reads the corpus and `activation_cache`;
writes nothing. Used by `contexts.py` and `negatives.py` only (docs/methods.md, Data).

The *population* is the same for both: windows that hold no 13-gram of an earlier split, one per distinct text.
Which of several token-identical windows stands for the text does not depend on any latent.

Memory: one byte per token, about 20 per window, and a block's share of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt32, UInt64

from latentgloss import schema
from latentgloss.errors import SettingsError
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from latentgloss.corpus.reader import Corpus


_CHUNK = 1 << 16  # windows hashed at once


SEVERAL, SHARED, REPEAT = range(len(schema.SPLITS), len(schema.SPLITS) + 3)
"""Kinds of window that are not usable (`Windows.kind`)."""


@dataclass(frozen=True)
class Windows:
    """All windows of a corpus; arrays are indexed by context number."""

    length: int
    """Tokens per window."""
    split: UInt8[np.ndarray, " windows"]
    """Index into `schema.SPLITS`."""
    document: UInt32[np.ndarray, " windows"]
    """Document of the middle token."""
    several: Bool[np.ndarray, " windows"]
    """Does not lie in a single document: then where documents end could tell what a latent does (decision 0012)."""
    shared: Bool[np.ndarray, " windows"]
    """Holds a whole 13-gram that an earlier split holds too."""
    repeat: Bool[np.ndarray, " windows"]
    """Neither of these, but token-identical to another window, which stands for the text."""
    drawn_from: tuple[int, ...] = tuple(range(len(schema.SPLITS)))
    """Of each split, the split whose windows its samples are drawn from."""

    @classmethod
    def of(cls, corpus: Corpus, length: int) -> Windows:
        """Raises SettingsError if no 13-gram fits a window, CorpusError if `length` does not divide sequences."""
        if length < schema.GRAM:
            raise SettingsError(
                f"contexts.length = {length}",
                expected=f"at least {schema.GRAM}: text shared between splits is found by its {schema.GRAM}-grams",
                todo="set a longer contexts.length",
            )
        split = corpus.split_of_context(length)
        shared = corpus.shares_13gram(length)
        start = np.arange(len(split), dtype=np.int64) * length
        # Spans are ascending and disjoint; BOS and separators lie between them.
        first = np.searchsorted(corpus.span_end, start, side="right")
        last = np.searchsorted(corpus.span_start, start + length, side="left") - 1
        middle = np.searchsorted(corpus.span_start, start + length // 2, side="right") - 1
        document = corpus.span_document[np.maximum(np.clip(middle, first, last), 0)]
        several = first != last
        repeat = _repeats(text_hashes(corpus.tokens.reshape(-1, length)), split, ~(several | shared))
        return cls(length, split, document, several, shared, repeat)

    def in_one_pool(self) -> Windows:
        """All windows as one pool for every split, as in the paper: nothing is kept apart, nothing dropped."""
        nothing = np.zeros(len(self.split), dtype=bool)
        pool = schema.SPLITS.index("test")
        return replace(
            self,
            split=np.full_like(self.split, pool),
            several=nothing,
            shared=nothing,
            repeat=nothing,
            drawn_from=(pool,) * len(schema.SPLITS),
        )

    @cached_property
    def usable(self) -> Bool[np.ndarray, " windows"]:
        """The windows that samples are drawn from."""
        usable: Bool[np.ndarray, " windows"] = ~(self.several | self.shared | self.repeat)
        return usable

    @cached_property
    def kind(self) -> UInt8[np.ndarray, " windows"]:
        """Split of a usable window; of others `SEVERAL`, `SHARED` or `REPEAT`, the first that holds."""
        kind = self.split.copy()
        for number, holds in ((REPEAT, self.repeat), (SHARED, self.shared), (SEVERAL, self.several)):
            kind[holds] = number
        return kind

    @cached_property
    def n_usable(self) -> Int64[np.ndarray, " splits"]:
        return np.bincount(self.split[self.usable], minlength=len(schema.SPLITS))

    def facts(self) -> dict[str, dict[str, int]]:
        """Counts of windows by split, for people."""
        counted = {
            "usable": self.usable,
            "dropped_several": self.several,
            "dropped_shared": self.shared,
            "dropped_identical": self.repeat,
        }
        return {
            f"windows_{name}": {split: int((self.split[mask] == i).sum()) for i, split in enumerate(schema.SPLITS)}
            for name, mask in counted.items()
        }


def text_hashes(tokens: UInt32[np.ndarray, "windows length"]) -> UInt64[np.ndarray, " windows"]:
    """64-bit hash of the tokens of each window. Equal texts have equal hashes; two others at odds of 2^-64."""
    hashes = np.empty(len(tokens), dtype=np.uint64)
    for low in range(0, len(tokens), _CHUNK):
        chunk = np.asarray(tokens[low : low + _CHUNK])
        hashes[low : low + _CHUNK] = counter_hash(0, *chunk.T)
    return hashes


def _repeats(
    text: UInt64[np.ndarray, " windows"],
    split: UInt8[np.ndarray, " windows"],
    candidate: Bool[np.ndarray, " windows"],
) -> Bool[np.ndarray, " windows"]:
    """Candidates that are not the one of their text: the earliest split's, there the one with the lowest hash.

    By hash and not the first, since a repeated text differs from its first occurrence in what precedes it.
    """
    repeat = np.zeros(len(text), dtype=bool)
    windows = np.flatnonzero(candidate)
    order = windows[np.lexsort((counter_hash(1, windows), split[windows], text[windows]))]
    repeat[order[1:]] = text[order[1:]] == text[order[:-1]]
    return repeat
