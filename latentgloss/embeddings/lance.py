"""LanceDB tables of a store: the one place that knows LanceDB.

    <store>/embeddings/<name>.lance

What belongs here: opening and creating tables, the refusal of a table that is not what was asked for, one writer at a
time, and errors in our own words. What the tables hold is in `vectors.py` and `search.py`.

A table's metadata says what its vectors are (embedder, format), its schema of how many numbers. Every write is a
transaction: what a killed writer leaves is the table before its last write, or, if it died while creating it, a folder
without a version, which is taken for nothing. A writer takes the table's lock; readers need none, since they read a
version that stays.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latentgloss.errors import StoreError
from latentgloss.store.local import LocalFiles, disk_full, is_disk_full

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa


FOLDER = "embeddings"
"""Below the store."""
REBUILD = "latentgloss index rebuild"
_MEND = f"run `{REBUILD}`, which removes it; what is needed of it is made again"
_METADATA = b"latentgloss"
_KEEP = datetime.timedelta(hours=1)
"""Versions of a table that a reader may still be reading."""


class LanceTables:
    """The folder of LanceDB tables of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = LocalFiles(root)

    @cached_property
    def _connection(self) -> Any:
        os.environ.setdefault("LANCE_LOG", "error")  # it warns of every table that is made
        import lancedb

        self.root.mkdir(parents=True, exist_ok=True)
        # Zero: a table that another process wrote to is seen as it is now.
        return lancedb.connect(self.root, read_consistency_interval=datetime.timedelta(0))

    def path(self, name: str) -> Path:
        return self.root / f"{name}.lance"

    def names(self) -> list[str]:
        """Tables that have a version, sorted."""
        return sorted(path.stem for path in self.root.glob("*.lance") if self.exists(path.stem))

    def told(self, name: str) -> dict[str, Any]:
        """What a table says of itself: its facts, and `dimension`, the numbers per vector. Raises StoreError."""
        return self._open(name)[1]

    def exists(self, name: str) -> bool:
        return any((self.path(name) / "_versions").glob("*.manifest"))

    def open(self, name: str, facts: Mapping[str, Any]) -> Any | None:
        """The table, or None if it was never made. `facts` are what it must say of itself (`told`).

        Raises StoreError if the table cannot be read or says anything else: another embedder, dimension or format.
        """
        if not self.exists(name):
            return None
        table, told = self._open(name)
        if told != {**told, **facts}:
            wrong = [key for key in facts if told.get(key) != facts[key]]
            raise StoreError(
                f"{self.path(name)} was made with " + _listed(told, wrong),
                expected=_listed(facts, wrong),
                todo=f"{_MEND}; or restore the settings it was made with",
            )
        return table

    def _open(self, name: str) -> tuple[Any, dict[str, Any]]:
        with self.reading(name):
            table = self._connection.open_table(name)
            schema = table.schema
            told: dict[str, Any] = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
            if "vector" in schema.names:
                told["dimension"] = getattr(schema.field("vector").type, "list_size", None)
        return table, told

    def create(self, name: str, schema: pa.Schema, facts: Mapping[str, Any]) -> Any:
        """A new, empty table; hold its lock. What an interrupted creation left is removed."""
        if self.path(name).exists() and not self.exists(name):
            self.drop(name)
        schema = schema.with_metadata({_METADATA: json.dumps(dict(facts)).encode()})
        with self.writing(name):
            return self._connection.create_table(name, schema=schema)

    def drop(self, name: str) -> None:
        """Removes a table, whatever its state; hold its lock."""
        self.files.remove(self.path(name).name)

    def rename(self, name: str, to: str) -> None:
        """A table takes the place of another; hold the locks of both."""
        with self.writing(to):
            self.drop(to)
            self.path(name).replace(self.path(to))

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One writer per table."""
        with self.files.lock(f".locks/{name}"):
            yield

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turns what LanceDB raises about damaged files into an error that names the table and what mends it."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as e:
            raise StoreError(
                f"{self.path(name)} cannot be read ({type(e).__name__}: {_brief(e)})",
                expected="a LanceDB table as it was written",
                todo=_MEND,
            ) from e

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Turns what LanceDB raises about a full disk or damaged files into an error of ours."""
        try:
            with self.reading(name):
                yield
        except StoreError as e:
            if e.__cause__ is not None and is_disk_full(e.__cause__):
                raise disk_full(self.path(name)) from e
            raise

    def compact(self, name: str, table: Any) -> None:
        """Joins the many small pieces that many writes leave; versions older than an hour go. Hold the lock."""
        with self.writing(name):
            table.optimize(cleanup_older_than=_KEEP)

    def damage(self, name: str) -> StoreError | None:
        """Why a table cannot be read, by reading all of it; None if it can."""
        try:
            with self.reading(name):
                for _ in self._connection.open_table(name).search().to_batches(batch_size=4096):
                    pass
        except StoreError as e:
            return e
        return None


def index_words(table: Any, column: str) -> None:
    """Makes the full-text index of a column, unless there is one. Hold the lock."""
    from lancedb.index import FTS

    if not any(index.columns == [column] for index in table.list_indices()):
        # Stop words stay: explanations are at times about them.
        table.create_index(column, config=FTS(remove_stop_words=False))


def words_query(table: Any, column: str, text: str) -> Any:
    """A query for rows whose column holds words of `text`; nothing in it is an operator."""
    from lancedb.query import MatchQuery

    words = MatchQuery(text, column)  # type: ignore[call-arg]  # its defaults are not typed
    return table.search(words, query_type="fts")


def _listed(facts: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {facts.get(key, 'not stated')!r}" for key in keys)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
