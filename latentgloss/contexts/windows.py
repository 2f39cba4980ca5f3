"""Windows: which windows of a corpus samples may hold, and why the others are left out.

What belongs here: the split, the document and the usability of each window of the corpus. Reads the corpus; writes
nothing. Where latents fire in windows is in `contexts/firing.py`.

A window is *usable* if it lies in a single document, holds no 13-gram of an earlier split, and represents its text:
of several token-identical windows one is kept. Activating and non-activating contexts are drawn from the same usable
windows. Which of several token-identical windows is kept does not depend on any latent.

Memory: about 20 bytes per window. Method: docs/methods.md, Data.
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


_CHUNK = 1 << 16
"""Windows hashed at once."""

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
    """The window does not lie in a single document, so its document boundaries could tell what a latent does
    (docs/decisions/0012-windows-of-one-document.md)."""
    shared: Bool[np.ndarray, " windows"]
    """The window holds a whole 13-gram that also occurs in an earlier split."""
    repeat: Bool[np.ndarray, " windows"]
    """Neither `several` nor `shared`, but token-identical to another window, which represents the text."""
    drawn_from: tuple[int, ...] = tuple(range(len(schema.SPLITS)))
    """For each split, the split whose windows its samples are drawn from."""

    @classmethod
    def of(cls, corpus: Corpus, length: int) -> Windows:
        """The windows of `length` tokens of a corpus.

        Raises SettingsError if a 13-gram does not fit into a window, CorpusError if `length` does not divide the
        sequence length.
        """
        if length < schema.GRAM:
            raise SettingsError(
                f"contexts.length = {length}",
                expected=f"at least {schema.GRAM}, because text shared between splits is found by its "
                f"{schema.GRAM}-grams",
                todo="set a longer contexts.length",
            )
        split = corpus.split_of_context(length)
        shared = corpus.shares_13gram(length)
        start = np.arange(len(split), dtype=np.int64) * length
        # Spans are ascending and disjoint; BOS and separators lie between them.
        first_span = np.searchsorted(corpus.span_end, start, side="right")
        last_span = np.searchsorted(corpus.span_start, start + length, side="left") - 1
        middle_span = np.searchsorted(corpus.span_start, start + length // 2, side="right") - 1
        document = corpus.span_document[np.maximum(np.clip(middle_span, first_span, last_span), 0)]
        several = first_span != last_span
        text = text_hashes(corpus.tokens.reshape(-1, length))
        return cls(length, split, document, several, shared, _repeats(text, split, ~(several | shared)))

    def in_one_pool(self) -> Windows:
        """The windows as one pool that all splits are drawn from, with no window dropped (`contexts.pool = "one"`).

        This is the protocol of Paulo et al., arXiv 2410.13928.
        """
        none = np.zeros(len(self.split), dtype=bool)
        pool = schema.SPLITS.index("test")
        return replace(
            self,
            split=np.full_like(self.split, pool),
            several=none,
            shared=none,
            repeat=none,
            drawn_from=(pool,) * len(schema.SPLITS),
        )

    @cached_property
    def usable(self) -> Bool[np.ndarray, " windows"]:
        """Whether samples may hold each window."""
        usable: Bool[np.ndarray, " windows"] = ~(self.several | self.shared | self.repeat)
        return usable

    @cached_property
    def kind(self) -> UInt8[np.ndarray, " windows"]:
        """The split of a usable window; otherwise the first of `SEVERAL`, `SHARED` and `REPEAT` that applies."""
        kind = self.split.copy()
        for number, applies in ((REPEAT, self.repeat), (SHARED, self.shared), (SEVERAL, self.several)):
            kind[applies] = number
        return kind

    @cached_property
    def n_usable(self) -> Int64[np.ndarray, " splits"]:
        """Usable windows of each split."""
        return np.bincount(self.split[self.usable], minlength=len(schema.SPLITS))

    def facts(self) -> dict[str, dict[str, int]]:
        """Counts of windows by split, for display."""
        masks = {
            "usable": self.usable,
            "dropped_several": self.several,
            "dropped_shared": self.shared,
            "dropped_identical": self.repeat,
        }
        return {
            f"windows_{name}": {split: int((self.split[mask] == i).sum()) for i, split in enumerate(schema.SPLITS)}
            for name, mask in masks.items()
        }


def text_hashes(tokens: UInt32[np.ndarray, "windows length"]) -> UInt64[np.ndarray, " windows"]:
    """64-bit hash of the tokens of each window. Two different texts have equal hashes with probability 2^-64."""
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
    """Candidates whose text another candidate represents: the one of the earliest split with the lowest hash there.

    The lowest hash decides instead of the first position because a repeated text differs from its first occurrence in
    what precedes it.
    """
    repeat = np.zeros(len(text), dtype=bool)
    windows = np.flatnonzero(candidate)
    order = windows[np.lexsort((counter_hash(1, windows), split[windows], text[windows]))]
    repeat[order[1:]] = text[order[1:]] == text[order[:-1]]
    return repeat
