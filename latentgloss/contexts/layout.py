"""Usable windows laid out by split and document, and intervals of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, UInt8

from latentgloss import schema
from latentgloss.contexts.firing import Cells, members
from latentgloss.contexts.windows import SEVERAL, Windows
from latentgloss.machine.sorting import ascending, distinct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentgloss.contexts.firing import Cells
    from latentgloss.corpus.reader import Corpus


@dataclass(frozen=True)
class Listed:
    """A stratum of a block's latents, window by window."""

    key: Int64[np.ndarray, " n"]
    """Row of the latent * usable windows + place of the window, ascending."""
    decile: UInt8[np.ndarray, " n"]
    """What a sample takes turns over."""


@dataclass(frozen=True)
class Layout:
    """The usable windows in a row: by split, then document."""

    windows: Windows
    window: Int64[np.ndarray, " places"]
    """Context number at each place."""
    place: Int64[np.ndarray, " windows"]
    """Place of each window; -1 if it has none."""
    edges: Int64[np.ndarray, " edges"]
    """Split s lies at places edges[s] to edges[s + 1]."""
    start: Int64[np.ndarray, " documents"]
    """A document's windows lie at places start to stop."""
    stop: Int64[np.ndarray, " documents"]

    @classmethod
    def of(cls, windows: Windows) -> Layout:
        usable = np.flatnonzero(windows.usable)
        window = usable[np.lexsort((usable, windows.document[usable], windows.split[usable]))]
        place = np.full(len(windows.split), -1, dtype=np.int64)
        place[window] = np.arange(len(window))
        n = np.bincount(windows.split[window], minlength=len(schema.SPLITS))
        start, stop = np.zeros((2, int(windows.document.max(initial=0)) + 1), dtype=np.int64)
        # Written backwards and forwards: the first and the last place of a document remain.
        at, document = np.arange(len(window)), windows.document[window]
        start[document[::-1]] = at[::-1]
        stop[document] = at + 1
        return cls(windows, window, place, np.append(0, np.cumsum(n)), start, stop)


def firing_documents(
    cells: Cells, windows: Windows, corpus: Corpus
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """(row, document) pairs, sorted and distinct: the latent fires on an unmasked token of the document."""
    single = cells.kind != SEVERAL
    whole = np.flatnonzero(cells.activating & single)
    # Only windows of several documents need a look at their tokens.
    several = np.flatnonzero(cells.activating & ~single)
    token, _ = members(cells.first[several], cells.count[several])
    unmasked = np.flatnonzero(cells.unmasked[token])
    row = np.repeat(cells.row[several], cells.count[several])[unmasked]
    document = corpus.document_of_position(cells.position[token[unmasked]])
    inside = np.flatnonzero(document >= 0)
    pairs = distinct(
        cells.row[whole] << 32 | windows.document[cells.window[whole]], row[inside] << 32 | document[inside]
    )
    return pairs >> 32, pairs & 0xFFFF_FFFF


@dataclass(frozen=True)
class Intervals:
    """Disjoint, ascending intervals of keys, from which single keys are drawn by their rank."""

    start: Int64[np.ndarray, " intervals"]
    before: Int64[np.ndarray, " edges"]
    """Keys in the intervals before each; the total last."""

    @classmethod
    def of(cls, starts: Sequence[Int64[np.ndarray, " _"]], stops: Sequence[Int64[np.ndarray, " _"]]) -> Intervals:
        """From starts and stops in any order: the intervals being disjoint, sorting pairs them."""
        start, stop = ascending(np.concatenate(starts)), ascending(np.concatenate(stops))
        return cls(start, np.append(0, np.cumsum(stop - start)))

    def rank(self, bounds: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Keys below each bound."""
        if not len(self.start):
            return np.zeros_like(bounds)
        at = np.maximum(np.searchsorted(self.start, bounds, side="right") - 1, 0)
        ranks: Int64[np.ndarray, " n"] = self.before[at] + np.clip(
            bounds - self.start[at], 0, self.before[at + 1] - self.before[at]
        )
        return ranks

    def key(self, ranks: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        at = np.searchsorted(self.before, ranks, side="right") - 1
        keys: Int64[np.ndarray, " n"] = self.start[at] + ranks - self.before[at]
        return keys


def claimed(listed: Mapping[str, Listed]) -> Int64[np.ndarray, " keys"]:
    """Keys of all windows that are in one of the strata, ascending."""
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *(stratum.key for stratum in listed.values())]))
