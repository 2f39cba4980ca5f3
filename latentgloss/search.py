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

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.errors import InputError, MissingInput, StoreError
from latentgloss.registry import split_partition
from latentgloss.stages import STAGES, made_from
from latentgloss.vectors import KINDS, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jaxtyping import Float32

    from latentgloss.embedder import SentenceEmbedder
    from latentgloss.lance import LanceTables
    from latentgloss.store import Version
    from latentgloss.workspace import Workspace

Mode = Literal["vector", "text", "hybrid"]
NAME, STAGE, FORMAT = "search", "search_index", "1"
BEGUN = "search-begun"
"""What `rebuild` writes until it is whole. Left behind by one that was stopped, removed by the next."""
SCORERS = (
    "detection", "fuzzing", "intruder", "embedding", "surprisal", "simulation", "intervention", "generation",
)  # fmt: skip
"""Columns; a scorer that was not run is empty, so that the table's columns never change."""
FILTERS = ("model", "hookpoint", "sae", "partition", "explainer")
LONGEST = 2000
"""Characters of a query."""
FUSION = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009)."""
_TEXT = ("key", "model", "hookpoint", "sae", "partition", "explainer", "explanation", "version")


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


def explanation_rows(partition: str, inputs: Mapping[str, Version]) -> pl.DataFrame:
    """Rows of one SAE without vectors: explanations of status `ok`, density, lowest score of each scorer.

    `inputs`: versions of `explanations`, `activation_cache` and of any stages that score, by stage.
    """
    model, hookpoint, sae = split_partition(partition)
    rows = (
        inputs["explanations"].read(schema.EXPLANATIONS)
        .filter(pl.col("status") == "ok", ~pl.col("explainer").str.starts_with("null:"))
        .select("latent", "explainer", "explanation")
    )  # fmt: skip
    density = inputs["activation_cache"].scan(schema.LATENTS).select("latent", "density").collect()
    rows = rows.join(density, on="latent", how="left", validate="m:1")
    found: set[str] = set()
    for stage, version in inputs.items():
        # Scores of other explanations than these are not theirs.
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
                    # What judges the latent itself is beside each of its explanations.
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


class SearchIndex:
    """The table of one store, for one embedder."""

    name = NAME

    def __init__(self, tables: LanceTables, embedder: dict[str, Any]) -> None:
        """`embedder`: identity of what made the vectors."""
        self.tables = tables
        self.facts = {"what": "search", "embedder": embedder, "format": FORMAT}

    # -- writing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, *, replace: bool) -> Iterator[_Writer]:
        """The table's only writer. `replace`: one of another embedder, or that cannot be read, is begun anew."""
        with self.tables.lock(NAME):
            writer = _Writer(self, NAME, replace)
            yield writer
            writer.finish()

    @contextlib.contextmanager
    def rebuilding(self) -> Iterator[_Writer]:
        """The only writer of a new table, which takes the place of the present one at the end and not before."""
        with self.tables.lock(NAME):
            self.tables.drop(BEGUN)
            writer = _Writer(self, BEGUN, replace=True)
            yield writer
            writer.finish()
            if writer.table is None:  # no explanation anywhere
                self.tables.drop(NAME)
            else:
                self.tables.rename(BEGUN, NAME)

    # -- reading -------------------------------------------------------------------------------------------------

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
                from lancedb.query import MatchQuery

                words = MatchQuery(text, "explanation")  # type: ignore[call-arg]  # its defaults are not typed
                query = table.search(words, query_type="fts")
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
        row["partition"], row["latent"], row["explainer"], row["explanation"],
        None if similarity is None else round(float(similarity), 6), row.get("_score"), row["density"],
        {name: row[name] for name in SCORERS if row[name] is not None},
    )  # fmt: skip


def _where(filters: Mapping[str, str], at_least: Mapping[str, float]) -> str:
    """An SQL condition. Names of columns are ours; values are quoted, so that none of them is read as SQL."""
    unknown = [name for name in filters if name not in FILTERS] + [name for name in at_least if name not in SCORERS]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is nothing to filter by", expected=f"one of {', '.join((*FILTERS, *SCORERS))}"
        )
    equal = [f"{name} = '" + value.replace("'", "''") + "'" for name, value in sorted(filters.items())]
    return " AND ".join([*equal, *(f"{name} >= {float(value)!r}" for name, value in sorted(at_least.items()))])


