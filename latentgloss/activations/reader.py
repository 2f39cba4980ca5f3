"""Reading the activation cache by latent.

What belongs here: finding the row groups of shards that hold the pairs of some latents, and reading them. Reads the
Parquet files of the table `activations`; writes nothing.

A shard covers a range of positions and is sorted by latent, so the pairs of one block of latents are a short run in
every shard. Opening all shards for each block, and decoding a row group for a few of its rows, costs far more than the
computation on these pairs. So footers are read once, and the row groups of many blocks are read together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64, Int64, UInt32

from latentgloss import schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


AT_ONCE = 2**23
"""Upper limit of pairs per read, approximately: 100 MB. The computation waits for the first read to end."""

_ROW_GROUPS = 4
"""Row groups of each shard that make a read large enough. The first and last row group of a read are decoded for a few
of their rows only."""


@dataclass(frozen=True)
class _Footer:
    """A shard's row groups, from its footer."""

    path: Path
    metadata: pq.FileMetaData
    low: Int64[np.ndarray, " groups"]
    """Lowest latent of each row group."""
    high: Int64[np.ndarray, " groups"]
    """Highest latent of each row group."""
    edges: Int64[np.ndarray, " edges"]
    """Rows before each row group; the total as the last entry."""

    @classmethod
    def of(cls, path: Path) -> _Footer:
        """The footer of one shard."""
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        # A row group without rows has no statistics.
        statistics = (group.column(0).statistics for group in groups)
        bounds = [(s.min, s.max) if s is not None and s.has_min_max else (0, 2**32 - 1) for s in statistics]
        low, high = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
        return cls(path, metadata, low, high, np.append(0, np.cumsum([group.num_rows for group in groups])))


class ActivationReader:
    """The shards of a cache, in order of position."""

    def __init__(self, paths: Sequence[Path], *, strengths: bool = True) -> None:
        """`strengths`: whether the column `activation` is read too, a third of the work."""
        self._columns = [name for name in schema.ACTIVATIONS.schema if strengths or name != "activation"]
        self._footers = [footer for footer in map(_Footer.of, paths) if len(footer.low)]

    def below(self, latents: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Estimated number of pairs of all latents below each of `latents` (ascending), from the footers alone."""
        total = np.zeros(len(latents))
        for footer in self._footers:
            bounds = np.stack([footer.low, footer.high + 1], axis=1).ravel()
            rows = np.stack([footer.edges[:-1], footer.edges[1:]], axis=1).ravel()
            total += np.interp(latents, bounds, rows)
        return total

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[pl.DataFrame]:
        """Rows of `schema.ACTIVATIONS` with low <= latent < high: one frame per range, by shard, then by latent.

        `ranges` (low, high) are ascending and disjoint.
        """
        low, high = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
        found: list[list[pl.DataFrame]] = [[] for _ in ranges]
        for footer in self._footers:
            overlaps = (footer.low < high[:, None]) & (footer.high >= low[:, None])
            groups = np.flatnonzero(overlaps.any(axis=0))
            if not len(groups):
                continue
            with pq.ParquetFile(footer.path, metadata=footer.metadata) as file:
                table = file.read_row_groups(groups.tolist(), columns=self._columns, use_threads=False)
            frame = pl.DataFrame(pl.from_arrow(table, rechunk=False))
            latent = array(frame["latent"])
            bounds = zip(np.searchsorted(latent, low), np.searchsorted(latent, high), strict=True)
            for parts, (a, b) in zip(found, bounds, strict=True):
                if a < b:
                    parts.append(frame[int(a) : int(b)])
        empty = schema.ACTIVATIONS.empty().select(self._columns)
        return [pl.concat(parts) if parts else empty for parts in found]

    def sweep(self, blocks: Sequence[UInt32[np.ndarray, " _"]]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yields (index, pairs) of each block of latents (ascending, disjoint), in as few reads as memory allows.

        A frame holds the pairs from the first to the last latent of its block, in the order of `read`.
        """
        ranges = [(int(block[0]), int(block[-1]) + 1) for block in blocks]
        rows = np.diff(self.below(np.array(ranges, dtype=np.int64).ravel()))[::2]
        most = min(AT_ONCE, max(AT_ONCE // 2, _ROW_GROUPS * schema.ACTIVATIONS.row_group * len(self._footers)))
        first, n_rows = 0, 0.0
        for index, n_more in enumerate(rows.tolist()):
            if index > first and n_rows + n_more > most:
                yield from enumerate(self.read(ranges[first:index]), start=first)
                first, n_rows = index, 0.0
            n_rows += n_more
        yield from enumerate(self.read(ranges[first:]), start=first)


def array(column: pl.Series) -> UInt32[np.ndarray, " n"] | Float32[np.ndarray, " n"]:
    """A column of a frame of `ActivationReader` as one array.

    NumPy does the copying, because the memory it frees stays in the process (`machine/memory.py`).
    """
    chunks = [chunk.to_numpy() for chunk in column.get_chunks()]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
