"""The search index: one LanceDB table with the explanations of all SAEs, their vectors, full text and scores.

    search.lance: key, model, hookpoint, sae, partition, latent, explainer, explanation, density, one column per
                  scorer, vector, check, version

What belongs here: the table's columns and the three ways to search it. `search_writer.py` writes it.

The table has a row for each explanation of status `ok`, null explanations excepted. All of it is derived and can be
rebuilt from the current versions (`workspace/search.py`). `version` is the fingerprint of the `search_index` version
that a row belongs to, so that a reader can detect an outdated index. That version records the number of rows of each
SAE, so that an incomplete index, whose writer was stopped, is detected too.

A scorer's column holds the *lowest* score of an explanation over judges and kinds of negatives, so that a filter keeps
only explanations that reach the bound everywhere. `latentgloss scores` lists all scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from latentgloss.embeddings.lance import words_query
from latentgloss.embeddings.row_checks import damaged_rows, refuse, table_damage
from latentgloss.errors import InputError, MissingInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float32

    from latentgloss.embeddings.lance import LanceTables


Mode = Literal["vector", "text", "hybrid"]
"""By cosine of vectors, by words (BM25), or by both rankings fused."""
NAME, STAGE, FORMAT = "search", "search_index", "1"
"""Name of the table, the stage that writes it, and the version of its layout."""
SCORERS = (
    "detection",
    "fuzzing",
    "intruder",
    "embedding",
    "surprisal",
    "simulation",
    "intervention",
    "generation",
)
"""Columns of scores. All exist from the start, empty for a scorer that was not run, so that columns never change."""
FILTERS = ("model", "hookpoint", "sae", "partition", "explainer")
"""Columns that a search can be restricted to one value of."""
LONGEST = 2000
"""Most characters of a query."""
FUSION = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009)."""
TEXT_COLUMNS = ("key", "model", "hookpoint", "sae", "partition", "explainer", "explanation", "version")
"""Columns of strings."""


@dataclass(frozen=True)
class Hit:
    """One explanation that a search found."""

    partition: str
    latent: int
    explainer: str
    explanation: str
    similarity: float | None
    """Cosine with the query; None in mode `text`."""
    text_score: float | None
    """BM25; None if words were not searched or not found."""
    density: float
    """The latent's density (`schema.LATENTS`)."""
    scores: dict[str, float]
    """Lowest score by scorer; scorers without a score are left out."""

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


