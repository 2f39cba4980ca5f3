"""The search index: one LanceDB table over the explanations of all SAEs, with vectors, full text and scores.

    search.lance: key, model, hookpoint, sae, partition, latent, explainer, explanation, density, one column per
                  scorer, vector, version

What belongs here: a row per explanation of status `ok` (nulls left out: another latent's text is no finding), writing
the rows of one SAE as a whole, and the three ways to search. Everything in it is derived; `rebuild` makes it anew from
the versions that are current, beside the one that is there, and puts it in its place when it is whole. `version` is the
fingerprint of the `search_index` version a row belongs to, so that a reader can tell an index that is behind; how many
rows a SAE must have is in that version, so that one whose writer was stopped is told, too.

A scorer's column holds the *lowest* of an explanation's scores over judges and kinds of negatives: who filters by it
gets what holds up everywhere. All of them: `latentgloss scores`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from latentgloss.embeddings.lance import words_query
from latentgloss.errors import InputError, MissingInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float32

    from latentgloss.embeddings.lance import LanceTables


Mode = Literal["vector", "text", "hybrid"]
NAME, STAGE, FORMAT = "search", "search_index", "1"
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
"""Columns; a scorer that was not run is empty, so that the table's columns never change."""
FILTERS = ("model", "hookpoint", "sae", "partition", "explainer")
LONGEST = 2000
"""Characters of a query."""
FUSION = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009)."""
TEXT_COLUMNS = ("key", "model", "hookpoint", "sae", "partition", "explainer", "explanation", "version")


@dataclass(frozen=True)
class Hit:
    """One explanation found."""

    partition: str
    latent: int
    explainer: str
    explanation: str
    similarity: float | None
    """Cosine with the query; None in mode `text`."""
    text_score: float | None
    """BM25; None where the words were not searched or not found."""
    density: float
    scores: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


class SearchIndex:
    """The table of one store, for one embedder."""

    name = NAME

    def __init__(self, tables: LanceTables, embedder: dict[str, Any]) -> None:
        """`embedder`: identity of what made the vectors."""
        self.tables = tables
        self.facts = {"what": "search", "embedder": embedder, "format": FORMAT}

    def table(self, dimension: int | None = None) -> Any:
        """Raises MissingInput if there is none, StoreError if it is another embedder's or cannot be read."""
        table = self.tables.open(NAME, self.facts | ({} if dimension is None else {"dimension": dimension}))
        if table is None:
            raise MissingInput(
                "there is no search index yet",
                expected="the asset search_index of at least one model",
                todo="materialise it: `dagster asset materialize --select search_index --partition MODEL`; if it was "
                "and its table is gone, run `latentgloss index rebuild`",
            )
        return table

    def counts(self) -> dict[str, dict[tuple[str, str], int]]:
        """Per model: rows of each (partition, version)."""
        columns = ["model", "partition", "version"]
        with self.tables.reading(NAME):
            rows = pl.from_arrow(self.table().search().select(columns).to_arrow())
        assert isinstance(rows, pl.DataFrame)
        found: dict[str, dict[tuple[str, str], int]] = {}
        for model, partition, version, n in rows.group_by(columns).len().iter_rows():
            found.setdefault(model, {})[partition, version] = n
        return found

    def unscored(self, scorer: str) -> tuple[int, int]:
        """Rows without a score of a scorer, and rows."""
        _where({}, {scorer: 0.0})
        with self.tables.reading(NAME):
            table = self.table()
            return table.count_rows(f"{scorer} IS NULL"), table.count_rows()

    def known(self, column: str) -> list[str]:
        """Distinct values of one of `FILTERS`."""
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
        """The best `limit` rows. `filters`: equal to; `at_least`: scorer to its lowest score that will do.

        `vector` (the query's) is not needed in mode `text`. Words are looked up one by one: nothing in a query is an
        operator. Mode `hybrid` fuses the two rankings by reciprocal rank.
        """
        table, where = self.table(None if vector is None else len(vector)), _where(filters or {}, at_least or {})
        deep = max(4 * limit, 100)  # beyond the limit, so that ties are cut by key and not by chance
        rows: dict[str, dict[str, Any]] = {}
        ranks: dict[str, float] = {}
        lists: list[list[dict[str, Any]]] = []
        with self.tables.reading(NAME):
            if mode != "text":
                assert vector is not None
                query = table.search(vector, vector_column_name="vector").distance_type("cosine")
                found = _limited(query, where, deep)
                for row in found:
                    row["_similarity"] = 1 - row.pop("_distance")
                lists.append(sorted(found, key=lambda r: (-r["_similarity"], r["key"])))
            if mode != "vector":
                query = words_query(table, "explanation", text)
                lists.append(sorted(_limited(query, where, deep), key=lambda r: (-r["_score"], r["key"])))
        for found in lists:
            for rank, row in enumerate(found):
                rows[row["key"]] = {**rows.get(row["key"], {}), **row}
                ranks[row["key"]] = ranks.get(row["key"], 0) + 1 / (FUSION + rank)
        best = sorted(rows, key=lambda key: (-ranks[key], key))[:limit]
        return [_hit(rows[key], vector if mode != "text" else None) for key in best]


def _limited(query: Any, where: str, limit: int) -> list[dict[str, Any]]:
    if where:
        query = query.where(where, prefilter=True)
    rows: list[dict[str, Any]] = query.limit(limit).to_arrow().to_pylist()
    return rows


def _hit(row: dict[str, Any], vector: Float32[np.ndarray, " dimension"] | None) -> Hit:
    similarity = row.get("_similarity")
    if similarity is None and vector is not None:  # found by its words only
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
    """An SQL condition. Names of columns are ours; values are quoted, so that none of them is read as SQL."""
    unknown = [name for name in filters if name not in FILTERS] + [name for name in at_least if name not in SCORERS]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is nothing to filter by", expected=f"one of {', '.join((*FILTERS, *SCORERS))}"
        )
    equal = [f"{name} = '" + value.replace("'", "''") + "'" for name, value in sorted(filters.items())]
    return " AND ".join([*equal, *(f"{name} >= {float(value)!r}" for name, value in sorted(at_least.items()))])


def checked_query(text: str) -> str:
    """The query without surrounding white space. Raises InputError if nothing is left, or if it is too long."""
    text = text.encode("utf-8", "replace").decode().strip()  # bytes that are no UTF-8 arrive as surrogates
    if not text:
        raise InputError("the query is empty", expected="what the latent should respond to, in words")
    if len(text) > LONGEST:
        raise InputError(
            f"the query has {len(text):,} characters",
            expected=f"at most {LONGEST:,}",
            todo="say in a sentence what the latent should respond to",
        )
    return text
