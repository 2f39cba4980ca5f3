"""The windows in which latents fire, ordered by chance and ranked by strength: what samples are drawn from.

What belongs here: one latent's usable activating windows of one split, their random order, ranks and deciles.
Used by `contexts.py` for the latents themselves and by `hard_negatives.py` for their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64, UInt8, UInt64

from latentgloss import schema
from latentgloss.contexts.firing import members
from latentgloss.machine.sorting import order_of
from latentgloss.statistics.counter_rng import counter_hash, further_hash

if TYPE_CHECKING:
    from latentgloss.contexts.firing import Cells
    from latentgloss.contexts.windows import Windows


DECILES = 10
_CHUNK = 2**15  # hashed at once: as much as stays near the processor


@dataclass(frozen=True)
class Population:
    """The usable activating windows of a block's latents: what samples are drawn from.

    A *group* is the windows of one latent and split. Within it windows have a random order, by `hashes` and then by
    number, and a rank by maximum, ties in the random order.
    """

    cells: Cells
    cell: Int64[np.ndarray, " n"]
    """By group, ascending within."""
    group: Int64[np.ndarray, " n"]
    """Row * number of splits + split."""
    n: Int64[np.ndarray, " groups"]
    hashes: UInt64[np.ndarray, " n"]
    """48 random bits, of seed, latent and context."""
    strength: UInt64[np.ndarray, " n"]
    """Ascends with group and rank."""
    limits: UInt64[np.ndarray, "groups deciles"]
    """Strength of the strongest window of deciles 1 to 9 of each group; empty where there are no deciles."""

    @classmethod
    def of(cls, cells: Cells, windows: Windows, seed: int) -> Population:
        cell = np.flatnonzero(cells.activating & (cells.kind < len(schema.SPLITS)))
        n_groups = len(cells.latents) * len(schema.SPLITS)
        group = cells.row[cell] * len(schema.SPLITS) + cells.kind[cell]
        if (group[1:] < group[:-1]).any():  # a corpus comes split by split, so that groups are in order already
            order = np.argsort(group, kind="stable")
            cell, group = cell[order], group[order]
        seeds = counter_hash(seed, cells.latents)
        hashes = np.empty(len(cell), dtype=np.uint64)
        for low in range(0, len(cell), _CHUNK):
            some = cell[low : low + _CHUNK]
            hashes[low : low + _CHUNK] = further_hash(seeds[cells.row[some]], cells.window[some]) >> np.uint64(16)
        n = np.diff(np.searchsorted(group, np.arange(n_groups + 1)))
        maximum = cells.maximum[cell]
        strength = _strength(group, maximum, hashes, n_groups)
        ascending = np.sort(strength)
        last = (np.cumsum(n) - n)[:, None] + np.arange(1, DECILES) * n[:, None] // DECILES - 1
        last = np.where(n[:, None] >= DECILES, last, 0)
        limits = ascending[last] if len(cell) else np.zeros(last.shape, dtype=np.uint64)
        if len(cell) > 1 and (limits == ascending[np.minimum(last + 1, len(cell) - 1)])[n >= DECILES].any():
            # Two windows are alike in all the bits there was room for, and a decile ends between them: ranks then.
            order = np.lexsort((hashes, maximum, group))
            strength = np.empty(len(cell), dtype=np.uint64)
            strength[order] = np.arange(len(cell), dtype=np.uint64)
            limits = last.astype(np.uint64)
        return cls(cells, cell, group, n, hashes, strength, limits)

    def members(self, groups: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " found"]:
        """Indices of the windows of some groups (ascending)."""
        return members((np.cumsum(self.n) - self.n)[groups], self.n[groups])[0]

    def lowest(self, groups: Int64[np.ndarray, " _"], most: int) -> Int64[np.ndarray, " found"]:
        """Indices of about `most` windows of each of some groups: those of low hash. All, if there are no more."""
        limit = np.zeros(len(self.n), dtype=np.uint64)
        limit[groups] = np.ceil(np.minimum(most / np.maximum(self.n[groups], 1), 1.0) * 2.0**48)
        return np.flatnonzero(self.hashes < np.repeat(limit, self.n))

    def frame(self, keep: Int64[np.ndarray, " kept"] | None = None) -> pl.DataFrame:
        """The windows (those of indices `keep`) by group, in random order within.

        Columns: cell, row (index of the latent in the block), split (index), document (of the strongest unmasked
        token), maximum, decile, and weight (the random key of sampler `importance`).
        """
        keep = np.arange(len(self.cell)) if keep is None else keep
        keep = keep[order_of(self.group[keep].astype(np.uint64) << np.uint64(48) | self.hashes[keep])]
        cell, group = self.cell[keep], self.group[keep]
        maximum = self.cells.maximum[cell]
        return pl.DataFrame(
            {
                "cell": cell,
                "row": group // len(schema.SPLITS),
                "split": (group % len(schema.SPLITS)).astype(np.uint8),
                "document": self.cells.document[cell],
                "maximum": maximum,
                "weight": -np.log((self.hashes[keep] + 0.5) * 2.0**-48) / maximum,
                "decile": self.decile(keep),
            }
        )

    def decile(self, keep: Int64[np.ndarray, " kept"]) -> UInt8[np.ndarray, " kept"]:
        """Deciles of the windows of indices `keep`: ceil(10 r / n), r the rank in its group; 0 if n < 10."""
        group, strength = self.group[keep], self.strength[keep]
        decile = np.ones(len(keep), dtype=np.uint8)
        for limit in self.limits.T:
            decile += strength > limit[group]
        decile[self.n[group] < DECILES] = 0
        return decile


def _strength(
    group: Int64[np.ndarray, " n"], maximum: Float32[np.ndarray, " n"], hashes: UInt64[np.ndarray, " n"], n_groups: int
) -> UInt64[np.ndarray, " n"]:
    """Group, maximum and as many bits of the hash as fit beside them in one integer, which NumPy sorts fastest."""
    value, width = maximum.view(np.uint32), 32  # floats above 0 sort as their bits do
    if not np.bitwise_or.reduce(value) & np.uint32(0xFFFF):  # rounded to bfloat16
        value, width = value >> np.uint32(16), 16
    room = 64 - width - n_groups.bit_length()
    spare = max(48 - room, 0)
    strength = group.astype(np.uint64)
    strength <<= np.uint64(width)
    strength |= value
    strength <<= np.uint64(48 - spare)
    strength |= hashes >> np.uint64(spare)
    return strength
