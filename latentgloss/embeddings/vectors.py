"""Vectors of contexts and of texts, each computed once and kept in a LanceDB table.

    contexts-<tokenizer, window length, embedder>     one row per distinct window of tokens
    texts-<embedder>                                  one row per distinct text, prefix included

What belongs here: the two ways to key vectors, and computing the missing ones. A vector is a pure function of the
embedder and of the embedded text, so tables belong to no corpus, SAE or run: a repeated window, another corpus with the
same tokenizer, and a null explanation (the text of another latent) cost nothing. A recipe holds the embedder's
identity, not the vectors. A table may be deleted at any time; vectors that are needed are computed again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from latentgloss.contexts.windows import text_hashes
from latentgloss.embeddings.vector_table import VectorTable, table_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jaxtyping import Float32, Integer, UInt32

    from latentgloss.embeddings.lance import LanceTables
    from latentgloss.embeddings.vector_table import Keys
    from latentgloss.protocols import Embedder

    Progress = Callable[[int, int | None, str], None]


BATCH = 1024
"""Default number of vectors that are computed and then written together."""
CHUNK = 1 << 16
"""Windows hashed at once."""


class _StoredVectors:
    """What both kinds of vectors share: computing the missing ones and writing them to the table."""

    def __init__(self, table: VectorTable, batch: int, progress: Progress | None) -> None:
        self.table, self.batch, self.progress = table, batch, progress

    def _ensure(self, keys: Keys, embed: Callable[[np.ndarray], Float32[np.ndarray, "n d"]]) -> int:
        """Computes missing vectors and returns their number; `embed` gets indexes into `keys`.

        Each batch is written as soon as it is computed, so a killed run loses at most one batch.
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
    """What the vectors of contexts need of a corpus."""

    def contexts(self, context_ids: Integer[np.ndarray, " n"], length: int) -> UInt32[np.ndarray, "n length"]:
        """Token ids of windows of `length` tokens."""


class ContextVectors(_StoredVectors):
    """Vectors of a corpus's contexts. The embedded text is the window's decoded tokens without special tokens."""

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
        """`tokenizer`: identity of the tokenizer that `decode` uses. `progress`: reports the missing vectors."""
        facts = {"what": "contexts", "embedder": embedder.identity(), "tokenizer": tokenizer, "length": length}
        super().__init__(VectorTable(tables, table_name(facts), facts, embedder), batch, progress)
        self.embedder, self.corpus, self.length, self.decode = embedder, corpus, length, decode

    def ensure(self, contexts: Integer[np.ndarray, " n"]) -> int:
        """Embeds the contexts that have no vector yet, each distinct window once; returns their number."""
        contexts = np.unique(contexts)

        def embed(chosen: np.ndarray) -> Float32[np.ndarray, "n d"]:
            return self.embedder.documents(self.decode(self.corpus.contexts(contexts[chosen], self.length)))

        return self._ensure(self._keys(contexts), embed)

    def get(self, contexts: Integer[np.ndarray, " n"]) -> Float32[np.ndarray, "n dimension"]:
        """One vector per context, in order; missing ones are computed first. Raises StoreError if one is damaged."""
        self.ensure(contexts)
        return self.stored(contexts)

    def stored(self, contexts: Integer[np.ndarray, " n"]) -> Float32[np.ndarray, "n dimension"]:
        """One vector per context, in order. Raises KeyError if one is not stored, StoreError if one is damaged."""
        return self.table.get(self._keys(contexts), lambda i: f"context {contexts[i]}")

    def distinct(self, contexts: Integer[np.ndarray, " n"]) -> int:
        """Number of different windows of tokens among these contexts."""
        return len(np.unique(self._keys(contexts)))

    def _keys(self, contexts: Integer[np.ndarray, " n"]) -> Keys:
        keys = np.empty(len(contexts), dtype=np.uint64)
        for first in range(0, len(contexts), CHUNK):  # all at once would hold the tokens of the whole corpus
            chunk = contexts[first : first + CHUNK]
            keys[first : first + CHUNK] = text_hashes(self.corpus.contexts(chunk, self.length))
        return keys


class TextVectors(_StoredVectors):
    """Vectors of texts in one role, `query` or `document`.

    Both roles share a table. If the embedder has no prefixes, a text has one vector for both roles.
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
        """`prefix`: the text that the embedder puts before a text in this role. `progress`: as for contexts."""
        facts = {"what": "texts", "embedder": embedder.identity()}
        super().__init__(VectorTable(tables, table_name(facts), facts, embedder), batch, progress)
        self.embedder, self.prefix = embedder, prefix
        self._embed = embedder.queries if role == "query" else embedder.documents

    def ensure(self, texts: Iterable[str]) -> int:
        """Embeds the texts that have no vector yet, each once; returns their number."""
        distinct = list(dict.fromkeys(texts))
        return self._ensure(self.keys(distinct), lambda chosen: self._embed([distinct[i] for i in chosen]))

    def get(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """One vector per text, in order; missing ones are computed first. Raises StoreError if one is damaged."""
        self.ensure(texts)
        return self.stored(texts)

    def stored(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dimension"]:
        """One vector per text, in order. Raises KeyError if one is not stored, StoreError if one is damaged."""
        return self.table.get(self.keys(texts), lambda i: f"text {texts[i][:60]!r}")

    def n_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text with its prefix; tokens beyond the embedder's `max_tokens` do not enter the vector."""
        return self.embedder.n_tokens([self.prefix + text for text in texts])

    def keys(self, texts: Sequence[str]) -> Keys:
        """The keys of texts: the first 64 bits of the SHA-256 of prefix and text."""
        digests = (hashlib.sha256(f"{self.prefix}\0{text}".encode("utf-8", "surrogatepass")) for text in texts)
        return np.array([int.from_bytes(d.digest()[:8], "little") for d in digests], dtype=np.uint64)
