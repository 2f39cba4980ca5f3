"""Layout: the usable windows in order of split and document, and what is counted and drawn from that order.

What belongs here: the place of each usable window, a stratum listed window by window, intervals of keys, and the
documents in which latents fire. Reads cells and the corpus; writes nothing. Window keys and document keys are defined
in `contexts/keys.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, UInt8

from latentgloss import schema
from latentgloss.contexts.firing import Cells, members
from latentgloss.contexts.keys import WindowKeys, document_keys, rows_and_documents
from latentgloss.contexts.windows import SEVERAL, Windows
from latentgloss.machine.sorting import ascending, distinct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentgloss.corpus.reader import Corpus


@dataclass(frozen=True)
class Listed:
    """A stratum of a block's latents, window by window."""

    key: Int64[np.ndarray, " n"]
    """Window keys, ascending."""
    decile: UInt8[np.ndarray, " n"]
    """Decile of each window, which take turns in a sample; 0 for all windows if there are no deciles."""


@dataclass(frozen=True)
class Layout:
    """The usable windows in one row: by split, then by document."""

    windows: Windows
    window: Int64[np.ndarray, " places"]
    """Context number at each place."""
    place: Int64[np.ndarray, " windows"]
    """Place of each window; -1 if it is not usable."""
    edges: Int64[np.ndarray, " edges"]
    """Split s is at places edges[s] to edges[s + 1]."""
    start: Int64[np.ndarray, " documents"]
    """The windows of document d are at places start[d] to stop[d]."""
    stop: Int64[np.ndarray, " documents"]

    @classmethod
    def of(cls, windows: Windows) -> Layout:
        """The layout of a corpus's windows."""
        usable = np.flatnonzero(windows.usable)
        window = usable[np.lexsort((usable, windows.document[usable], windows.split[usable]))]
        place = np.full(len(windows.split), -1, dtype=np.int64)
        place[window] = np.arange(len(window))
        n = np.bincount(windows.split[window], minlength=len(schema.SPLITS))
        start, stop = np.zeros((2, int(windows.document.max(initial=0)) + 1), dtype=np.int64)
        # Later writes win: written backwards, a document's first place remains, and written forwards its last.
        places, document = np.arange(len(window)), windows.document[window]
        start[document[::-1]] = places[::-1]
        stop[document] = places + 1
        return cls(windows, window, place, np.append(0, np.cumsum(n)), start, stop)

    @cached_property
    def keys(self) -> WindowKeys:
        """Keys of (latent, usable window) pairs."""
        return WindowKeys(len(self.window))


def firing_documents(
    cells: Cells, windows: Windows, corpus: Corpus
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """(row, document) pairs, sorted and distinct: the latent fires on an unmasked token of the document."""
    single = cells.kind != SEVERAL
    whole = np.flatnonzero(cells.activating & single)
    # Only in windows of several documents do the positions of active tokens have to be looked up.
    several = np.flatnonzero(cells.activating & ~single)
    token, _ = members(cells.first[several], cells.count[several])
    unmasked = np.flatnonzero(cells.unmasked[token])
    row = np.repeat(cells.row[several], cells.count[several])[unmasked]
    document = corpus.document_of_position(cells.position[token[unmasked]])
    inside = np.flatnonzero(document >= 0)
    pairs = distinct(
        document_keys(cells.row[whole], windows.document[cells.window[whole]]),
        document_keys(row[inside], document[inside]),
    )
    return rows_and_documents(pairs)


@dataclass(frozen=True)
class Intervals:
    """Disjoint, ascending intervals of window keys, from which single keys are drawn by their rank."""

    start: Int64[np.ndarray, " intervals"]
    before: Int64[np.ndarray, " edges"]
    """Number of keys in the intervals before each one; the total as the last entry."""

    @classmethod
    def of(cls, starts: Sequence[Int64[np.ndarray, " _"]], stops: Sequence[Int64[np.ndarray, " _"]]) -> Intervals:
        """Intervals from their starts and stops in any order: as they are disjoint, sorting both pairs them."""
        start, stop = ascending(np.concatenate(starts)), ascending(np.concatenate(stops))
        return cls(start, np.append(0, np.cumsum(stop - start)))

    def rank(self, bounds: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """How many keys of the intervals are below each bound."""
        if not len(self.start):
            return np.zeros_like(bounds)
        interval = np.maximum(np.searchsorted(self.start, bounds, side="right") - 1, 0)
        size = self.before[interval + 1] - self.before[interval]
        ranks: Int64[np.ndarray, " n"] = self.before[interval] + np.clip(bounds - self.start[interval], 0, size)
        return ranks

    def key(self, ranks: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The key of each rank, from 0 to the total - 1."""
        interval = np.searchsorted(self.before, ranks, side="right") - 1
        keys: Int64[np.ndarray, " n"] = self.start[interval] + ranks - self.before[interval]
        return keys


def claimed(listed: Mapping[str, Listed]) -> Int64[np.ndarray, " keys"]:
    """Keys of all windows that are in one of the listed strata, ascending."""
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *(stratum.key for stratum in listed.values())]))
