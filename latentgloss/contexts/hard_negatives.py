"""Hard negatives: the strata `similar` and `neighbour`, which are listed window by window.

What belongs here: exactly which windows are in these two strata. How they are sampled is in `contexts/negatives.py`.

- `similar`: in each split, the `negatives.nearest` windows most similar to the latent's positives of that split, among
  the windows in which the latent does not fire. Similarity is the cosine between a window's vector and the mean of the
  vectors of `POSITIVES` positives (all, if there are fewer). Positives are drawn by hash from the same split, so no
  split's sample depends on the windows of another split.
- `neighbour`: the windows in which one of the ten latents of highest decoder cosine is active on an unmasked token, and
  the latent itself on no token. A window has the decile that it has for the nearest of the neighbours active in it.
  Only cosines above 0 count, because at right angles no direction is near (all neurons are at right angles).

Reads vectors of contexts (`protocols.Vectors`), cells, and the activation cache. One pass over the cache collects where
neighbours fire into two unnamed temporary files in order of latents, 5 bytes per window in all. They disappear with the
process.

Method: docs/methods.md, Data (non-activating contexts).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64, UInt8, UInt32

from latentgloss import schema
from latentgloss.contexts.firing import members
from latentgloss.contexts.keys import Claims, hash48
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
"""Stands in place of a neighbour where a latent has fewer than ten."""
POSITIVES = 100
_ROWS = 32
"""Latents whose neighbours are compared at once."""
_SIMILARITIES = 2**24
"""Similarities in memory at once: 64 MB."""


@dataclass(frozen=True)
class Firing:
    """Where some latents fire: their usable activating windows with deciles, in order of latents."""

    latents: UInt32[np.ndarray, " latents"]
    """Ascending."""
    edges: Int64[np.ndarray, " edges"]
    """The windows of latent i are window[edges[i] : edges[i + 1]]."""
    window: UInt32[np.ndarray, " n"]
    decile: UInt8[np.ndarray, " n"]

    @classmethod
    def of(cls, source: Source, blocks: Sequence[UInt32[np.ndarray, " _"]], seed: int, folder: Path) -> Firing:
        """Where the latents of some blocks (ascending) fire. The seed breaks ties of deciles; files are in `folder`."""

        def activating_windows(index: int, cells: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            population = Population.of(cells, source.windows, seed)
            window = cells.window[population.cell].astype(np.uint32)
            per_latent = population.n.reshape(len(cells.latents), -1).sum(axis=1)
            return window, population.decile(np.arange(len(window))), per_latent

        counts = [np.zeros(1, dtype=np.int64)]
        with tempfile.TemporaryFile(dir=folder) as window, tempfile.TemporaryFile(dir=folder) as decile:
            for windows, deciles, per_latent in source.each(blocks, activating_windows):
                window.write(windows.tobytes())
                decile.write(deciles.tobytes())
                counts.append(per_latent)
            edges = np.cumsum(np.concatenate(counts))
            n = int(edges[-1])
            latents = np.concatenate([np.empty(0, dtype=np.uint32), *blocks])
            return cls(latents, edges, _mapped(window, np.uint32, n), _mapped(decile, np.uint8, n))


def _mapped(file: IO[bytes], dtype: type[np.uint32 | np.uint8], n: int) -> np.ndarray:
    """A file's content as an array, which stays readable after the file is closed."""
    file.flush()
    return np.memmap(file, dtype=dtype, mode="r", shape=(n,)) if n else np.empty(0, dtype=dtype)


def nearest_latents(table: pl.DataFrame) -> Int64[np.ndarray, "latents neighbours"]:
    """The first ten neighbours of each row of `schema.LATENTS`, as far as their cosine is above 0; then `NOBODY`."""

    def at_rank(rank: int) -> pl.Expr:
        ids, cosines = (pl.col(name).list.get(rank, null_on_oob=True) for name in ("neighbours", "neighbour_cosines"))
        return pl.when(cosines > 0).then(ids.cast(pl.Int64)).otherwise(NOBODY).alias(str(rank))

    return table.select(at_rank(rank) for rank in range(NEIGHBOURS)).to_numpy()


def neighbour_stratum(
    cells: Cells,
    layout: Layout,
    firing: Firing,
    neighbours: Int64[np.ndarray, "latents neighbours"],
    taken: Int64[np.ndarray, " taken"],
) -> Listed:
    """Windows in which a neighbour fires and the latent does not.

    Row i of `neighbours` holds those of `cells.latents[i]`, nearest first (`nearest_latents`). `taken`: window keys
    that belong to an earlier stratum, ascending.
    """
    alive = np.flatnonzero(cells.alive)  # dead latents have no strata
    parts = [
        _claims_of_neighbours(cells, layout, firing, neighbours, taken, alive[low : low + _ROWS])
        for low in range(0, len(alive), _ROWS)
    ]
    claims = Claims.joined(*parts)
    return Listed(claims.key, claims.decile)


