"""LanceDB tables of a store. This is the only module that imports LanceDB.

    <store>/embeddings/<name>.lance

What belongs here: opening and creating tables, refusing a table that was made with something else than expected, a
lock per table for its single writer, and converting LanceDB's exceptions to our errors. `vector_table.py`,
`search_index.py` and `search_writer.py` define what the tables hold.

A table's metadata records what its vectors are (embedder, format); its schema records their dimension. Every write is a
transaction. A writer that is killed leaves the table as it was before its last write; if it is killed while creating
the table, it leaves a folder without a version, which counts as no table. Readers need no lock, because each reads one
version of the table, and versions do not change.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latentgloss.errors import StoreError
from latentgloss.store.digests import stamp_of
from latentgloss.store.local import LocalFiles, disk_full, is_disk_full

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa


FOLDER = "embeddings"
"""Folder of the tables, below the store's root."""
REBUILD = "latentgloss index rebuild"
"""The command that removes unusable tables and builds the search index again."""
MEND = f"run `{REBUILD}`, which removes the table and makes what is needed again"
_METADATA = b"latentgloss"
_KEEP = datetime.timedelta(hours=1)
"""Compaction keeps versions of a table that are younger than this, because a reader may still be reading them."""


class LanceTables:
    """The folder of LanceDB tables of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = LocalFiles(root)
        self.damaged: dict[str, tuple[dict[str, list[int]], StoreError]] = {}
        """Tables that were found damaged: the stamps of their files at that time, and the error."""

    @cached_property
    def _connection(self) -> Any:
        os.environ.setdefault("LANCE_LOG", "error")  # it logs a warning for every new table
        import lancedb

        self.root.mkdir(parents=True, exist_ok=True)
        # Zero, so that writes of other processes are visible at once.
        return lancedb.connect(self.root, read_consistency_interval=datetime.timedelta(0))

    def path(self, name: str) -> Path:
        """Folder of a table."""
        return self.root / f"{name}.lance"

    def names(self) -> list[str]:
        """Tables that have a version, sorted."""
        return sorted(path.stem for path in self.root.glob("*.lance") if self.exists(path.stem))

    def told(self, name: str) -> dict[str, Any]:
        """What a table records about itself: its facts, and `dimension`, the numbers per vector. Raises StoreError."""
        return self._open(name)[1]

    def exists(self, name: str) -> bool:
        """Whether a table has a version."""
        return any((self.path(name) / "_versions").glob("*.manifest"))

    def open(self, name: str, facts: Mapping[str, Any]) -> Any | None:
        """The table, or None if it does not exist. `facts`: what it must record about itself (`told`).

        Raises StoreError if the table cannot be read, or records something else: another embedder, dimension or format.
        """
        if not self.exists(name):
            return None
        table, recorded = self._open(name)
        if recorded != {**recorded, **facts}:
            wrong = [key for key in facts if recorded.get(key) != facts[key]]
            raise StoreError(
                f"{self.path(name)} was made with " + _listed(recorded, wrong),
                expected=_listed(facts, wrong),
                todo=f"{MEND}; or restore the settings it was made with",
            )
        return table

    def _open(self, name: str) -> tuple[Any, dict[str, Any]]:
        with self.reading(name):
            table = self._connection.open_table(name)
            schema = table.schema
            recorded: dict[str, Any] = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
            if "vector" in schema.names:
                recorded["dimension"] = getattr(schema.field("vector").type, "list_size", None)
        return table, recorded

    def create(self, name: str, schema: pa.Schema, facts: Mapping[str, Any]) -> Any:
        """Creates an empty table that records `facts`, after removing the rest of an interrupted creation.

        Hold the table's lock. Raises StoreError.
        """
        if self.path(name).exists() and not self.exists(name):
            self.drop(name)
        schema = schema.with_metadata({_METADATA: json.dumps(dict(facts)).encode()})
        with self.writing(name):
            return self._connection.create_table(name, schema=schema)

    def drop(self, name: str) -> None:
        """Removes a table, damaged or not. Hold its lock."""
        self.files.remove(self.path(name).name)

    def rename(self, name: str, to: str) -> None:
        """Moves a table to the place of `to`, which is removed. Hold the locks of both. Raises StoreError."""
        with self.writing(to):
            self.drop(to)
            self.path(name).replace(self.path(to))

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Holds a table's lock, so that it has one writer at a time."""
        with self.files.lock(f".locks/{name}"):
            yield

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Converts LanceDB's exceptions about damaged files to a StoreError that names the table and the remedy."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as e:
            raise StoreError(
                f"{self.path(name)} cannot be read ({type(e).__name__}: {_brief(e)})",
                expected="a LanceDB table as it was written",
                todo=MEND,
            ) from e

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Converts LanceDB's exceptions about a full disk or damaged files to a StoreError."""
        try:
            with self.reading(name):
                yield
        except StoreError as e:
            if e.__cause__ is not None and is_disk_full(e.__cause__):
                raise disk_full(self.path(name)) from e
            raise

    def compact(self, name: str, table: Any) -> None:
        """Merges the small files that many writes leave, and deletes versions older than an hour. Hold the lock."""
        with self.writing(name):
            table.optimize(cleanup_older_than=_KEEP)

    def damage(self, name: str, check: Callable[[Path, pa.Table], None] | None = None) -> StoreError | None:
        """Reads all of a table and returns the error that this raises; None if the table is sound.

        `check` gets the table's folder and some of its rows, and raises StoreError if they are damaged.
        """
        import pyarrow as pa

        try:
            with self.reading(name):
                for batch in self._connection.open_table(name).search().to_batches(batch_size=4096):
                    if check is not None:
                        check(self.path(name), pa.Table.from_batches([batch]))
        except StoreError as e:
            return e
        return None

    def stamps(self, name: str) -> dict[str, list[int]]:
        """The stamp of each file of a table, by path in the table's folder. Reads no file."""
        folder = self.path(name)
        found = {str(path.relative_to(folder)): stamp_of(path) for path in sorted(folder.rglob("*"))}
        return {name: list(stamp) for name, stamp in found.items() if stamp is not None}

    def verified(self, name: str) -> dict[str, list[int]] | None:
        """The stamps of a table's files when it was last found sound; None if it never was."""
        try:
            return dict(json.loads(self.files.path(f".sound/{name}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def verify(self, name: str, stamps: dict[str, list[int]]) -> None:
        """Remembers that a table was sound when its files had these stamps."""
        with contextlib.suppress(OSError, StoreError):  # a store that may only be read is checked again every time
            # Not by a temporary file, which a kill would leave behind: a half-written record is none (`verified`).
            path = self.files.path(f".sound/{name}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(stamps), encoding="utf-8")


WORDS = "explanation_words_icu"
"""Name of the full-text index. It says how words are found, so that an index made in another way is made anew."""


def index_words(table: Any, column: str) -> None:
    """Makes the full-text index of a column, unless there is one that finds words in the present way. Hold the lock.

    Words are divided by ICU's dictionaries, because Chinese, Japanese and Thai are written without spaces. Other text
    is divided at spaces and punctuation.
    """
    from lancedb.index import FTS

    present = [index.name for index in table.list_indices() if index.columns == [column]]
    if present == [WORDS]:
        return
    for name in present:
        table.drop_index(name)
    # Stop words are indexed too, because some explanations are about them.
    try:
        table.create_index(column, config=FTS(base_tokenizer="icu/split", remove_stop_words=False), name=WORDS)
    except (ValueError, RuntimeError):  # a version of LanceDB without ICU
        table.create_index(column, config=FTS(remove_stop_words=False), name=WORDS)


def words_query(table: Any, column: str, text: str) -> Any:
    """A full-text query for rows whose column contains words of `text`; characters in it are never operators."""
    from lancedb.query import MatchQuery

    words = MatchQuery(text, column)  # type: ignore[call-arg]  # its defaults are not typed
    return table.search(words, query_type="fts")


def _listed(facts: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {facts.get(key, 'not recorded')!r}" for key in keys)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"
