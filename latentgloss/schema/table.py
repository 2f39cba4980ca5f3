"""Every table latentgloss stores: columns, dtypes, units, one sentence each.

What belongs here: the shape of stored data and nothing else. A stage builds a frame, passes it through
`Table.conform` and hands it to the store; a reader finds the same columns. `docs/data_dictionary.md` is
generated from this file (`make docs`), so a column that is not described does not exist.
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
"""Order matters: a later split never contains what an earlier one showed. Share of clusters 40/10/50."""

POPULATION = "population"
"""Arm of scores that stand for all non-activating contexts: every stratum, weighted by its share."""

DEFAULT_PROFILE = "default"
"""Whose scores need no label; those of any other profile are shown with its name."""
STRATA = ("similar", "neighbour", "same_document", "random")
"""Kinds of non-activating context, disjoint in this order (a context belongs to the first that fits)."""

GRAM = 13
"""Tokens in a row that nothing scored shares with anything shown."""

BLOCK = 256
"""Latents per block: latent ids with the same `id // BLOCK` are computed and stored together."""


@dataclass(frozen=True)
class Column:
    name: str
    dtype: Any
    doc: str
    unit: str = ""
    nullable: bool = False
    encoding: str = ""
    """Parquet encoding; empty: the writer's choice."""


@dataclass(frozen=True)
class Table:
    """One stored table. `part` names the column whose values are versioned apart (see `store.py`)."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    part: str | None = None
    row_group: int = 2**20
    """Rows per Parquet row group; what a reader with a predicate must read at least."""

    @cached_property
    def schema(self) -> pl.Schema:
        return pl.Schema({c.name: c.dtype for c in self.columns})

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns `frame` with exactly this table's columns, order and dtypes.

        Raises StoreError if a column is missing or unknown, if a cast loses values, or if a column that is
        not nullable holds nulls.
        """
        missing = [c.name for c in self.columns if c.name not in frame.columns]
        unknown = [c for c in frame.columns if c not in self.schema]
        if missing or unknown:
            raise StoreError(
                f"table {self.name!r} was given columns {frame.columns}",
                expected=f"exactly {list(self.schema)}",
                todo="this is a defect in the stage that writes it; please report it",
            )
        frame = frame.select(list(self.schema)).cast(self.schema, strict=True)
        for column in self.columns:
            if not column.nullable and frame[column.name].null_count():
                raise StoreError(
                    f"table {self.name!r} was given {frame[column.name].null_count()} empty values in {column.name!r}",
                    expected="a value in every row",
                    todo="this is a defect in the stage that writes it; please report it",
                )
        return frame

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)

    def frame(self, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
        return self.conform(pl.DataFrame(list(rows), schema=self.schema))


LATENT = Column("latent", pl.UInt32, "Index of the latent in its SAE.")
SPLIT = Column("split", pl.String, "`explain`, `select` or `test`; no document is in two of them.")
CONTEXT = Column("context", pl.UInt32, "Number of the window in the corpus: position // context_length.")
EXPLAINER = Column(
    "explainer", pl.String, "Name of the explainer, as in settings; `none`: the latent itself is judged."
)
