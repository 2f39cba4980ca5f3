"""A LanceDB table of (key, vector) rows with each key once; vectors that were computed are kept in it.

What belongs here: `VectorTable`, and the check whether a table can be used (`refusal`). `vectors.py` computes keys and
vectors.

A table is named by the hash of its facts, which say what its vectors are. It records them, and they are compared
whenever it is opened. The dimension is known only to the loaded model, so it is compared once the model is loaded, and
always before anything is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.embeddings.row_checks import (
    FIELD,
    checksums,
    damaged_rows,
    matrix,
    refuse,
    table_damage,
    with_column,
)
from latentgloss.errors import EmbedderError, LatentglossError, StoreError
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pyarrow as pa
    from jaxtyping import Float32, UInt64

    from latentgloss.embeddings.lance import LanceTables
    from latentgloss.protocols import Embedder

    Keys = UInt64[np.ndarray, " keys"]


FORMAT = "1"
"""Version of the table's layout."""
KINDS = ("contexts-", "texts-")
"""Prefixes of the names of tables of vectors."""
PIECES = 32
"""A table is compacted after this many writes."""
TAKE = 16384
"""Rows read from a table at once."""


class VectorTable:
    """(key, vector, check) rows of one embedder, each key once. The table is opened on first use."""

    def __init__(self, tables: LanceTables, name: str, facts: dict[str, Any], embedder: Embedder | None = None) -> None:
        """`facts`: what the vectors are, recorded in the table and compared with it. `embedder`: sets the dimension."""
        self.tables, self.name, self.embedder = tables, name, embedder
        self.facts = {**facts, "format": FORMAT}
        self._known: tuple[int, Keys, Keys] | None = None

    @property
    def _table(self) -> Any | None:
        """The table, or None if there is none yet.

        Raises StoreError if its facts differ, or its dimension differs from the loaded embedder's.
        """
        loaded = self.embedder is not None and self.embedder.loaded
        return self._open(self.embedder.dimension if self.embedder is not None and loaded else None)

    def _open(self, dimension: int | None) -> Any | None:
        return self.tables.open(self.name, self.facts | ({} if dimension is None else {"dimension": dimension}))

    @property
    def dimension(self) -> int | None:
        """Numbers per vector; None while there is no table. Raises StoreError."""
        table = self._table
        return None if table is None else int(table.schema.field("vector").type.list_size)

    def __len__(self) -> int:
        return len(self._snapshot()[1])

    def missing(self, keys: Keys) -> Keys:
        """The keys that have no vector, each once, in order of first occurrence."""
        _, first = np.unique(keys, return_index=True)
        distinct = keys[np.sort(first)]
        return distinct[~np.isin(distinct, self._snapshot()[1])]

    def add(self, keys: Keys, vectors: Float32[np.ndarray, "keys dimension"]) -> None:
        """Writes rows in one transaction; a key that is already in the table keeps its vector.

        Raises StoreError if the vectors' dimension differs from the table's, EmbedderError if they are not finite.
        """
        if not np.isfinite(vectors).all():
            raise EmbedderError(
                f"vectors for {self.name} are not finite", todo='set `dtype = "float32"` in the registry'
            )
        with self.tables.lock(self.name):
            table = self._open(vectors.shape[1])
            if table is None:
                table = self.tables.create(self.name, _schema(vectors.shape[1]), self.facts)
            with self.tables.writing(self.name):
                with_column(table)
                table.merge_insert("key").when_not_matched_insert_all().execute(_rows(keys, vectors))
                if table.version % PIECES == 0:
                    self.tables.compact(self.name, table)

    def get(self, keys: Keys, name: Callable[[int], str] | None = None) -> Float32[np.ndarray, "keys dimension"]:
        """One vector per key, in order; keys may repeat.

        `name`: what the vector at an index into `keys` is of, for messages. Raises KeyError if a key has no vector,
        StoreError if a vector is not the one that was written.
        """
        table, known, row_ids = self._snapshot()
        distinct, inverse = np.unique(keys, return_inverse=True)
        at = np.searchsorted(known, distinct)
        absent = len(known) == 0 or (known[np.minimum(at, len(known) - 1)] != distinct)
        if len(distinct) and np.any(absent):
            raise KeyError(f"{self.name} has no vector for {int(np.sum(absent))} of {len(distinct)} keys")
        parts = []
        for first in range(0, len(distinct), TAKE):
            with self.tables.reading(self.name):
                found = table.take_row_ids(row_ids[at[first : first + TAKE]].tolist()).to_arrow()
            wrong = damaged_rows(found)
            if wrong:
                of = found["key"].to_numpy()[wrong]
                named = [name(int(np.flatnonzero(keys == key)[0])) if name else f"row {key}" for key in of]
                raise refuse(self.tables.path(self.name), named)
            # LanceDB returns rows in the table's order; sort them by key.
            parts.append(matrix(found["vector"])[np.argsort(found["key"].to_numpy())])
        if not parts:
            return np.empty((0, self.dimension or 0), dtype=np.float32)
        vectors: Float32[np.ndarray, "keys dimension"] = np.concatenate(parts)[inverse]
        return vectors

    def _snapshot(self) -> tuple[Any, Keys, Keys]:
        """The present version of the table, its keys in ascending order, and the row id of each key."""
        table = self._table
        if table is None:
            return None, np.empty(0, np.uint64), np.empty(0, np.uint64)
        with self.tables.reading(self.name):
            version = int(table.version)
            table.checkout(version)  # row ids change when another process compacts the table
            if self._known is None or self._known[0] != version:
                rows = table.search().select(["key"]).with_row_id(True).to_arrow()
                keys, row_ids = rows["key"].to_numpy(), rows["_rowid"].to_numpy()
                order = np.argsort(keys)
                self._known = version, keys[order], row_ids[order]
        return table, self._known[1], self._known[2]


def table_name(facts: Mapping[str, Any]) -> str:
    """The name of the table for these facts: what it holds, and 16 digits of their hash."""
    return f"{facts['what']}-{json_sha256(facts)[:16]}"


def refusal(tables: LanceTables, name: str, embedders: Iterable[Embedder]) -> StoreError | None:
    """Why a table of vectors cannot be used; None if it can.

    It cannot be used if it is damaged, if its facts or format do not match its name, or if its dimension is not that
    of the embedder it names. Loads the model of that embedder if it is among `embedders`; if the model cannot be
    loaded, the dimension is not compared.
    """
    damage = table_damage(tables, name)
    if damage is not None:
        return damage
    recorded = tables.told(name)
    facts = {key: value for key, value in recorded.items() if key not in ("format", "dimension")}
    if "what" not in facts or table_name(facts) != name or recorded.get("format") != FORMAT:
        return StoreError(f"{tables.path(name)} records facts or a format that do not match its name")
    for embedder in embedders:
        try:
            if embedder.identity() == facts.get("embedder"):
                tables.open(name, {"dimension": embedder.dimension})
        except StoreError as e:
            return e
        except LatentglossError:
            continue
    return None


def _schema(dimension: int) -> pa.Schema:
    import pyarrow as pa

    vector = pa.list_(pa.float32(), dimension)
    return pa.schema([pa.field("key", pa.uint64(), nullable=False), pa.field("vector", vector, nullable=False), FIELD])


def _rows(keys: Keys, vectors: Float32[np.ndarray, "keys dimension"]) -> pa.Table:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns = [
        pa.array(keys, pa.uint64()),
        pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        pa.array(checksums(keys.tolist(), vectors), pa.uint32()),
    ]
    return pa.Table.from_arrays(columns, schema=_schema(vectors.shape[1]))
