"""Exact and near duplicates among documents, and clusters of them.

What belongs here: which documents say the same thing. Works on text alone, so that the same documents fall
into the same clusters under every tokenizer. Reads and writes nothing.

Method. A text is lower-cased, runs of white space become one space, and every 12 consecutive characters are
one shingle (a shorter text is a single shingle). A MinHash sketch of 128 slots estimates the Jaccard
similarity of two texts' sets of shingles. Sketches are cut into bands; two texts are *candidates* if a whole
band agrees:

- bands of 4 slots make **clusters** (similarity .5: 87 % of pairs, .6: 99 %, .3: 23 %). Clusters are
  connected components over all pairs, so they do not depend on the order of documents. Texts that share
  formulas ("Return the current …") meet in one cluster: it costs nothing, and keeps them in one split.
- bands of 8 slots find what is **left out**: a text whose estimated similarity to one kept before it reaches
  the threshold (.8: 95 % of pairs found).

Why 12 characters and not words or tokens: no language is treated specially, and 42 % of the documents of
`python-docs` have fewer than 13 words. docs/decisions/0004-near-duplicates.md has the comparison.

MinHash sees similarity, not containment (a long text that quotes a short one): what remains is marked token
by token in `corpus.py` (`shared_13grams`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64, UInt32, UInt64

if TYPE_CHECKING:
    from collections.abc import Sequence


SHINGLE = 12
SLOTS = 128
CLUSTER_BAND = 4
DROP_BAND = 8
_SKETCH_SEED = 42  # not a setting: splits must not change with anything but the documents and the split seed
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def gram_hashes(values: UInt32[np.ndarray, "*shape length"], n: int) -> UInt64[np.ndarray, "*shape grams"]:
    """64-bit hash of every n consecutive values along the last axis (length - n + 1 of them, at least 0).

    A polynomial modulo 2^64 and splitmix64's finaliser; two different n-grams agree with probability
    near 2^-64.
    """
    count = max(values.shape[-1] - n + 1, 0)
    hashes = np.zeros((*values.shape[:-1], count), dtype=np.uint64)
    for j in range(n if count else 0):
        hashes *= _BASE
        hashes += values[..., j : j + count]
        hashes += np.uint64(1)  # so that leading zeros count
    hashes ^= hashes >> np.uint64(30)
    hashes *= _MIX[0]
    hashes ^= hashes >> np.uint64(27)
    hashes *= _MIX[1]
    hashes ^= hashes >> np.uint64(31)
    return hashes


def normalised(text: str) -> str:
    """The text with runs of white space as one space. Two texts equal in this are exact duplicates."""
    return " ".join(text.split())


def sketches(texts: Sequence[str]) -> UInt32[np.ndarray, "texts 128"]:
    """MinHash sketch of each text (any text; an empty one has the sketch of a single, empty shingle)."""
    from rensa import RMinHash

    # NUL pads a text shorter than one shingle. One flat array for all texts; shingles that would run from one
    # text into the next are taken out again.
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
    """Hash of each band of `size` slots; bands of different places never agree by content."""
    bands = sketch.reshape(len(sketch), SLOTS // size, size)
    place = np.arange(SLOTS // size, dtype=np.uint32)[None, :, None]
    placed = np.concatenate([np.broadcast_to(place, (*bands.shape[:2], 1)), bands], axis=2)
    return gram_hashes(placed, size + 1)[..., 0]


class Duplicates:
    """Documents seen so far. Texts are not kept; memory is about 3 kB per document."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: estimated similarity in (0, 1] to a kept document from which a text is left out."""
        self._threshold = threshold
        self._exact: dict[bytes, int] = {}
        self._same: list[tuple[int, int]] = []  # exact duplicates: (document, the first of its kind)
        self._instead: dict[int, int] = {}  # left out as near duplicate -> the document kept
        self._documents: list[int] = []  # document of each row of the sketches
        self._sketches = np.empty((1024, SLOTS), dtype=np.uint32)
        self._kept: dict[int, int] = {}  # hash of a band -> row of the first kept document with that band

    def add(self, first: int, texts: Sequence[str]) -> list[tuple[str, int | None]]:
        """Status and the document kept instead, for documents `first`, `first` + 1, … in order.

        Status is `ok`, `duplicate_exact`, `duplicate_near` or `empty` (nothing but white space).
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
        # A copy of a text that was itself left out points at the document that was kept.
        for i, (status, kept) in enumerate(verdicts):
            if status == "duplicate_near" and kept is not None:
                self._instead[first + i] = kept
        return [(status, self._instead.get(twin, twin) if twin is not None else None) for status, twin in verdicts]

    def _append(self, documents: list[int], sketch: UInt32[np.ndarray, "texts 128"]) -> range:
        start = len(self._documents)
        self._documents += documents
        if len(self._documents) > len(self._sketches):
            grown = np.empty((max(2 * len(self._sketches), len(self._documents)), SLOTS), dtype=np.uint32)
            grown[:start] = self._sketches[:start]
            self._sketches = grown
        self._sketches[start : len(self._documents)] = sketch
        return range(start, len(self._documents))

    def _near(self, row: int, bands: list[int]) -> tuple[str, int | None]:
        # Only the first kept document of a band is compared, so that a template with a million instances
        # costs no more than any other text; a pair missed so is still in one cluster.
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
        """Cluster of each of the first `n_documents` documents, numbered by first appearance.

        An empty document is a cluster of its own. The partition into clusters does not depend on the order of
        documents; adding one can merge clusters that it resembles and changes no other.
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