class _Writer:
    """Writes rows SAE by SAE, each in one transaction. Made by `SearchIndex`, which holds the lock."""

    def __init__(self, index: SearchIndex, name: str, replace: bool) -> None:
        self.index, self.name, self.tables = index, name, index.tables
        try:
            self.table = self.tables.open(name, index.facts)
        except StoreError as e:
            # Another embedder's, or damaged when looked at again: what cannot be read just now may be in order.
            if not replace or (e.__cause__ is not None and self.tables.damage(name) is None):
                raise
            self.tables.drop(name)
            self.table = None
        if self.table is not None:
            self._index_words(self.table)

    def put(
        self, partition: str, rows: pl.DataFrame, vectors: Float32[np.ndarray, "rows dimension"], version: str
    ) -> None:
        """The rows of a SAE are these and no others."""
        if rows.is_empty():
            self._delete(f"partition = '{partition}'")
            return
        data = _arrow(rows.with_columns(version=pl.lit(version)), vectors)
        self.table = self.tables.open(self.name, {**self.index.facts, "dimension": vectors.shape[1]})
        if self.table is None:
            self.table = self.tables.create(self.name, data.schema, self.index.facts)
            self._index_words(self.table)
        with self.tables.writing(self.name):
            (
                self.table.merge_insert("key")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(f"partition = '{partition}'")
                .execute(data)
            )

    def keep_only(self, model: str, partitions: Sequence[str]) -> None:
        """Removes the rows of the model's other SAEs."""
        listed = ", ".join(f"'{name}'" for name in partitions)  # validated names: no quote is in them
        self._delete(f"model = '{model}'" + (f" AND partition NOT IN ({listed})" if listed else ""))

    def _delete(self, where: str) -> None:
        if self.table is not None:
            with self.tables.writing(self.name):
                self.table.delete(where)

    def _index_words(self, table: Any) -> None:
        """Makes the full-text index, if there is none, before any row: words of a table without one are found, too,
        but by other rules, and a writer that is stopped would leave such a table."""
        from lancedb.index import FTS

        with self.tables.writing(self.name):
            if not any(index.columns == ["explanation"] for index in table.list_indices()):
                # Stop words stay: explanations are at times about them.
                table.create_index("explanation", config=FTS(remove_stop_words=False))

    def finish(self) -> None:
        """Brings the full-text index up to the rows."""
        if self.table is not None:
            self.tables.compact(self.name, self.table)


def _arrow(rows: pl.DataFrame, vectors: Float32[np.ndarray, "rows dimension"]) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns = {
        **{name: pa.array(rows[name].to_list(), pa.string()) for name in _TEXT},
        "latent": pa.array(rows["latent"].to_numpy(), pa.uint32()),
        **{name: pa.array(rows[name].to_list(), pa.float64()) for name in ("density", *SCORERS)},
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    return pa.table(columns)


# -- queries and upkeep ----------------------------------------------------------------------------------------------


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


def open_index(workspace: Workspace) -> tuple[SearchIndex, SentenceEmbedder]:
    """The index and the embedder of the settings, which loads when it first embeds."""
    embedder = workspace.embedder(workspace.settings.search.embedder)
    return SearchIndex(workspace.lance, embedder.identity()), embedder


def behind(workspace: Workspace, index: SearchIndex) -> list[str]:
    """Models whose rows are not those of their current `search_index` version, or not all of them, sorted."""
    there = index.counts()
    found = []
    for model in {*workspace.store.partitions(STAGE), *there}:
        version = workspace.store.current(STAGE, model)
        rows = {} if version is None else version.json("index.json")["rows"]
        wanted = {(sae, version.manifest.fingerprint): n for sae, n in rows.items() if n and version is not None}
        if there.get(model, {}) != wanted:
            found.append(model)
    return sorted(found)


def rebuild(workspace: Workspace) -> tuple[dict[str, int], dict[str, str]]:
    """Makes the index anew from the current versions: (rows per SAE, why each table of vectors was removed).

    Removed are tables of vectors that nobody can use; vectors that are missing are made. Until all is written the
    present index stays. Raises MissingInput if no model has a `search_index`, or if what one was made from is gone.
    """
    removed = _remove_unusable(workspace)
    store = workspace.store
    versions = [v for model in store.partitions(STAGE) if (v := store.current(STAGE, model)) is not None]
    if not versions:
        raise MissingInput(
            "no model has a search_index" + (f"; removed unusable tables: {', '.join(removed)}" if removed else ""),
            todo="materialise it: `dagster asset materialize --select search_index --partition MODEL`",
        )
    index, _ = open_index(workspace)
    vectors = workspace.text_vectors(workspace.settings.search.embedder, "document")
    rows: dict[str, int] = {}
    with index.rebuilding() as table:
        for version in versions:
            pinned = _pinned(workspace, version)
            for partition in version.json("index.json")["rows"]:
                frame = explanation_rows(partition, pinned[partition])
                texts = frame["explanation"].to_list()
                table.put(partition, frame, vectors.get(texts), version.manifest.fingerprint)
                rows[partition] = frame.height
    return rows, removed


def _remove_unusable(workspace: Workspace) -> dict[str, str]:
    tables, removed = workspace.lance, {}
    embedders = [workspace.embedder(name) for name in workspace.registry.embedders]
    for name in tables.names():
        if name.startswith(KINDS) and (error := refusal(tables, name, embedders)) is not None:
            with tables.lock(name):
                tables.drop(name)
            removed[name] = error.found
    return removed


def _pinned(workspace: Workspace, version: Version) -> dict[str, dict[str, Version]]:
    """Per SAE and stage the versions a `search_index` was made from. Raises MissingInput if one is gone."""
    found: dict[str, dict[str, Version]] = {}
    for pin in version.manifest.inputs:
        stage, partition, model = pin["stage"], pin["partition"], version.manifest.partition
        pinned = workspace.store.version(stage, partition, pin["fingerprint"])
        if pinned is None:
            raise MissingInput(
                f"the search_index of {model} was made from {stage} of {partition}, version {pin['fingerprint']}, "
                "which is gone",
                expected="every version it was made from, in the store; the index that is there stays as it is",
                todo=f"materialise it again: `dagster asset materialize --select search_index --partition {model}`; or "
                f"delete {workspace.store.files.path(f'{STAGE}/{model}')} if that model is not wanted any more",
            )
        found.setdefault(partition, {})[stage] = pinned
    return found
