"""Packing: the split of a cluster, the token array, the spans of documents, and the 13-grams that splits share.

What belongs here: everything that turns the token ids of kept documents into sequences. Reads the scratch file that
`corpus/building.py` writes (uint32, one document after the other, no separators); writes `tokens.npy` and
`shared_13grams.npy`. That module's docstring says what the files hold. Texts are not used here.

Method: docs/methods.md, Data (splits, 13-grams).
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


_CHUNK = 1 << 18
"""Tokens in memory at once."""


@dataclass(frozen=True)
class CorpusPlan:
    """Everything that decides a corpus, except its documents and its tokenizer.

    Raises CorpusError if sequences are shorter than 2 tokens, or if the shares are not one per split with sum 1.
    """

    sequence_length: int
    """Tokens per sequence, BOS included."""
    separator_id: int
    """The token between documents: the tokenizer's end of text unless the model declares another one."""
    bos_id: int | None = None
    """First token of every sequence; None: no BOS."""
    max_tokens: int | None = None
    """Reading stops before the document that would exceed this number of tokens; a document is never cut to fit."""
    shares: tuple[float, ...] = (0.40, 0.10, 0.50)
    """Share of clusters in each of `SPLITS`."""
    seed: int = 0
    """Decides, with the content of a cluster, its split."""
    near_duplicate: float = 0.8
    """Estimated similarity to a kept document from which a document is left out (`corpus/duplicates.py`)."""

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise CorpusError(f"sequences of {self.sequence_length} tokens", expected="at least 2 tokens")
        if len(self.shares) != len(SPLITS) or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-9:
            raise CorpusError(
                f"shares {self.shares} of the splits",
                expected=f"{len(SPLITS)} numbers from 0 to 1 that add up to 1",
            )

    @property
    def payload(self) -> int:
        """Tokens of a sequence without BOS."""
        return self.sequence_length - (self.bos_id is not None)


def split_of(representative: str, plan: CorpusPlan) -> str:
    """Split of a cluster, decided by the plan's seed and shares and by the cluster's representative.

    `representative`: the smallest `content_sha256` of the cluster's documents.
    """
    digest = hashlib.sha256(f"{plan.seed}:{representative}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    edges = np.cumsum(plan.shares)
    last = max(i for i, share in enumerate(plan.shares) if share > 0)  # rounding must not reach a split of share 0
    return SPLITS[min(int(np.searchsorted(edges, place, side="right")), last)]


@dataclass(frozen=True)
class Stream:
    """The documents of one split, joined by separators."""

    documents: UInt32[np.ndarray, " n"]
    """Number of each document."""
    sources: Int64[np.ndarray, " n"]
    """Where each document begins in the scratch file, in tokens."""
    lengths: Int64[np.ndarray, " n"]
    """Tokens of each document, without the separator."""
    starts: Int64[np.ndarray, " n"]
    """Where each document begins in the stream, in tokens."""

    @classmethod
    def of(
        cls,
        kept: Int64[np.ndarray, " kept"],
        lengths: Int64[np.ndarray, " kept"],
        chosen: Bool[np.ndarray, " kept"],
    ) -> Stream:
        """A stream of the chosen documents.

        `kept` and `lengths` are the numbers and lengths of all documents in the scratch file, in its order.
        """
        sources, own = np.cumsum(lengths) - lengths, lengths[chosen]
        return cls(kept[chosen].astype(np.uint32), sources[chosen], own, np.cumsum(own + 1) - (own + 1))

    def rows(self, payload: int) -> int:
        """Number of whole sequences in the stream, which has no separator after the last document."""
        return int(max(self.lengths.sum() + len(self.lengths) - 1, 0) // payload)

    def read(self, scratch: UInt32[np.ndarray, " tokens"], start: int, stop: int, separator: int) -> np.ndarray:
        """Tokens `start` to `stop` of the stream (uint32), separators included."""
        place = np.arange(start, stop)
        document = np.searchsorted(self.starts, place, side="right") - 1
        offset = place - self.starts[document]
        inside = offset < self.lengths[document]
        tokens = np.full(len(place), separator, dtype=np.uint32)
        tokens[inside] = scratch[(self.sources[document] + offset)[inside]]
        return tokens

    def spans(self, n_rows: int, first_row: int, plan: CorpusPlan) -> pl.DataFrame:
        """Rows of `schema.SPANS`: one per piece of a document within one sequence, none for the dropped tail.

        `first_row`: the number of the split's first sequence in the token array.
        """
        ends = np.minimum(self.starts + self.lengths, n_rows * plan.payload)
        inside = self.starts < ends
        starts, ends, documents = self.starts[inside], ends[inside], self.documents[inside]
        first, last = starts // plan.payload, (ends - 1) // plan.payload
        pieces = last - first + 1
        row = np.repeat(first - (np.cumsum(pieces) - pieces), pieces) + np.arange(pieces.sum())
        # What to add to a place in the stream to get a position: the rows of earlier splits, and one BOS per row.
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
    """Writes the token array to `path` and returns rows of `schema.SPANS`, ascending by position.

    `counts`: sequences of each stream.
    """
    n_sequences, done, spans = sum(counts), 0, []
    step = max(_CHUNK // plan.payload, 1)
    with path.open("wb") as out:
        _header(out, np.dtype(np.uint32), (n_sequences, plan.sequence_length))
        for stream, n_rows in zip(streams, counts, strict=True):
            spans.append(stream.spans(n_rows, done, plan))
            for start in range(0, n_rows, step):
                stop = min(start + step, n_rows)
                block = np.empty((stop - start, plan.sequence_length), dtype=np.uint32)
                # Mapped again for each block: the pages of a map that stays open count as memory of this process.
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
    """Writes the header of an `.npy` file, to be followed by the array's bytes.

    Writing a stream keeps memory flat: the pages of a writable memory map count as memory until they are flushed.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)


def mark_shared(folder: Path, counts: list[int], plan: CorpusPlan, progress: Progress) -> list[int]:
    """Writes `shared_13grams.npy` and returns the number of marked positions of each split.

    A 13-gram lies within one sequence and never includes its BOS; it may include a separator. Two different 13-grams
    count as equal with probability near 2^-64 (`gram_hashes`).
    """
    bos = plan.sequence_length - plan.payload
    grams_per_row = max(plan.payload - GRAM + 1, 0)
    step = max(_CHUNK // plan.sequence_length, 1)
    # The 13-grams of earlier splits. Only this array grows with the corpus, so it is filled and sorted in place.
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
                if start < sum(counts[:-1]):  # no split comes after the last one
                    known[start * grams_per_row : stop * grams_per_row] = grams.ravel()
                progress(stop, sum(counts), "sequences compared")
            marked.append(total)
            first += n_rows
            known[: first * grams_per_row].sort()
    return marked


def _member(values: UInt64[np.ndarray, "*shape"], known: UInt64[np.ndarray, " sorted"]) -> Bool[np.ndarray, "*shape"]:
    """Whether each value is among the known ones (ascending)."""
    if not len(known):
        return np.zeros(values.shape, dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: Bool[np.ndarray, "*shape"] = known[place] == values
    return found
