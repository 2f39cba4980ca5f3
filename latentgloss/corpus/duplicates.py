"""Duplicates: exact and near-duplicate documents, and clusters of them.

What belongs here: which documents have the same text or nearly the same. Works on text alone, so the same documents
fall into the same clusters under every tokenizer. Reads and writes nothing.

Method (docs/methods.md, Data). For the comparison alone, a text is brought into NFC and lower-cased, and every
run of white space becomes one space. Every 12 consecutive characters are one shingle; a shorter text is a single
shingle. A MinHash sketch of 128 slots (Broder 1997)
estimates the Jaccard similarity of two texts' sets of shingles. Sketches are cut into bands. Two texts are *candidates*
if they agree in a whole band:

- Bands of 4 slots define **clusters** (they find 87 % of the pairs of similarity .5, 99 % of .6, 23 % of .3). Clusters
  are connected components over all pairs, so they do not depend on the order of documents. Texts that share formulas
  ("Return the current …") fall into one cluster. This costs nothing and keeps them in one split.
- Bands of 8 slots find what is **left out**: a text whose estimated similarity to an earlier kept text reaches the
  threshold (95 % of the pairs of similarity .8 are found).

Shingles are 12 characters instead of words or tokens because no language is then treated specially, and because 42 % of
the documents of `python-docs` have fewer than 13 words. docs/decisions/0004-near-duplicates.md has the comparison.

MinHash sees similarity, not containment (a long text that quotes a short one). What it misses is marked token by token
in `corpus/packing.py` (`shared_13grams`).
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64, UInt32, UInt64

if TYPE_CHECKING:
    from collections.abc import Sequence


COMPARISON = "2"
"""Version of how texts are compared. 2: in NFC. It is in the recipe of a corpus whose texts are not all in NFC already
(`sources.compared_as_before`), because for others version 1 gives the same."""
SHINGLE = 12
"""Characters per shingle."""
SLOTS = 128
"""Slots of a MinHash sketch."""
CLUSTER_BAND = 4
"""Slots of the bands that define clusters."""
DROP_BAND = 8
"""Slots of the bands that find documents to leave out."""
_SKETCH_SEED = 42
"""Not a setting, because splits must depend on nothing but the documents and the seed of splits."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Constants of splitmix64 (Steele, Lea & Flood, OOPSLA 2014)."""


def gram_hashes(values: UInt32[np.ndarray, "*shape length"], n: int) -> UInt64[np.ndarray, "*shape grams"]:
    """64-bit hash of every n consecutive values along the last axis: max(length - n + 1, 0) hashes.

    A polynomial modulo 2^64, then splitmix64's finaliser. Two different n-grams have equal hashes with probability
    near 2^-64.
    """
    count = max(values.shape[-1] - n + 1, 0)
    hashes = np.zeros((*values.shape[:-1], count), dtype=np.uint64)
    for j in range(n if count else 0):
        hashes *= _BASE
        hashes += values[..., j : j + count]
        hashes += np.uint64(1)  # otherwise leading zeros would leave no trace
    hashes ^= hashes >> np.uint64(30)
    hashes *= _MIX[0]
    hashes ^= hashes >> np.uint64(27)
    hashes *= _MIX[1]
    hashes ^= hashes >> np.uint64(31)
    return hashes


