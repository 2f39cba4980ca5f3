"""Populations: the usable activating windows of latents, in random order and with ranks by strength.

What belongs here: the windows that a sample of activating contexts is drawn from, their random order, ranks and
deciles. Used for the latents themselves by `contexts/activating.py` and for their neighbours by
`contexts/hard_negatives.py`. Reads and writes nothing.

Method: docs/methods.md, Data (decile, samples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Int64, UInt8, UInt64

from latentgloss import schema
from latentgloss.contexts.firing import members
from latentgloss.contexts.keys import HASH_BITS, hash48, order_keys, strengths
from latentgloss.machine.sorting import order_of
from latentgloss.statistics.counter_rng import counter_hash, further_hash

if TYPE_CHECKING:
    from latentgloss.contexts.firing import Cells
    from latentgloss.contexts.windows import Windows


DECILES = 10
_CHUNK = 2**15
"""Windows hashed at once, so that their arrays stay in the processor's caches."""


@dataclass(frozen=True)
class Population:
    """The usable activating windows of a block's latents, from which samples are drawn.

    A *group* is the windows of one latent and split. Within a group, windows have a random order (by `hashes`, then by
    number) and a rank (by maximum, then by the random order).
    """

    cells: Cells
    cell: Int64[np.ndarray, " n"]
    """Index into `cells` of each window, by group and ascending within a group."""
    group: Int64[np.ndarray, " n"]
    """Row * number of splits + split of each window."""
    n: Int64[np.ndarray, " groups"]
    """Windows of each group."""
    hashes: UInt64[np.ndarray, " n"]
    """48 random bits that depend on seed, latent and context."""
    strength: UInt64[np.ndarray, " n"]
    """Ascends with group and rank."""
    limits: UInt64[np.ndarray, "groups deciles"]
    """Strength of the strongest window of deciles 1 to 9 of each group; meaningless in groups without deciles."""

    @classmethod
    def of(cls, cells: Cells, windows: Windows, seed: int) -> Population:
        """The population of all latents of `cells`; `seed` decides the random order."""
        cell = np.flatnonzero(cells.activating & (cells.kind < len(schema.SPLITS)))
        n_groups = len(cells.latents) * len(schema.SPLITS)
        group = cells.row[cell] * len(schema.SPLITS) + cells.kind[cell]
        if (group[1:] < group[:-1]).any():  # mostly false: a corpus is in order of splits, so groups are in order
            order = np.argsort(group, kind="stable")
            cell, group = cell[order], group[order]
        hashes = _window_hashes(cells, cell, seed)
        n = np.diff(np.searchsorted(group, np.arange(n_groups + 1)))
        maximum = cells.maximum[cell]
        strength = strengths(group, maximum, hashes, n_groups)
        ascending = np.sort(strength)
        last = (np.cumsum(n) - n)[:, None] + np.arange(1, DECILES) * n[:, None] // DECILES - 1
        last = np.where(n[:, None] >= DECILES, last, 0)
        limits = ascending[last] if len(cell) else np.zeros(last.shape, dtype=np.uint64)
        if len(cell) > 1 and (limits == ascending[np.minimum(last + 1, len(cell) - 1)])[n >= DECILES].any():
            # A decile ends between two windows of equal strength, because the keys hold too few bits of the hash.
            # Exact ranks take their place.
            order = np.lexsort((hashes, maximum, group))
            strength = np.empty(len(cell), dtype=np.uint64)
            strength[order] = np.arange(len(cell), dtype=np.uint64)
            limits = last.astype(np.uint64)
        return cls(cells, cell, group, n, hashes, strength, limits)

    def members(self, groups: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " found"]:
        """Indices of the windows of some groups; `groups` is ascending."""
        return members((np.cumsum(self.n) - self.n)[groups], self.n[groups])[0]

    def lowest(self, groups: Int64[np.ndarray, " _"], most: int) -> Int64[np.ndarray, " found"]:
        """Indices of about `most` windows of each of some groups: those with the lowest hashes.

        All windows of a group that has no more than `most`.
        """
        limit = np.zeros(len(self.n), dtype=np.uint64)
        limit[groups] = np.ceil(np.minimum(most / np.maximum(self.n[groups], 1), 1.0) * 2.0**HASH_BITS)
        return np.flatnonzero(self.hashes < np.repeat(limit, self.n))

    def frame(self, keep: Int64[np.ndarray, " kept"] | None = None) -> pl.DataFrame:
        """The windows of indices `keep` (None: all) by group, in random order within a group.

        Columns: cell (index into `cells`), row (of the latent in the block), split (index), document, maximum, decile,
        and weight (the random key of sampler `importance`).
        """
        keep = np.arange(len(self.cell)) if keep is None else keep
        keep = keep[order_of(order_keys(self.group[keep], self.hashes[keep]))]
        cell, group = self.cell[keep], self.group[keep]
        maximum = self.cells.maximum[cell]
        return pl.DataFrame(
            {
                "cell": cell,
                "row": group // len(schema.SPLITS),
                "split": (group % len(schema.SPLITS)).astype(np.uint8),
                "document": self.cells.document[cell],
                "maximum": maximum,
                "weight": -np.log((self.hashes[keep] + 0.5) * 2.0**-HASH_BITS) / maximum,
                "decile": self.decile(keep),
            }
        )

    def decile(self, keep: Int64[np.ndarray, " kept"]) -> UInt8[np.ndarray, " kept"]:
        """Deciles of the windows of indices `keep`: ceil(10 r / n), where r is the rank in the group; 0 if n < 10."""
        group, strength = self.group[keep], self.strength[keep]
        decile = np.ones(len(keep), dtype=np.uint8)
        for limit in self.limits.T:
            decile += strength > limit[group]
        decile[self.n[group] < DECILES] = 0
        return decile


def _window_hashes(cells: Cells, cell: Int64[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """48 random bits for the (latent, window) of each of some cells."""
    of_latents = counter_hash(seed, cells.latents)
    hashes = np.empty(len(cell), dtype=np.uint64)
    for low in range(0, len(cell), _CHUNK):
        chunk = cell[low : low + _CHUNK]
        hashes[low : low + _CHUNK] = hash48(further_hash(of_latents[cells.row[chunk]], cells.window[chunk]))
    return hashes
