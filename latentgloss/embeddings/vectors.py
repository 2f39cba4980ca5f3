"""Vectors that are kept: of contexts and of texts, each computed once.

    contexts-<tokenizer, window length, embedder>     one row per distinct window of tokens
    texts-<embedder>                                  one row per distinct text, prefix included

What belongs here: one class over a LanceDB table of (key, vector), and the two ways to key it. A vector is a pure
function of the embedder and of what is embedded, so tables belong to no corpus, SAE or run: a repeated window, another
corpus of the same tokenizer and a null explanation (another latent's text) cost nothing. Vectors are no part of a
recipe; the embedder's identity is. A table may be deleted at any time: what is needed of it is made again.

A table is named by the hash of its facts, and compared with them when it is opened. The dimension, which only the
loaded model knows, is compared as soon as it is loaded, and always before anything is written.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from latentgloss.contexts.windows import text_hashes
from latentgloss.errors import EmbedderError, LatentglossError, StoreError
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa
    from jaxtyping import Float32, Integer, UInt32, UInt64

    from latentgloss.embeddings.lance import LanceTables
    from latentgloss.protocols import Embedder

    Keys = UInt64[np.ndarray, " keys"]
    Progress = Callable[[int, int | None, str], None]


FORMAT = "1"
KINDS = ("contexts-", "texts-")
"""How names of tables begin."""
BATCH = 1024
PIECES = 32
"""Writes after which a table's pieces are joined."""
CHUNK = 1 << 16
"""Windows hashed at once."""
TAKE = 16384
"""Rows read from a table at once."""


