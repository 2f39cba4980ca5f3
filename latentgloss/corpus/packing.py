"""Packing a corpus: the split of a cluster, the token array, the spans, and the 13-grams splits share.

What belongs here: everything that turns kept documents (token ids in a scratch file, one after the other)
into sequences. No text is seen here. `corpus.py` says what the files mean.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, UInt32, UInt64

from latentgloss.corpus.duplicates import gram_hashes
from latentgloss.errors import CorpusError
from latentgloss.schema import GRAM, SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Progress = Callable[[int, int | None, str], None]


_CHUNK = 1 << 18  # tokens handled at once


@dataclass(frozen=True)
class CorpusPlan:
    """Everything that decides a corpus beside its documents and its tokenizer."""

    sequence_length: int
    separator_id: int
    """Put between documents: the tokenizer's end of text."""
    bos_id: int | None = None
    """First token of every sequence; None: no BOS."""
    max_tokens: int | None = None
    """Reading stops before the document that would exceed this; a document is kept whole or not at all."""
    shares: tuple[float, ...] = (0.40, 0.10, 0.50)
    """Share of clusters in each of `SPLITS`."""
    seed: int = 0
    near_duplicate: float = 0.8
    """Estimated similarity to a kept document from which one is left out (see corpus_duplicates)."""

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise CorpusError(f"sequences of {self.sequence_length} tokens", expected="at least 2")
        if len(self.shares) != len(SPLITS) or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-9:
            raise CorpusError(
                f"shares {self.shares} of the splits",
                expected=f"{len(SPLITS)} numbers from 0 to 1 that add up to 1",
            )

    @property
    def payload(self) -> int:
        """Tokens of a sequence that are not BOS."""
        return self.sequence_length - (self.bos_id is not None)


