"""negatives: the strata that are listed window by window, `similar` and `neighbour`.

What belongs here: which windows are in them, exactly, and nothing about how they are sampled. Used by `negatives.py`.

- `similar`: of the windows of a split in which the latent does not fire, those nearest to its positives there: by
  cosine between a window's vector and the mean of the vectors of `POSITIVES` positives (all, if there are fewer). As
  many as `negatives.nearest` says. Positives are drawn by hash from the same split, so that no split's sample depends
  on another's windows.
- `neighbour`: the windows in which one of the ten latents of highest decoder cosine is active on an unmasked token,
  and this latent on none. A window has the decile that it has for the nearest of the neighbours active in it. Only
  cosines above 0 count: directions at right angles (neurons are all of them) are near in nothing.

Vectors come from outside (`protocols.Vectors`); where neighbours fire is collected in one pass over the cache into a
file in order of latents, 5 bytes per active window, which is gone with the process.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64, UInt8, UInt32

from latentgloss import schema
from latentgloss.contexts.firing import members
from latentgloss.contexts.layout import Listed
from latentgloss.contexts.population import Population
from latentgloss.machine.sorting import in_turns, rank_in
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import IO

    from latentgloss.contexts.blocks import Source
    from latentgloss.contexts.firing import Cells
    from latentgloss.contexts.layout import Layout
    from latentgloss.protocols import Vectors


NEIGHBOURS = 10
NOBODY = -1
"""In place of a neighbour, where a latent has fewer than ten."""
POSITIVES = 100
_ROWS = 32
"""Latents whose neighbours are looked at together."""
_SIMILARITIES = 2**24
"""Similarities held at once: 64 MB."""


@dataclass(frozen=True)
class Firing:
    """Where some latents fire: usable windows and their deciles, by latent."""

    latents: UInt32[np.ndarray, " latents"]
    edges: Int64[np.ndarray, " edges"]
    window: UInt32[np.ndarray, " n"]
    decile: UInt8[np.ndarray, " n"]

    @classmethod
    def of(cls, source: Source, blocks: Sequence[UInt32[np.ndarray, " _"]], seed: int, folder: Path) -> Firing:
        """Of blocks of latents, ascending. Ties of deciles are broken by the seed; the file is in `folder`."""

        def found(index: int, cells: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            population = Population.of(cells, source.windows, seed)
            window = cells.window[population.cell].astype(np.uint32)
            per_latent = population.n.reshape(len(cells.latents), -1).sum(axis=1)
            return window, population.decile(np.arange(len(window))), per_latent

        counts = [np.zeros(1, dtype=np.int64)]
        with tempfile.TemporaryFile(dir=folder) as window, tempfile.TemporaryFile(dir=folder) as decile:
            for windows, deciles, per_latent in source.each(blocks, found):
                window.write(windows.tobytes())
                decile.write(deciles.tobytes())
                counts.append(per_latent)
            edges = np.cumsum(np.concatenate(counts))
            n = int(edges[-1])
            latents = np.concatenate([np.empty(0, dtype=np.uint32), *blocks])
            return cls(latents, edges, _mapped(window, np.uint32, n), _mapped(decile, np.uint8, n))


def _mapped(file: IO[bytes], dtype: type[np.uint32 | np.uint8], n: int) -> np.ndarray:
    """A file's content, which stays readable when the file is closed."""
    file.flush()
    return np.memmap(file, dtype=dtype, mode="r", shape=(n,)) if n else np.empty(0, dtype=dtype)


def nearest_latents(table: pl.DataFrame) -> Int64[np.ndarray, "latents neighbours"]:
    """The first ten neighbours of each row of `schema.LATENTS`, as far as their cosine is above 0; then `NOBODY`."""

    def of(rank: int) -> pl.Expr:
        ids, cosines = (pl.col(name).list.get(rank, null_on_oob=True) for name in ("neighbours", "neighbour_cosines"))
        return pl.when(cosines > 0).then(ids.cast(pl.Int64)).otherwise(NOBODY).alias(str(rank))

    return table.select(of(rank) for rank in range(NEIGHBOURS)).to_numpy()


def neighbour_stratum(
    cells: Cells,
    layout: Layout,
    firing: Firing,
    neighbours: Int64[np.ndarray, "latents neighbours"],
    claimed: Int64[np.ndarray, " claimed"],
) -> Listed:
    """Windows in which one of `neighbours` fires (of row i, those of `cells.latents[i]`: `nearest_latents`).

    `claimed`: keys of windows that belong to an earlier stratum.
    """
    alive = np.flatnonzero(cells.alive)  # dead latents have no strata
    parts = [
        _fired_by_neighbours(cells, layout, firing, neighbours, claimed, alive[low : low + _ROWS])
        for low in range(0, len(alive), _ROWS)
    ]
    marked = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    return Listed(marked >> 8, (marked & 0xF).astype(np.uint8))


