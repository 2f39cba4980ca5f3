"""Writes the search index, all rows of one SAE at a time, with a single writer.

What belongs here: the rows of an SAE (`explanation_rows`), and writing them to the present index (`writing`) or to a
new one that replaces it when it is complete (`rebuilding`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.config.entries import split_partition
from latentgloss.embeddings.lance import index_words
from latentgloss.embeddings.row_checks import CHECK, checksums, table_damage, with_column
from latentgloss.embeddings.search_index import NAME, SCORERS, TEXT_COLUMNS
from latentgloss.errors import StoreError
from latentgloss.pipeline.graph import STAGES, made_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float32

    from latentgloss.embeddings.search_index import SearchIndex
    from latentgloss.store import Version


BEGUN = "search-begun"
"""The table that `rebuilding` writes until it is complete. A rebuild first removes one left by an interrupted one."""


def explanation_rows(partition: str, inputs: Mapping[str, Version]) -> pl.DataFrame:
    """The rows of one SAE without vectors: explanations of status `ok`, density, lowest score of each scorer.

    `inputs`: versions of `explanations`, `activation_cache` and any scoring stages, by stage.
    """
    model, hookpoint, sae = split_partition(partition)
    rows = (
        inputs["explanations"]
        .read(schema.EXPLANATIONS)
        .filter(pl.col("status") == "ok", ~pl.col("explainer").str.starts_with("null:"))
        .select("latent", "explainer", "explanation")
    )
    density = inputs["activation_cache"].scan(schema.LATENTS).select("latent", "density").collect()
    rows = rows.join(density, on="latent", how="left", validate="m:1")
    found: set[str] = set()
    for stage, version in inputs.items():
        # Scores made from other explanations are left out.
        if STAGES[stage].noun == "scores" and made_from(version, inputs["explanations"]):
            lowest = (
                version.scan(schema.SCORES)
                .filter(pl.col("status") == "ok", pl.col("negatives") != schema.POPULATION)
                .group_by("latent", "explainer", "scorer")
                .agg(pl.col("score").min())
                .collect()
            )
            for (scorer,), part in sorted(lowest.group_by("scorer")):
                if scorer in SCORERS:
                    # A score of the latent itself (explainer `none`) goes to each of its explanations.
                    on = ["latent"] if part["explainer"].unique().to_list() == ["none"] else ["latent", "explainer"]
                    chosen = part.select(*on, pl.col("score").alias(str(scorer)))
                    rows = rows.join(chosen, on=on, how="left")
                    found.add(str(scorer))
    return rows.with_columns(
        *(pl.lit(None, dtype=pl.Float64).alias(name) for name in SCORERS if name not in found),
        key=pl.format("{}#{}#{}", pl.lit(partition), "latent", "explainer"),
        model=pl.lit(model),
        hookpoint=pl.lit(hookpoint),
        sae=pl.lit(sae),
        partition=pl.lit(partition),
    ).sort("latent", "explainer")


@contextlib.contextmanager
def writing(index: SearchIndex, *, replace: bool) -> Iterator[Writer]:
    """Locks the index and yields its only writer. Raises StoreError.

    `replace`: removes a table that was made with another embedder or cannot be read, instead of raising.
    """
    with index.tables.lock(NAME):
        writer = Writer(index, NAME, replace)
        yield writer
        writer.finish()


@contextlib.contextmanager
def rebuilding(index: SearchIndex) -> Iterator[Writer]:
    """Locks the index and yields the writer of a new table, which replaces the present one when the block ends.

    An exception in the block leaves the present table as it is. Raises StoreError.
    """
    with index.tables.lock(NAME):
        index.tables.drop(BEGUN)
        writer = Writer(index, BEGUN, replace=True)
        yield writer
        writer.finish()
        if writer.table is None:  # no explanation anywhere
            index.tables.drop(NAME)
        else:
            index.tables.rename(BEGUN, NAME)


class Writer:
    """Writes the rows of one SAE after another, each in one transaction.

    Created by `writing` and `rebuilding`, which hold the lock.
    """

    def __init__(self, index: SearchIndex, name: str, replace: bool) -> None:
        self.index, self.name, self.tables = index, name, index.tables
        try:
            self.table = self.tables.open(name, index.facts)
        except StoreError as e:
            # Removed if it was made with another embedder, or if a second reading also fails: a table that could not
            # be read once may be sound.
            if not replace or (e.__cause__ is not None and table_damage(self.tables, name) is None):
                raise
            self.tables.drop(name)
            self.table = None
        if self.table is not None:
            self._index_words(self.table)

    def put(
        self, partition: str, rows: pl.DataFrame, vectors: Float32[np.ndarray, "rows dimension"], version: str
    ) -> None:
        """Replaces the rows of an SAE. `version`: fingerprint of the `search_index` version they belong to."""
        if rows.is_empty():
            self._delete(f"partition = '{partition}'")
            return
        data = _arrow(rows.with_columns(version=pl.lit(version)), vectors)
        self.table = self.tables.open(self.name, {**self.index.facts, "dimension": vectors.shape[1]})
        if self.table is None:
            self.table = self.tables.create(self.name, data.schema, self.index.facts)
            self._index_words(self.table)
        with self.tables.writing(self.name):
            with_column(self.table)
            (
                self.table.merge_insert("key")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(f"partition = '{partition}'")
                .execute(data)
            )

    def keep_only(self, model: str, partitions: Sequence[str]) -> None:
        """Removes the rows of all SAEs of the model that are not in `partitions`."""
        listed = ", ".join(f"'{name}'" for name in partitions)  # validated names, which contain no quotes
        self._delete(f"model = '{model}'" + (f" AND partition NOT IN ({listed})" if listed else ""))

    def _delete(self, where: str) -> None:
        if self.table is not None:
            with self.tables.writing(self.name):
                self.table.delete(where)

    def _index_words(self, table: Any) -> None:
        """Makes the full-text index if there is none, before any row is written.

        Without it LanceDB also finds words, but by other rules, and an interrupted writer would leave such a table.
        """
        with self.tables.writing(self.name):
            index_words(table, "explanation")

    def finish(self) -> None:
        """Compacts the table, which also adds new rows to the full-text index."""
        if self.table is not None:
            self.tables.compact(self.name, self.table)


def _arrow(rows: pl.DataFrame, vectors: Float32[np.ndarray, "rows dimension"]) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns = {
        **{name: pa.array(rows[name].to_list(), pa.string()) for name in TEXT_COLUMNS},
        "latent": pa.array(rows["latent"].to_numpy(), pa.uint32()),
        **{name: pa.array(rows[name].to_list(), pa.float64()) for name in ("density", *SCORERS)},
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        CHECK: pa.array(checksums(rows["key"].to_list(), vectors), pa.uint32()),
    }
    return pa.table(columns)