def normalised(text: str) -> str:
    """The text in Unicode's NFC with each run of white space as one space, only to be compared.

    Texts that are equal afterwards are exact duplicates. In NFC an accented letter or a Hangul syllable is the same
    whether it was written as one character or as several.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def sketches(texts: Sequence[str]) -> UInt32[np.ndarray, "texts 128"]:
    """MinHash sketch of each text. An empty text has the sketch of a single, empty shingle."""
    from rensa import RMinHash

    # NUL pads a text shorter than one shingle. All texts are one flat array; shingles that would run from one text into
    # the next are removed.
    padded = [normalised(text).lower().ljust(SHINGLE, "\0") for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    counts = lengths - (SHINGLE - 1)
    offsets = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) + np.repeat(starts - offsets, counts)
    shingles = gram_hashes(points, SHINGLE)[index]
    bounds = np.append(offsets, counts.sum()).astype(np.uint64)
    matrix: Any = RMinHash.digest_matrix_from_flat_token_hashes(shingles, bounds, SLOTS, _SKETCH_SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), SLOTS)


def _bands(sketch: UInt32[np.ndarray, "texts 128"], size: int) -> UInt64[np.ndarray, "texts bands"]:
    """Hash of each band of `size` slots; the band's place is hashed too, so bands of different places do not agree."""
    bands = sketch.reshape(len(sketch), SLOTS // size, size)
    place = np.arange(SLOTS // size, dtype=np.uint32)[None, :, None]
    placed = np.concatenate([np.broadcast_to(place, (*bands.shape[:2], 1)), bands], axis=2)
    return gram_hashes(placed, size + 1)[..., 0]


class Duplicates:
    """Documents read so far and the duplicates among them. Texts are not kept; memory is about 3 kB per document."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: estimated similarity to a kept document, in (0, 1], from which a document is left out."""
        self._threshold = threshold
        self._exact: dict[bytes, int] = {}
        self._same: list[tuple[int, int]] = []  # exact duplicates: (document, first document of that text)
        self._instead: dict[int, int] = {}  # document left out as near-duplicate -> document kept
        self._documents: list[int] = []  # document of each row of the sketches
        self._sketches = np.empty((1024, SLOTS), dtype=np.uint32)
        self._kept: dict[int, int] = {}  # hash of a band -> row of the first kept document with that band

    def add(self, first: int, texts: Sequence[str]) -> list[tuple[str, int | None]]:
        """(status, document kept instead or None) of the documents `first`, `first` + 1, … in order.

        The status is `ok`, `duplicate_exact`, `duplicate_near` or `empty` (only white space).
        """
        verdicts: list[tuple[str, int | None]] = [("empty", None)] * len(texts)
        fresh = []
        for i, text in enumerate(texts):
            plain = normalised(text)
            if not plain:
                continue
            key = hashlib.sha256(plain.encode()).digest()[:16]
            twin = self._exact.setdefault(key, first + i)
            if twin == first + i:
                fresh.append(i)
            else:
                self._same.append((first + i, twin))
                verdicts[i] = ("duplicate_exact", twin)
        if fresh:
            sketch = sketches([texts[i] for i in fresh])
            rows = self._append([first + i for i in fresh], sketch)
            for i, row, bands in zip(fresh, rows, _bands(sketch, DROP_BAND).tolist(), strict=True):
                verdicts[i] = self._near(row, bands)
        # A copy of a document that was itself left out refers to the document that was kept.
        for i, (status, kept) in enumerate(verdicts):
            if status == "duplicate_near" and kept is not None:
                self._instead[first + i] = kept
        return [(status, self._instead.get(twin, twin) if twin is not None else None) for status, twin in verdicts]

    def _append(self, documents: list[int], sketch: UInt32[np.ndarray, "texts 128"]) -> range:
        """Adds sketches of some documents and returns their rows."""
        start = len(self._documents)
        self._documents += documents
        if len(self._documents) > len(self._sketches):
            grown = np.empty((max(2 * len(self._sketches), len(self._documents)), SLOTS), dtype=np.uint32)
            grown[:start] = self._sketches[:start]
            self._sketches = grown
        self._sketches[start : len(self._documents)] = sketch
        return range(start, len(self._documents))

    def _near(self, row: int, bands: list[int]) -> tuple[str, int | None]:
        """Status of the document in a row, and the kept document that it nearly duplicates.

        Of each band, only the first kept document is compared, so a template with a million instances costs no more
        than any other text. A pair that this misses is still in one cluster.
        """
        candidates = sorted({self._kept[band] for band in bands if band in self._kept})
        if candidates:
            agree: Bool[np.ndarray, "candidates 128"] = self._sketches[candidates] == self._sketches[row]
            similarity = agree.mean(axis=1)
            best = int(similarity.argmax())
            if similarity[best] >= self._threshold:
                return "duplicate_near", self._documents[candidates[best]]
        for band in bands:
            self._kept.setdefault(band, row)
        return "ok", None

    def clusters(self, n_documents: int) -> UInt32[np.ndarray, " documents"]:
        """Cluster of each of the first `n_documents` documents; clusters are numbered by first appearance.

        An empty document is a cluster of its own. The partition into clusters does not depend on the order of
        documents. One more document can merge clusters that it resembles; it changes no other cluster.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        documents: Int64[np.ndarray, " rows"] = np.array(self._documents, dtype=np.int64)
        documents = documents[documents < n_documents]
        pairs = [np.array(self._same, dtype=np.int64).reshape(-1, 2)]
        for band in _bands(self._sketches[: len(documents)], CLUSTER_BAND).T:
            order = np.argsort(band, kind="stable")
            equal = band[order[1:]] == band[order[:-1]]
            pairs.append(np.stack([documents[order[1:][equal]], documents[order[:-1][equal]]], axis=1))
        edges = np.concatenate(pairs)
        edges = edges[edges.max(axis=1) < n_documents]
        graph = coo_array((np.ones(len(edges), dtype=bool), tuple(edges.T)), shape=(n_documents, n_documents))
        labels = connected_components(graph, directed=False)[1]
        _, seen, inverse = np.unique(labels, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(seen))[inverse].astype(np.uint32)
