"""Firing: the windows in which the latents of a block fire, as (latent, window) cells.

What belongs here: grouping a block's rows of `schema.ACTIVATIONS` into cells, and properties of single cells (maximum,
document, whether the cell is activating). Reads frames of the activation cache and the mask; writes nothing. Samplers
are in `contexts/activating.py` and `contexts/negatives.py`.

Arrays are flat and in order of latent, window and position. A *row* is the index of a latent within its block.
"""

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
    """Where the latents of a block are active: one *cell* per (latent, window), sorted by latent, then window.

    A cell is *activating* if the latent is active on at least one unmasked token of the window. A cell that is active
    on masked tokens only is neither activating nor non-activating.
    """

    latents: UInt32[np.ndarray, " latents"]
    row: Int64[np.ndarray, " cells"]
    """Index into `latents`."""
    window: Int64[np.ndarray, " cells"]
    """Context number."""
    first: Int64[np.ndarray, " cells"]
    """The cell's active tokens are `position[first : first + count]`, masked ones included."""
    count: Int64[np.ndarray, " cells"]
    """Active tokens of the cell, masked ones included."""
    position: UInt32[np.ndarray, " tokens"]
    """Position of each active token in the corpus."""
    unmasked: Bool[np.ndarray, " tokens"]
    windows: Windows
    _order: Int64[np.ndarray, " tokens"]
    """Index of each token's pair in the frame that was read."""
    _activation: Float32[np.ndarray, " pairs"] | None
    """Activations in the order in which they were read; None if they were not read."""

    @classmethod
    def of(
        cls,
        latents: UInt32[np.ndarray, " latents"],
        active: pl.DataFrame,
        masked: Bool[np.ndarray, " positions"],
        windows: Windows,
    ) -> Cells:
        """Cells of `latents` (ascending) from rows of `schema.ACTIVATIONS` in any order; other latents are left out.

        Fastest if the pairs of a latent come in few contiguous runs, as they do in shards.
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
        opens_cell = np.zeros(len(position) + 1, dtype=bool)
        opens_cell[bounds] = True
        opens_cell = opens_cell[:-1]
        # Shards come in order of position, so tokens are mostly in order already.
        if not (opens_cell[1:] | (position[1:] > position[:-1])).all():
            by_position = np.lexsort((position, np.repeat(np.arange(len(latents)), np.diff(bounds))))
            order, position = order[by_position], position[by_position]
        window = position // np.uint32(windows.length)
        opens_cell[1:] |= window[1:] != window[:-1]
        first = np.flatnonzero(opens_cell)
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
        """Kind of each cell's window (`Windows.kind`)."""
        kind: UInt8[np.ndarray, " cells"] = self.windows.kind[self.window]
        return kind

    @cached_property
    def _masked(self) -> Int64[np.ndarray, " masked"]:
        """Indices of the masked tokens. They are few, so loops over them are faster than loops over all tokens."""
        return np.flatnonzero(~self.unmasked)

    @cached_property
    def activating(self) -> Bool[np.ndarray, " cells"]:
        """Whether the latent is active on an unmasked token of the cell."""
        activating = np.ones(len(self.first), dtype=bool)
        cell, n_masked = np.unique(np.searchsorted(self.first, self._masked, side="right") - 1, return_counts=True)
        activating[cell] = n_masked < self.count[cell]
        return activating

    @cached_property
    def activation(self) -> Float32[np.ndarray, " tokens"]:
        """Activation on each active token, above 0."""
        assert self._activation is not None, "activations were not read (strengths=False)"
        activation: Float32[np.ndarray, " tokens"] = self._activation[self._order]
        return activation

    @cached_property
    def maximum(self) -> Float32[np.ndarray, " cells"]:
        """Largest activation on an unmasked token of the cell; 0 if the cell has no unmasked active token."""
        value = self.activation
        if len(self._masked):
            value = value.copy()
            value[self._masked] = 0
        # Goes token by token for all cells at once: most cells have one or two tokens, for which a reduction per cell
        # is slow.
        maximum: Float32[np.ndarray, " cells"] = value[self.first]
        longer, n = np.flatnonzero(self.count > 1), 1
        while len(longer):
            maximum[longer] = np.maximum(maximum[longer], value[self.first[longer] + n])
            n += 1
            longer = longer[np.flatnonzero(self.count[longer] > n)]
        return maximum

    @cached_property
    def document(self) -> UInt32[np.ndarray, " cells"]:
        """Document of each cell's window."""
        document: UInt32[np.ndarray, " cells"] = self.windows.document[self.window]
        return document

    @property
    def alive(self) -> Bool[np.ndarray, " latents"]:
        """Whether each latent fires on an unmasked token of the corpus."""
        alive = np.zeros(len(self.latents), dtype=bool)
        alive[self.row[np.flatnonzero(self.activating)]] = True
        return alive


def _rows(latents: UInt32[np.ndarray, " latents"], found: UInt32[np.ndarray, " runs"]) -> Shaped[np.ndarray, " runs"]:
    """Index of each found latent in `latents` (ascending); len(latents) for a latent that is not among them."""
    low = latents[0] if len(latents) else np.uint32(0)
    width = int(latents[-1] - low) + 1 if len(latents) else 0
    if width == len(latents) and len(found) and found.min() >= low and found.max() - low < width:
        return (found - low).astype(_small(width - 1))
    rows = np.full(width + 1, len(latents), dtype=_small(len(latents)))
    rows[latents - low] = np.arange(len(latents))
    # Below `low` the unsigned difference wraps around, so every latent outside the range gets the last entry.
    return rows[np.minimum(found - low, np.uint32(width))]


def _small(n: int) -> type[np.unsignedinteger[Any]]:
    """The smallest dtype for numbers up to n: NumPy sorts 8-bit and 16-bit integers in linear time."""
    return np.uint8 if n < 2**8 else np.uint16 if n < 2**16 else np.uint32


def members(
    first: Int64[np.ndarray, " cells"], count: Int64[np.ndarray, " cells"]
) -> tuple[Int64[np.ndarray, " tokens"], Int64[np.ndarray, " edges"]]:
    """Concatenates the ranges first[i] to first[i] + count[i].

    Returns the indices, and the edges: where each range begins among them, with their number as the last edge.
    """
    edges = np.append(0, np.cumsum(count))
    index = np.repeat(first - edges[:-1], count)
    index += np.arange(edges[-1])
    return index, edges