class VectorTable:
    """(key, vector) rows of one embedder, each key once. Opened when first used."""

    def __init__(self, tables: LanceTables, name: str, facts: dict[str, Any], embedder: Embedder | None = None) -> None:
        """`facts`: what the vectors are, kept in the table and compared with it. `embedder`: whose dimension it has."""
        self.tables, self.name, self.embedder = tables, name, embedder
        self.facts = {**facts, "format": FORMAT}
        self._known: tuple[int, Keys, Keys] | None = None

    @property
    def _table(self) -> Any | None:
        """Raises StoreError if the table is not of these facts, or of another dimension than the loaded embedder."""
        loaded = self.embedder is not None and self.embedder.loaded
        return self._open(self.embedder.dimension if self.embedder is not None and loaded else None)

    def _open(self, dimension: int | None) -> Any | None:
        return self.tables.open(self.name, self.facts | ({} if dimension is None else {"dimension": dimension}))

    @property
    def dimension(self) -> int | None:
        """Numbers per vector; None while there is no table."""
        table = self._table
        return None if table is None else int(table.schema.field("vector").type.list_size)

    def __len__(self) -> int:
        return len(self._snapshot()[1])

    def missing(self, keys: Keys) -> Keys:
        """Those of `keys` that have no vector, each once, in order of first occurrence."""
        _, first = np.unique(keys, return_index=True)
        distinct = keys[np.sort(first)]
        return distinct[~np.isin(distinct, self._snapshot()[1])]

    def add(self, keys: Keys, vectors: Float32[np.ndarray, "keys dimension"]) -> None:
        """Writes rows in one transaction; a key that is there already stays as it is.

        Raises StoreError if the vectors are of another dimension than the table's, EmbedderError if not finite.
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
                table.merge_insert("key").when_not_matched_insert_all().execute(_rows(keys, vectors))
                if table.version % PIECES == 0:
                    self.tables.compact(self.name, table)

    def get(self, keys: Keys) -> Float32[np.ndarray, "keys dimension"]:
        """One vector per key, in order; keys may repeat. Raises KeyError if one is not there."""
        table, known, places = self._snapshot()
        distinct, inverse = np.unique(keys, return_inverse=True)
        at = np.searchsorted(known, distinct)
        absent = len(known) == 0 or (known[np.minimum(at, len(known) - 1)] != distinct)
        if len(distinct) and np.any(absent):
            raise KeyError(f"{self.name} has no vector for {int(np.sum(absent))} of {len(distinct)} keys")
        parts = []
        for first in range(0, len(distinct), TAKE):
            with self.tables.reading(self.name):
                found = table.take_row_ids(places[at[first : first + TAKE]].tolist()).to_arrow()
            # Rows come in the table's order.
            parts.append(_matrix(found["vector"])[np.argsort(found["key"].to_numpy())])
        if not parts:
            return np.empty((0, self.dimension or 0), dtype=np.float32)
        vectors: Float32[np.ndarray, "keys dimension"] = np.concatenate(parts)[inverse]
        return vectors

    def _snapshot(self) -> tuple[Any, Keys, Keys]:
        """The table as it is now, its keys, ascending, and the row of each."""
        table = self._table
        if table is None:
            return None, np.empty(0, np.uint64), np.empty(0, np.uint64)
        with self.tables.reading(self.name):
            version = int(table.version)
            table.checkout(version)  # rows move when another process compacts the table
            if self._known is None or self._known[0] != version:
                rows = table.search().select(["key"]).with_row_id(True).to_arrow()
                keys, places = rows["key"].to_numpy(), rows["_rowid"].to_numpy()
                order = np.argsort(keys)
                self._known = version, keys[order], places[order]
        return table, self._known[1], self._known[2]


class _Kept:
    """What both kinds share: keys of items, and making what is missing."""

    def __init__(self, table: VectorTable, batch: int, progress: Progress | None) -> None:
        self.table, self.batch, self.progress = table, batch, progress

    def _ensure(self, keys: Keys, embed: Callable[[np.ndarray], Float32[np.ndarray, "n d"]]) -> int:
        """Makes the vectors that are missing; `embed` gets indexes into `keys`. Returns how many it made.

        Each batch is written as soon as it is made: a killed run loses one.
        """
        missing = self.table.missing(keys)
        if not len(missing):
            return 0
        order = np.argsort(keys, kind="stable")
        items = order[np.searchsorted(keys, missing, sorter=order)]
        for first in range(0, len(missing), self.batch):
            chosen = items[first : first + self.batch]
            self.table.add(keys[chosen], embed(chosen))
            if self.progress is not None:
                self.progress(min(first + self.batch, len(missing)), len(missing), "texts")
        return len(missing)


class Windowed(Protocol):
    """A corpus, as far as vectors of its contexts need one."""

    def contexts(self, context_ids: Integer[np.ndarray, " n"], length: int) -> UInt32[np.ndarray, "n length"]:
        """Token ids of windows."""


class ContextVectors(_Kept):
    """Vectors of a corpus's contexts. The text is the window's tokens decoded as they are, special tokens left out."""

    def __init__(
        self,
        tables: LanceTables,
        embedder: Embedder,
        corpus: Windowed,
        length: int,
        decode: Callable[[UInt32[np.ndarray, "n length"]], list[str]],
        tokenizer: str,
        *,
        batch: int = BATCH,
        progress: Progress | None = None,
    ) -> None:
        """`tokenizer`: identity of what `decode` decodes with. `progress` is told of vectors that have to be made."""
        facts = {"what": "contexts", "embedder": embedder.identity(), "tokenizer": tokenizer, "length": length}
        super().__init__(VectorTable(tables, table_name(facts), facts, embedder), batch, progress)
        self.embedder, self.corpus, self.length, self.decode = embedder, corpus, length, decode

    def ensure(self, contexts: Integer[np.ndarray, " n"]) -> int:
        """Embeds those that have no vector yet, each distinct window once; returns how many."""
        contexts = np.unique(contexts)

        def embed(chosen: np.ndarray) -> Float32[np.ndarray, "n d"]:
            return self.embedder.documents(self.decode(self.corpus.contexts(contexts[chosen], self.length)))

        return self._ensure(self._keys(contexts), embed)

    def get(self, contexts: Integer[np.ndarray, " n"]) -> Float32[np.ndarray, "n dimension"]:
        """One vector per context, in order."""
        self.ensure(contexts)
        return self.table.get(self._keys(contexts))

    def distinct(self, contexts: Integer[np.ndarray, " n"]) -> int:
        """Number of different windows among them."""
        return len(np.unique(self._keys(contexts)))

    def _keys(self, contexts: Integer[np.ndarray, " n"]) -> Keys:
        keys = np.empty(len(contexts), dtype=np.uint64)
        for first in range(0, len(contexts), CHUNK):  # tokens of all windows at once would be the whole corpus
            chunk = contexts[first : first + CHUNK]
            keys[first : first + CHUNK] = text_hashes(self.corpus.contexts(chunk, self.length))
        return keys


class TextVectors(_Kept):
    """Vectors of texts in one role: as what is searched for (`query`) or what is searched in (`document`).

    Both roles share a table; where an embedder has no prefixes a text has one vector in it.
    """

    def __init__(
        self,
        tables: LanceTables,
        embedder: Embedder,
        role: Literal["query", "document"],
        prefix: str,
        *,
        batch: int = BATCH,
        progress: Progress | None = None,
    ) -> None:
        """`prefix`: what the embedder puts before a text in this role. `progress` as for contexts."""
        facts = {"what": "texts", "embedder": embedder.identity()}
        super().__init__(VectorTable(tables, table_name(facts), facts, embedder), batch, progress)
        self.embedder, self.prefix = embedder, prefix
        self._embed = embedder.queries if role == "query" else embedder.documents

    def ensure(self, texts: Iterable[str]) -> int:
        """Embeds those that have no vector yet, each once; returns how many."""
        distinct = list(dict.fromkeys(texts))
        return self._ensure(self.keys(distinct), lambda chosen: self._embed([distinct[i] for i in chosen]))

    def get(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """One vector per text, in order."""
        self.ensure(texts)
        return self.table.get(self.keys(texts))

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text with its prefix; what is beyond the embedder's `max_tokens` is not in the vector."""
        return self.embedder.n_tokens([self.prefix + text for text in texts])

    def keys(self, texts: Sequence[str]) -> Keys:
        """64 bits of the hash of prefix and text."""
        digests = (hashlib.sha256(f"{self.prefix}\0{text}".encode("utf-8", "surrogatepass")) for text in texts)
        return np.array([int.from_bytes(d.digest()[:8], "little") for d in digests], dtype=np.uint64)