def _fired_by_neighbours(
    cells: Cells,
    layout: Layout,
    firing: Firing,
    neighbours: Int64[np.ndarray, "latents neighbours"],
    claimed: Int64[np.ndarray, " claimed"],
    rows: Int64[np.ndarray, " rows"],
) -> Int64[np.ndarray, " found"]:
    """Ascending keys of some rows' stratum, each times 256 plus the decile."""
    size = len(layout.window)
    of, nearness = np.nonzero(neighbours[rows] != NOBODY)
    row = rows[of]
    at = np.searchsorted(firing.latents, neighbours[row, nearness])
    count = firing.edges[at + 1] - firing.edges[at]
    token, _ = members(firing.edges[at], count)
    place = layout.place[firing.window[token]]
    key = np.repeat(row * size, count) + place
    # Sorted with whose it is and its decile below: the nearest neighbour that fires in a window comes first, and
    # before it, as number 0, the latent itself or the stratum it belongs to.
    fired = (key << 8 | np.repeat(nearness + 1, count) << 4 | firing.decile[token])[place >= 0]
    mine = slice(*np.searchsorted(cells.row, [rows[0], rows[-1] + 1]))
    own = layout.place[cells.window[mine]]
    theirs = slice(*np.searchsorted(claimed, [rows[0] * size, (rows[-1] + 1) * size]))
    marked = np.concatenate([(cells.row[mine] * size + own)[own >= 0] << 8, claimed[theirs] << 8, fired])
    marked.sort()
    first = marked[np.flatnonzero(np.diff(marked >> 8, prepend=-1))]
    return first[(first & 0xF0) > 0]


class Neighbourhoods:
    """Nearest windows of each split, found by comparing with all of them."""

    def __init__(self, layout: Layout, vectors: Vectors) -> None:
        """Reads the vector of every usable window: 4 bytes per number, all of them in memory."""
        self.layout = layout
        self.vectors = np.ascontiguousarray(vectors.get(layout.window.astype(np.uint32)), dtype=np.float32)

    def stratum(self, cells: Cells, seed: int, nearest: int) -> Listed:
        """The `nearest` windows per latent and split: by cosine, ties by hash."""
        edges = self.layout.edges
        found = [
            self._of_split(cells, seed, nearest, number, slice(int(edges[number]), int(edges[number + 1])))
            for number in range(len(schema.SPLITS))
        ]
        key = np.sort(np.concatenate(found))
        return Listed(key, np.zeros(len(key), dtype=np.uint8))

    def _of_split(self, cells: Cells, seed: int, nearest: int, number: int, part: slice) -> Int64[np.ndarray, " found"]:
        """Keys of the stratum in one split, whose windows lie at places `part`."""
        vectors, size = self.vectors[part], len(self.layout.window)
        place = self.layout.place[cells.window]
        here = np.flatnonzero((place >= part.start) & (place < part.stop))
        active = here[cells.activating[here]]
        row = cells.row[active]
        hashes = counter_hash(seed, cells.latents[row], cells.window[active]) >> np.uint64(16)
        drawn, _ = in_turns(row, np.zeros_like(row), hashes, np.full(len(cells.latents), POSITIVES))
        if not len(drawn):
            return np.empty(0, dtype=np.int64)
        asking, first = np.unique(row[drawn], return_index=True)
        # Summed in float64 and in the order they were drawn: the same to the last digit in any company.
        query = np.add.reduceat(vectors[place[active[drawn]] - part.start].astype(np.float64), first, axis=0)
        query /= np.maximum(np.sqrt((query * query).sum(axis=1, keepdims=True)), 1e-12)
        asker = np.full(len(cells.latents), -1)
        asker[asking] = np.arange(len(asking))
        touched_by, touched = asker[cells.row[here]], place[here] - part.start
        found = []
        step = max(1, _SIMILARITIES // max(len(vectors), 1))
        for low in range(0, len(asking), step):
            high = min(low + step, len(asking))
            similarity = query[low:high].astype(np.float32) @ vectors.T
            inside = (touched_by >= low) & (touched_by < high)
            similarity[touched_by[inside] - low, touched[inside]] = -np.inf
            at, window = _candidates(similarity, nearest, vectors.shape[1])
            exact = (vectors[window].astype(np.float64) * query[low + at]).sum(axis=1)
            row = asking[low + at]
            ties = counter_hash(seed, cells.latents[row], self.layout.window[window + part.start])
            order = np.lexsort((ties, -exact, at))
            chosen = rank_in(order, at) < nearest
            found.append((row * size + window + part.start)[chosen])
        return np.concatenate(found)


def _candidates(
    similarity: Float32[np.ndarray, "latents windows"], nearest: int, dimension: int
) -> tuple[Int64[np.ndarray, " found"], Int64[np.ndarray, " found"]]:
    """(row, column) of all that may be among a row's `nearest` greatest, whatever the product's last digits.

    How a product of float32 matrices rounds depends on their shapes. Its error for unit vectors is below dimension *
    2^-23, so what is this near to the limit is told apart afterwards, in float64. -inf is never among them.
    """
    last = max(similarity.shape[1] - nearest, 0)
    limit = np.partition(similarity, last, axis=1)[:, last] - 4 * dimension * 2.0**-24
    row, column = np.nonzero((similarity >= limit[:, None]) & (similarity > -np.inf))
    return row, column
