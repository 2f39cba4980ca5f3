"""The activation cache, read by latent.

What belongs here: which row groups of which shards hold the pairs of some latents, and reading them. A shard covers
a range of positions and is sorted by latent, so the pairs of one block of latents are a short run in every shard.
Opening all shards for each block, and decoding a row group for a few of its rows, costs far more than computing with
what is found: footers are read once, and the row groups of many blocks in one go.
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
"""Pairs read in one go, about, at most: 100 MB. While the first are read, whoever computes waits."""

_ROW_GROUPS = 4
"""Row groups of each shard that make a reading large enough: those at its ends are decoded for a few rows only."""


@dataclass(frozen=True)
class _Footer:
    """What a shard's footer says of its row groups."""

    path: Path
    metadata: pq.FileMetaData
    low: Int64[np.ndarray, " groups"]
    """Least latent of each row group."""
    high: Int64[np.ndarray, " groups"]
    edges: Int64[np.ndarray, " edges"]
    """Rows before each row group; the total last."""

    @classmethod
    def of(cls, path: Path) -> _Footer:
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        # A row group without rows has no statistics.
        found = (group.column(0).statistics for group in groups)
        bounds = [(s.min, s.max) if s is not None and s.has_min_max else (0, 2**32 - 1) for s in found]
        low, high = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
        return cls(path, metadata, low, high, np.append(0, np.cumsum([group.num_rows for group in groups])))


class ActivationReader:
    """The shards of a cache, in order of position."""

    def __init__(self, paths: Sequence[Path], *, strengths: bool = True) -> None:
        """`strengths`: read the column `activation`, too, a third of the work."""
        self._columns = [name for name in schema.ACTIVATIONS.schema if strengths or name != "activation"]
        self._footers = [footer for footer in map(_Footer.of, paths) if len(footer.low)]

    def below(self, latents: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """About how many pairs the latents below each have, from the footers alone. `latents` is ascending."""
        total = np.zeros(len(latents))
        for f in self._footers:
            at = np.stack([f.low, f.high + 1], axis=1).ravel()
            total += np.interp(latents, at, np.stack([f.edges[:-1], f.edges[1:]], axis=1).ravel())
        return total

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[pl.DataFrame]:
        """Rows of `schema.ACTIVATIONS` with low <= latent < high, one frame per range, by shard and there by latent.

        `ranges` are ascending and disjoint.
        """
        low, high = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
        found: list[list[pl.DataFrame]] = [[] for _ in ranges]
        for footer in self._footers:
            meets = (footer.low < high[:, None]) & (footer.high >= low[:, None])
            groups = np.flatnonzero(meets.any(axis=0))
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
        none = schema.ACTIVATIONS.empty().select(self._columns)
        return [pl.concat(parts) if parts else none for parts in found]

    def sweep(self, blocks: Sequence[UInt32[np.ndarray, " _"]]) -> Iterator[tuple[int, pl.DataFrame]]:
        """(index, pairs) of each block of latents (ascending, disjoint), with as few readings as memory allows.

        A frame holds the pairs from the first to the last latent of its block.
        """
        ranges = [(int(block[0]), int(block[-1]) + 1) for block in blocks]
        rows = np.diff(self.below(np.array(ranges, dtype=np.int64).ravel()))[::2]
        most = min(AT_ONCE, max(AT_ONCE // 2, _ROW_GROUPS * schema.ACTIVATIONS.row_group * len(self._footers)))
        begin, held = 0, 0.0
        for index, more in enumerate(rows.tolist()):
            if index > begin and held + more > most:
                yield from enumerate(self.read(ranges[begin:index]), start=begin)
                begin, held = index, 0.0
            held += more
        yield from enumerate(self.read(ranges[begin:]), start=begin)


def array(column: pl.Series) -> UInt32[np.ndarray, " n"] | Float32[np.ndarray, " n"]:
    """A column of a frame of `ActivationReader` in one piece. Copied by NumPy, whose memory is kept (`memory.py`)."""
    chunks = [chunk.to_numpy() for chunk in column.get_chunks()]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