class SearchIndex:
    """The search index of one store, for one embedder."""

    name = NAME

    def __init__(self, tables: LanceTables, embedder: dict[str, Any]) -> None:
        """`embedder`: identity of the embedder that made the vectors."""
        self.tables = tables
        self.facts = {"what": "search", "embedder": embedder, "format": FORMAT}

    def table(self, dimension: int | None = None) -> Any:
        """The LanceDB table.

        Raises MissingInput if there is none, StoreError if it was made with another embedder or dimension or cannot be
        read.
        """
        table = self.tables.open(NAME, self.facts | ({} if dimension is None else {"dimension": dimension}))
        if table is None:
            raise MissingInput(
                "there is no search index yet",
                expected="the asset search_index of at least one model",
                todo="materialise it: `dagster asset materialize --select search_index --partition MODEL`; if it is "
                "materialised and only its table is missing, run `latentgloss index rebuild`",
            )
        return table

    def counts(self) -> dict[str, dict[tuple[str, str], int]]:
        """Number of rows by model and then by (partition, version). Raises as `table` does."""
        columns = ["model", "partition", "version"]
        with self.tables.reading(NAME):
            rows = pl.from_arrow(self.table().search().select(columns).to_arrow())
        assert isinstance(rows, pl.DataFrame)
        found: dict[str, dict[tuple[str, str], int]] = {}
        for model, partition, version, n in rows.group_by(columns).len().iter_rows():
            found.setdefault(model, {})[partition, version] = n
        return found

    def unscored(self, scorer: str) -> tuple[int, int]:
        """Number of rows without a score of this scorer, and number of all rows. Raises as `table` does."""
        _where({}, {scorer: 0.0})
        with self.tables.reading(NAME):
            table = self.table()
            return table.count_rows(f"{scorer} IS NULL"), table.count_rows()

    def known(self, column: str) -> list[str]:
        """Distinct values of one of the columns `FILTERS`, sorted. Raises as `table` does."""
        with self.tables.reading(NAME):
            found = self.table().search().select([column]).to_arrow()[column].unique().to_pylist()
        return sorted(found)

    def search(
        self,
        text: str,
        vector: Float32[np.ndarray, " dimension"] | None,
        *,
        mode: Mode,
        limit: int,
        filters: Mapping[str, str] | None = None,
        at_least: Mapping[str, float] | None = None,
    ) -> list[Hit]:
        """The best `limit` rows, best first.

        `vector`: the query's vector, not needed in mode `text`. `filters`: the required value by column. `at_least`:
        the lowest accepted score by scorer. Words are searched one by one; nothing in a query is an operator. Mode
        `hybrid` fuses the two rankings by reciprocal rank: each adds 1 / (`FUSION` + rank). Raises InputError for an
        unknown column or scorer, and as `table` does.
        """
        table, where = self.table(None if vector is None else len(vector)), _where(filters or {}, at_least or {})
        # A changed vector could hide the right hit. The table is read only if its files changed since the last time.
        damage = table_damage(self.tables, NAME)
        if damage is not None:
            raise damage
        path = self.tables.path(NAME)
        deep = max(4 * limit, 100)  # more than `limit`, so that ties at the limit are ordered by key and not by chance
        rows: dict[str, dict[str, Any]] = {}
        ranks: dict[str, float] = {}
        lists: list[list[dict[str, Any]]] = []
        with self.tables.reading(NAME):
            if mode != "text":
                assert vector is not None
                query = table.search(vector, vector_column_name="vector").distance_type("cosine")
                found = _limited(path, query, where, deep)
                for row in found:
                    row["_similarity"] = 1 - row.pop("_distance")
                lists.append(sorted(found, key=lambda r: (-r["_similarity"], r["key"])))
            if mode != "vector":
                query = words_query(table, "explanation", text)
                lists.append(sorted(_limited(path, query, where, deep), key=lambda r: (-r["_score"], r["key"])))
        for found in lists:
            for rank, row in enumerate(found):
                rows[row["key"]] = {**rows.get(row["key"], {}), **row}
                ranks[row["key"]] = ranks.get(row["key"], 0) + 1 / (FUSION + rank)
        best = sorted(rows, key=lambda key: (-ranks[key], key))[:limit]
        return [_hit(rows[key], vector if mode != "text" else None) for key in best]


def _limited(path: Path, query: Any, where: str, limit: int) -> list[dict[str, Any]]:
    """The best rows of a query. Raises StoreError if one has another vector than was written."""
    if where:
        query = query.where(where, prefilter=True)
    found = query.limit(limit).to_arrow()
    rows: list[dict[str, Any]] = found.to_pylist()
    wrong = damaged_rows(found)
    if wrong:
        raise refuse(path, [rows[i]["key"] for i in wrong])
    return rows


def _hit(row: dict[str, Any], vector: Float32[np.ndarray, " dimension"] | None) -> Hit:
    similarity = row.get("_similarity")
    if similarity is None and vector is not None:  # found only by its words
        similarity = float(vector @ np.asarray(row["vector"], dtype=np.float32))
    return Hit(
        row["partition"],
        row["latent"],
        row["explainer"],
        row["explanation"],
        None if similarity is None else round(float(similarity), 6),
        row.get("_score"),
        row["density"],
        {name: row[name] for name in SCORERS if row[name] is not None},
    )


def _where(filters: Mapping[str, str], at_least: Mapping[str, float]) -> str:
    """An SQL condition. Column names come from a fixed list, and values are quoted, so no input is read as SQL."""
    unknown = [name for name in filters if name not in FILTERS] + [name for name in at_least if name not in SCORERS]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is not a column to filter by", expected=f"one of {', '.join((*FILTERS, *SCORERS))}"
        )
    equal = [f"{name} = '" + value.replace("'", "''") + "'" for name, value in sorted(filters.items())]
    return " AND ".join([*equal, *(f"{name} >= {float(value)!r}" for name, value in sorted(at_least.items()))])


def checked_query(text: str) -> str:
    """The query without surrounding white space. Raises InputError if nothing is left or the query is too long."""
    text = text.encode("utf-8", "replace").decode().strip()  # bytes that are not UTF-8 arrive as surrogates
    if not text:
        raise InputError("the query is empty", expected="words that say what the latent should respond to")
    if len(text) > LONGEST:
        raise InputError(
            f"the query has {len(text):,} characters",
            expected=f"at most {LONGEST:,}",
            todo="say in a sentence what the latent should respond to",
        )
    return text
