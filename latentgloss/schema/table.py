"""What a table and a column are, and the constants and columns that several tables share.

What belongs here: the form of stored data and nothing else. A stage builds a frame, passes it through `Table.conform`
and gives it to the store, so that every reader finds exactly the declared columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable


SPLITS = ("explain", "select", "test")
"""The splits. Their order matters: no window of a later split repeats text of an earlier one. By default they contain
40 %, 10 % and 50 % of the clusters of near-duplicates."""

POPULATION = "population"
"""The arm whose scores stand for all non-activating contexts: every stratum, weighted by its share."""

DEFAULT_PROFILE = "default"
"""The profile whose scores are shown without a label; scores of any other profile are shown with its name."""
STRATA = ("similar", "neighbour", "same_document", "random")
"""Kinds of non-activating context. A context belongs to the first kind that fits, so that they are disjoint."""

GRAM = 13
"""A window of select or test is excluded if it shares this many tokens in a row with an earlier split."""

BLOCK = 256
"""Latents per block. Latents with the same `latent // BLOCK` are computed and stored together."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    dtype: Any
    """A Polars data type."""
    doc: str
    """Its meaning, in a sentence for docs/data_dictionary.md."""
    unit: str = ""
    nullable: bool = False
    """Whether values may be empty."""
    encoding: str = ""
    """Parquet encoding; empty means that the writer chooses."""


@dataclass(frozen=True)
class Table:
    """One stored table."""

    name: str
    doc: str
    """What a row is, in a sentence or two for docs/data_dictionary.md."""
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """Columns that together identify a row."""
    part: str | None = None
    """The column by whose values the content is divided into parts, each with its own hash (`store/store.py`)."""
    row_group: int = 2**20
    """Rows per Parquet row group, which is the least that a reader with a predicate reads."""

    @cached_property
    def schema(self) -> pl.Schema:
        """Names and dtypes of the columns, in order."""
        return pl.Schema({c.name: c.dtype for c in self.columns})

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with exactly this table's columns and dtypes, in the table's order.

        Raises StoreError if a column is missing or unknown or if a column that is not nullable contains nulls, and a
        Polars error if a value does not fit the column's dtype.
        """
        missing = [c.name for c in self.columns if c.name not in frame.columns]
        unknown = [c for c in frame.columns if c not in self.schema]
        if missing or unknown:
            raise StoreError(
                f"table {self.name!r} was given columns {frame.columns}",
                expected=f"exactly {list(self.schema)}",
                todo="this is a bug in the stage that writes the table; please report it",
            )
        frame = frame.select(list(self.schema)).cast(self.schema, strict=True)
        for column in self.columns:
            if not column.nullable and frame[column.name].null_count():
                raise StoreError(
                    f"table {self.name!r} was given {frame[column.name].null_count()} empty values in {column.name!r}",
                    expected="a value in every row",
                    todo="this is a bug in the stage that writes the table; please report it",
                )
        return frame

    def empty(self) -> pl.DataFrame:
        """A frame of this table without rows."""
        return pl.DataFrame(schema=self.schema)

    def frame(self, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
        """A frame of this table from rows given as dictionaries. Raises as `conform` does."""
        return self.conform(pl.DataFrame(list(rows), schema=self.schema))


LATENT = Column("latent", pl.UInt32, "Index of the latent in its SAE.")
SPLIT = Column("split", pl.String, "`explain`, `select` or `test`; no document is in two splits.")
CONTEXT = Column("context", pl.UInt32, "Number of the window in the corpus: position // `contexts.length`.")
EXPLAINER = Column(
    "explainer", pl.String, "Name of the explainer, as in settings; `none` if the latent itself is judged."
)
