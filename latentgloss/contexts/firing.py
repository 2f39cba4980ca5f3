"""The windows in which a block of latents fires, as (latent, window) cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8, UInt32

from latentgloss.activations.reader import array

if TYPE_CHECKING:
    from latentgloss.contexts.windows import Windows


@dataclass(frozen=True)
class Cells:
    """Where the latents of a block are active: one *cell* per (latent, window), sorted by both.

    A cell is *activating* if the latent is active on an unmasked token of it. A cell that is active on masked tokens
    only is neither activating nor non-activating.
    """

    latents: UInt32[np.ndarray, " latents"]
    row: Int64[np.ndarray, " cells"]
    """Index into `latents`."""
    window: Int64[np.ndarray, " cells"]
    first: Int64[np.ndarray, " cells"]
    """The cell's tokens are `position[first : first + count]`, masked ones included."""
    count: Int64[np.ndarray, " cells"]
    position: UInt32[np.ndarray, " tokens"]
    unmasked: Bool[np.ndarray, " tokens"]
    windows: Windows
    _order: Int64[np.ndarray, " tokens"]
    _activation: Float32[np.ndarray, " pairs"] | None
    """As read, if it was; `_order` puts it beside `position`."""

    @classmethod
    def of(
        cls,
        latents: UInt32[np.ndarray, " latents"],
        active: pl.DataFrame,
        masked: Bool[np.ndarray, " positions"],
        windows: Windows,
    ) -> Cells:
        """From rows of `schema.ACTIVATIONS` in any order; those of other latents are left out.

        Cheapest where the pairs of a latent stand together in few runs, as shards have them.
        """
        latent, position = array(active["latent"]), array(active["position"])
        run = np.append(0, np.flatnonzero(latent[1:] != latent[:-1]) + 1)[: len(latent)]
        row_of_run = _rows(latents, latent[run])
        by_row = np.argsort(row_of_run, kind="stable")
        edges_of_rows = np.searchsorted(row_of_run[by_row], np.arange(len(latents) + 1))
        by_row = by_row[: edges_of_rows[-1]]
        order, edges = members(run[by_row], np.diff(run, append=len(latent))[by_row])
        bounds = edges[edges_of_rows]  # the tokens of row i are bounds[i] to bounds[i + 1]
        position = position[order]
        opens = np.zeros(len(position) + 1, dtype=bool)
        opens[bounds] = True
        opens = opens[:-1]
        if not (opens[1:] | (position[1:] > position[:-1])).all():  # shards come by position, and that is in order
            again = np.lexsort((position, np.repeat(np.arange(len(latents)), np.diff(bounds))))
            order, position = order[again], position[again]
        window = position // np.uint32(windows.length)
        opens[1:] |= window[1:] != window[:-1]
        first = np.flatnonzero(opens)
        count = np.diff(first, append=len(position))
        row = np.repeat(np.arange(len(latents)), np.diff(np.searchsorted(first, bounds)))
        activation = array(active["activation"]) if "activation" in active.columns else None
        return cls(
            latents,
            row,
            window[first].astype(np.int64),
            first,
            count,
            position,
            ~masked[position],
            windows,
            order,
            activation,
        )

    @cached_property
    def kind(self) -> UInt8[np.ndarray, " cells"]:
        """Of the cell's window: see `Windows.kind`."""
        kind: UInt8[np.ndarray, " cells"] = self.windows.kind[self.window]
        return kind

    @cached_property
    def _masked(self) -> Int64[np.ndarray, " masked"]:
        """Indices of the masked tokens: few, so that going through them is quicker than through all."""
        return np.flatnonzero(~self.unmasked)

    @cached_property
    def activating(self) -> Bool[np.ndarray, " cells"]:
        activating = np.ones(len(self.first), dtype=bool)
        cell, n = np.unique(np.searchsorted(self.first, self._masked, side="right") - 1, return_counts=True)
        activating[cell] = n < self.count[cell]
        return activating

    @cached_property
    def activation(self) -> Float32[np.ndarray, " tokens"]:
        """Above zero."""
        assert self._activation is not None, "this stage said that it asks only where latents are active"
        activation: Float32[np.ndarray, " tokens"] = self._activation[self._order]
        return activation

    @cached_property
    def maximum(self) -> Float32[np.ndarray, " cells"]:
        """Largest activation on an unmasked token; 0 if there is none."""
        value = self.activation
        if len(self._masked):
            value = value.copy()
            value[self._masked] = 0
        # Token by token, all cells at once: most have one or two, for which a reduction per cell is slow.
        maximum: Float32[np.ndarray, " cells"] = value[self.first]
        left, n = np.flatnonzero(self.count > 1), 1
        while len(left):
            maximum[left] = np.maximum(maximum[left], value[self.first[left] + n])
            n += 1
            left = left[np.flatnonzero(self.count[left] > n)]
        return maximum

    @cached_property
    def document(self) -> UInt32[np.ndarray, " cells"]:
        document: UInt32[np.ndarray, " cells"] = self.windows.document[self.window]
        return document

    @property
    def alive(self) -> Bool[np.ndarray, " latents"]:
        """Latents that fire on some unmasked token of the corpus."""
        alive = np.zeros(len(self.latents), dtype=bool)
        alive[self.row[np.flatnonzero(self.activating)]] = True
        return alive


def _rows(latents: UInt32[np.ndarray, " latents"], of: UInt32[np.ndarray, " pairs"]) -> Shaped[np.ndarray, " pairs"]:
    """Index in `latents` (ascending) of each pair's latent; their number for a latent that is not among them."""
    low = latents[0] if len(latents) else np.uint32(0)
    width = int(latents[-1] - low) + 1 if len(latents) else 0
    if width == len(latents) and len(of) and of.min() >= low and of.max() - low < width:
        return (of - low).astype(_small(width - 1))
    rows = np.full(width + 1, len(latents), dtype=_small(len(latents)))
    rows[latents - low] = np.arange(len(latents))
    # Latents outside the range wrap around or lie beyond it: the last entry is nobody's.
    return rows[np.minimum(of - low, np.uint32(width))]


def _small(n: int) -> type[np.unsignedinteger[Any]]:
    """Least type for numbers up to n: NumPy sorts those of 8 and 16 bits in linear time."""
    return np.uint8 if n < 2**8 else np.uint16 if n < 2**16 else np.uint32


def members(
    first: Int64[np.ndarray, " cells"], count: Int64[np.ndarray, " cells"]
) -> tuple[Int64[np.ndarray, " tokens"], Int64[np.ndarray, " edges"]]:
    """Indices first[i] to first[i] + count[i] of all cells in a row, and where each cell's begin; their number last."""
    edges = np.append(0, np.cumsum(count))
    index = np.repeat(first - edges[:-1], count)
    index += np.arange(edges[-1])
    return index, edges