def split_of(representative: str, plan: CorpusPlan) -> str:
    """Split of a cluster, from the smallest `content_sha256` of its documents, the seed and the shares."""
    digest = hashlib.sha256(f"{plan.seed}:{representative}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    edges = np.cumsum(plan.shares)
    last = max(i for i, share in enumerate(plan.shares) if share > 0)  # rounding never opens a split of share 0
    return SPLITS[min(int(np.searchsorted(edges, place, side="right")), last)]


@dataclass(frozen=True)
class Stream:
    """The documents of one split, joined by separators."""

    documents: UInt32[np.ndarray, " n"]
    sources: Int64[np.ndarray, " n"]
    """Where each begins in the scratch file."""
    lengths: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " n"]
    """Where each begins in the stream."""

    @classmethod
    def of(
        cls,
        kept: Int64[np.ndarray, " kept"],
        lengths: Int64[np.ndarray, " kept"],
        mine: Bool[np.ndarray, " kept"],
    ) -> Stream:
        """Of the documents in the scratch file (numbers and lengths, in its order), those that are `mine`."""
        sources, own = np.cumsum(lengths) - lengths, lengths[mine]
        return cls(kept[mine].astype(np.uint32), sources[mine], own, np.cumsum(own + 1) - (own + 1))

    def rows(self, payload: int) -> int:
        """Whole sequences in the stream. The last document has no separator after it."""
        return int(max(self.lengths.sum() + len(self.lengths) - 1, 0) // payload)

    def read(self, scratch: UInt32[np.ndarray, " tokens"], start: int, stop: int, separator: int) -> np.ndarray:
        """Tokens `start` to `stop` of the stream."""
        place = np.arange(start, stop)
        owner = np.searchsorted(self.starts, place, side="right") - 1
        offset = place - self.starts[owner]
        inside = offset < self.lengths[owner]
        tokens = np.full(len(place), separator, dtype=np.uint32)
        tokens[inside] = scratch[(self.sources[owner] + offset)[inside]]
        return tokens

    def spans(self, n_rows: int, first_row: int, plan: CorpusPlan) -> pl.DataFrame:
        """One row per piece of a document within one sequence; what lies in the dropped tail has none."""
        ends = np.minimum(self.starts + self.lengths, n_rows * plan.payload)
        inside = self.starts < ends
        starts, ends, documents = self.starts[inside], ends[inside], self.documents[inside]
        first, last = starts // plan.payload, (ends - 1) // plan.payload
        pieces = last - first + 1
        row = np.repeat(first - (np.cumsum(pieces) - pieces), pieces) + np.arange(pieces.sum())
        # From a place in the stream to a position: the rows of earlier splits, and one BOS per row.
        shift = (first_row + row) * plan.sequence_length + (plan.sequence_length - plan.payload) - row * plan.payload
        return pl.DataFrame(
            {
                "document": np.repeat(documents, pieces),
                "start": np.maximum(np.repeat(starts, pieces), row * plan.payload) + shift,
                "end": np.minimum(np.repeat(ends, pieces), (row + 1) * plan.payload) + shift,
            }
        )


def pack(
    scratch: Path, streams: list[Stream], counts: list[int], plan: CorpusPlan, path: Path, progress: Progress
) -> pl.DataFrame:
    """Writes the token array and returns the spans, by position."""
    n_sequences, done, spans = sum(counts), 0, []
    step = max(_CHUNK // plan.payload, 1)
    with path.open("wb") as out:
        _header(out, np.dtype(np.uint32), (n_sequences, plan.sequence_length))
        for stream, n_rows in zip(streams, counts, strict=True):
            spans.append(stream.spans(n_rows, done, plan))
            for start in range(0, n_rows, step):
                stop = min(start + step, n_rows)
                block = np.empty((stop - start, plan.sequence_length), dtype=np.uint32)
                # Mapped anew each time: pages of a map that stays open count as memory of this process.
                tokens = np.memmap(scratch, dtype=np.uint32, mode="r")
                flat = stream.read(tokens, start * plan.payload, stop * plan.payload, plan.separator_id)
                block[:, -plan.payload :] = flat.reshape(-1, plan.payload)
                if plan.bos_id is not None:
                    block[:, 0] = plan.bos_id
                out.write(block.tobytes())
                progress(done + stop, n_sequences, "sequences packed")
            done += n_rows
    return pl.concat(spans)


def _header(out: Any, dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    # Written as a stream: pages of a writable memory map would count as memory until they are flushed.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)


def mark_shared(folder: Path, counts: list[int], plan: CorpusPlan, progress: Progress) -> list[int]:
    """Writes `shared_13grams.npy`; returns how many positions are marked, by split.

    A 13-gram lies within one sequence and never includes its BOS; it may include a separator.
    """
    bos = plan.sequence_length - plan.payload
    grams_per_row = max(plan.payload - GRAM + 1, 0)
    step = max(_CHUNK // plan.sequence_length, 1)
    # The grams of earlier splits: one array, filled and sorted in place, since it is all that grows with the corpus.
    known: UInt64[np.ndarray, " grams"] = np.empty(sum(counts[:-1]) * grams_per_row, dtype=np.uint64)
    marked, first = [], 0
    with (folder / "shared_13grams.npy").open("wb") as out:
        _header(out, np.dtype(bool), (sum(counts), plan.sequence_length))
        for n_rows in counts:
            earlier = known[: first * grams_per_row]
            total = 0
            for start in range(first, first + n_rows, step):
                stop = min(start + step, first + n_rows)
                tokens = np.load(folder / "tokens.npy", mmap_mode="r")[start:stop, bos:]
                grams = gram_hashes(tokens, GRAM)
                shared = np.zeros((stop - start, plan.sequence_length), dtype=bool)
                shared[:, bos : bos + grams_per_row] = _member(grams, earlier)
                out.write(shared.tobytes())
                total += int(shared.sum())
                if start < sum(counts[:-1]):  # nothing comes after the last split
                    known[start * grams_per_row : stop * grams_per_row] = grams.ravel()
                progress(stop, sum(counts), "sequences compared")
            marked.append(total)
            first += n_rows
            known[: first * grams_per_row].sort()
    return marked


def _member(values: UInt64[np.ndarray, "*shape"], known: UInt64[np.ndarray, " sorted"]) -> Bool[np.ndarray, "*shape"]:
    if not len(known):
        return np.zeros(values.shape, dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: Bool[np.ndarray, "*shape"] = known[place] == values
    return found
