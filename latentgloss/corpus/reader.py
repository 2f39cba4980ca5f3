"""Reading a corpus back from disk.

What belongs here: the corpus as arrays, and lookups by window and position. Reads the files that `corpus/building.py`
describes; writes nothing. Which windows samples may hold is in `contexts/windows.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, Integer, UInt8, UInt32

from latentgloss import schema
from latentgloss.errors import CorpusError
from latentgloss.schema import GRAM, SPLITS

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. `tokens` and `shared_13grams` are memory maps."""

    folder: Path
    tokens: UInt32[np.ndarray, "sequences length"]
    shared_13grams: Bool[np.ndarray, "sequences length"]
    """Whether the 13 tokens from each position on also occur in an earlier split."""
    split_of_sequence: UInt8[np.ndarray, " sequences"]
    """Index into `SPLITS`."""
    span_document: UInt32[np.ndarray, " spans"]
    """Spans are pieces of a document within one sequence, ascending and disjoint."""
    span_start: UInt32[np.ndarray, " spans"]
    """First position of each span."""
    span_end: UInt32[np.ndarray, " spans"]
    """Position after the last token of each span."""

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Opens the corpus in a folder.

        Raises CorpusError, which names the file, if one is missing or unreadable, or if files do not fit together.
        """
        tokens, shared = (_array(folder / name) for name in ("tokens.npy", "shared_13grams.npy"))
        spans = _frame(folder / "spans.parquet", schema.SPANS)
        names = _frame(folder / "sequences.parquet", schema.SEQUENCES)["split"]
        splits = names.replace_strict(dict(zip(SPLITS, range(len(SPLITS)), strict=True)), return_dtype=pl.UInt8)
        fits = (
            tokens.dtype == np.uint32
            and tokens.ndim == 2
            and shared.dtype == bool
            and tokens.shape == shared.shape
            and len(splits) == len(tokens)
        )
        if not fits:
            raise CorpusError(
                f"{folder}: tokens {tokens.dtype}{list(tokens.shape)}, shared_13grams {shared.dtype}"
                f"{list(shared.shape)} and {len(splits)} sequences do not fit",
                expected="uint32 and bool arrays of one shape, one row per sequence",
                todo="materialise tokenized_corpus again",
            )
        columns = (spans[name].to_numpy() for name in ("document", "start", "end"))
        return cls(folder, tokens, shared, splits.to_numpy(), *columns)

    @property
    def documents(self) -> pl.LazyFrame:
        """Rows of `schema.DOCUMENTS`, read lazily."""
        return pl.scan_parquet(self.folder / "documents.parquet")

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence, BOS included."""
        return int(self.tokens.shape[1])

    def contexts(self, context_ids: Integer[np.ndarray, " n"], length: int) -> UInt32[np.ndarray, "n length"]:
        """Tokens of the windows `context_ids`; window c is positions c * length to (c + 1) * length.

        Like all methods that take a window length, it raises CorpusError if `length` does not divide the sequence
        length.
        """
        tokens: UInt32[np.ndarray, "n length"] = self._windows(self.tokens, length)[context_ids]
        return tokens

    def split_of_context(self, length: int) -> UInt8[np.ndarray, " contexts"]:
        """Split of every window of `length` tokens, as an index into `SPLITS`."""
        return np.repeat(self.split_of_sequence, self._windows(self.tokens, length).shape[0] // len(self.tokens))

    def shares_13gram(self, length: int) -> Bool[np.ndarray, " contexts"]:
        """Whether each window of `length` tokens holds a whole 13-gram that also occurs in an earlier split."""
        windows = self._windows(self.shared_13grams, length)
        return np.array(windows[:, : max(length - GRAM + 1, 0)].any(axis=1))

    def document_of_position(self, positions: Integer[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        """Document at each position; -1 at BOS and separators."""
        span = np.searchsorted(self.span_start, positions, side="right") - 1
        inside = (span >= 0) & (positions < self.span_end[span])
        return np.where(inside, self.span_document[span].astype(np.int64), -1)

    def _windows(self, array: np.ndarray, length: int) -> np.ndarray:
        if length < 1 or self.sequence_length % length:
            raise CorpusError(
                f"contexts of {length} tokens do not divide sequences of {self.sequence_length}",
                expected="a context length that divides the sequence length",
                todo="change `contexts.length` in the settings or `corpus.sequence_length` of the model",
            )
        return array.reshape(-1, length)


def _array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise CorpusError(f"{path} cannot be read ({e})", todo="materialise tokenized_corpus again") from e
    return array


def _frame(path: Path, table: schema.Table) -> pl.DataFrame:
    try:
        return table.conform(pl.read_parquet(path))
    except (OSError, pl.exceptions.PolarsError) as e:
        raise CorpusError(f"{path} cannot be read ({e})", todo="materialise tokenized_corpus again") from e