def table_name(facts: Mapping[str, Any]) -> str:
    return f"{facts['what']}-{json_sha256(facts)[:16]}"


def refusal(tables: LanceTables, name: str, embedders: Iterable[Embedder]) -> StoreError | None:
    """Why nobody can use a table of vectors, or None: it cannot be read, or those who open it would refuse it.

    Loads the models of those of `embedders` whose table it is; one that cannot be loaded decides nothing.
    """
    damage = tables.damage(name)
    if damage is not None:
        return damage
    told = tables.told(name)
    facts = {key: value for key, value in told.items() if key not in ("format", "dimension")}
    if "what" not in facts or table_name(facts) != name or told.get("format") != FORMAT:
        return StoreError(f"{tables.path(name)} does not say of itself what its name stands for")
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
    return pa.schema([pa.field("key", pa.uint64(), nullable=False), pa.field("vector", vector, nullable=False)])


def _rows(keys: Keys, vectors: Float32[np.ndarray, "keys dimension"]) -> pa.Table:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns = [pa.array(keys, pa.uint64()), pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
    return pa.Table.from_arrays(columns, schema=_schema(vectors.shape[1]))


def _matrix(column: pa.ChunkedArray) -> Float32[np.ndarray, "rows dimension"]:
    combined = column.combine_chunks()
    matrix: Float32[np.ndarray, "rows dimension"] = (
        combined.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float32, copy=False)
    )
    return matrix