def _claims_of_neighbours(
    cells: Cells,
    layout: Layout,
    firing: Firing,
    neighbours: Int64[np.ndarray, "latents neighbours"],
    taken: Int64[np.ndarray, " taken"],
    rows: Int64[np.ndarray, " rows"],
) -> Claims:
    """The windows that neighbours win for some rows (ascending), ascending.

    A window is claimed by the latent itself if it fires there, by the earlier stratum that the window belongs to, and
    by each neighbour that fires in it.
    """
    keys = layout.keys
    index, nearness = np.nonzero(neighbours[rows] != NOBODY)
    row = rows[index]
    neighbour = np.searchsorted(firing.latents, neighbours[row, nearness])
    count = firing.edges[neighbour + 1] - firing.edges[neighbour]
    entry, _ = members(firing.edges[neighbour], count)
    place = layout.place[firing.window[entry]]
    of_neighbours = Claims.of(
        np.repeat(keys.first(row), count) + place, np.repeat(nearness + 1, count), firing.decile[entry]
    ).where(place >= 0)
    cells_of_rows = slice(*np.searchsorted(cells.row, [rows[0], rows[-1] + 1]))
    own_place = layout.place[cells.window[cells_of_rows]]
    of_latents = Claims.of(keys.pack(cells.row[cells_of_rows], own_place)[own_place >= 0])
    taken_of_rows = slice(*np.searchsorted(taken, keys.first(np.array([rows[0], rows[-1] + 1]))))
    of_strata = Claims.of(taken[taken_of_rows])
    winners = Claims.joined(of_latents, of_strata, of_neighbours).winners()
    return winners.where(winners.of_neighbour)


class Neighbourhoods:
    """The windows nearest to latents' positives, found by an exhaustive search of each split."""

    def __init__(self, layout: Layout, vectors: Vectors) -> None:
        """Reads the vector of every usable window into memory: float32 [places, dimension]."""
        self.layout = layout
        self.vectors = np.ascontiguousarray(vectors.get(layout.window.astype(np.uint32)), dtype=np.float32)

    def stratum(self, cells: Cells, seed: int, nearest: int) -> Listed:
        """Stratum `similar`: the `nearest` windows per latent and split by cosine, ties by hash."""
        edges = self.layout.edges
        found = [
            self._of_split(cells, seed, nearest, slice(int(edges[split]), int(edges[split + 1])))
            for split in range(len(schema.SPLITS))
        ]
        key = np.sort(np.concatenate(found))
        return Listed(key, np.zeros(len(key), dtype=np.uint8))

    def _of_split(self, cells: Cells, seed: int, nearest: int, part: slice) -> Int64[np.ndarray, " found"]:
        """Keys of the stratum in one split, whose windows are at places `part`."""
        vectors, keys = self.vectors[part], self.layout.keys
        place = self.layout.place[cells.window]
        cells_here = np.flatnonzero((place >= part.start) & (place < part.stop))
        query_row, query = self._queries(cells, seed, cells_here[cells.activating[cells_here]])
        query_of_row = np.full(len(cells.latents), -1)
        query_of_row[query_row] = np.arange(len(query_row))
        firing_query, firing_window = query_of_row[cells.row[cells_here]], place[cells_here] - part.start
        found = [np.empty(0, dtype=np.int64)]
        step = max(1, _SIMILARITIES // max(len(vectors), 1))
        for low in range(0, len(query_row), step):
            high = min(low + step, len(query_row))
            similarity = query[low:high].astype(np.float32) @ vectors.T
            inside = (firing_query >= low) & (firing_query < high)
            similarity[firing_query[inside] - low, firing_window[inside]] = -np.inf
            index, window = _candidates(similarity, nearest, vectors.shape[1])
            exact = (vectors[window].astype(np.float64) * query[low + index]).sum(axis=1)
            row = query_row[low + index]
            ties = counter_hash(seed, cells.latents[row], self.layout.window[window + part.start])
            chosen = rank_in(np.lexsort((ties, -exact, index)), index) < nearest
            found.append(keys.pack(row, window + part.start)[chosen])
        return np.concatenate(found)

    def _queries(
        self, cells: Cells, seed: int, positive: Int64[np.ndarray, " positives"]
    ) -> tuple[Int64[np.ndarray, " queries"], Float64[np.ndarray, "queries dimension"]]:
        """Rows that have positive cells, ascending, and the unit mean vector of `POSITIVES` of their windows."""
        row = cells.row[positive]
        hashes = hash48(counter_hash(seed, cells.latents[row], cells.window[positive]))
        drawn, _ = in_turns(row, np.zeros_like(row), hashes, np.full(len(cells.latents), POSITIVES))
        if not len(drawn):
            return np.empty(0, dtype=np.int64), np.empty((0, self.vectors.shape[1]))
        rows, first = np.unique(row[drawn], return_index=True)
        # Summed in float64 and in the order of drawing, so that no digit depends on the other latents of the block.
        windows = self.layout.place[cells.window[positive[drawn]]]
        query = np.add.reduceat(self.vectors[windows].astype(np.float64), first, axis=0)
        query /= np.maximum(np.sqrt((query * query).sum(axis=1, keepdims=True)), 1e-12)
        return rows, query


def _candidates(
    similarity: Float32[np.ndarray, "latents windows"], nearest: int, dimension: int
) -> tuple[Int64[np.ndarray, " found"], Int64[np.ndarray, " found"]]:
    """(row, column) of every entry that may be among the `nearest` greatest of its row, despite rounding.

    How a product of float32 matrices rounds depends on their shapes. For unit vectors its error is below
    dimension * 2^-23, so entries this near to the limit are returned too, and the caller decides between them in
    float64. Entries of -inf are never returned.
    """
    last = max(similarity.shape[1] - nearest, 0)
    limit = np.partition(similarity, last, axis=1)[:, last] - 4 * dimension * 2.0**-24
    row, column = np.nonzero((similarity >= limit[:, None]) & (similarity > -np.inf))
    return row, column
