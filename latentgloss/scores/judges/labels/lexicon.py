"""The lexicon of a corpus: each type of unit with its frequency, and words with their vectors.

What belongs here: numbering types as they occur, how frequent they are in the corpus, and the vector of each word,
embedded by itself. Vectors come from `protocols.Vectors`, which stores them.

Frequencies and the mean vector are those of at most `SAMPLE` windows, evenly spaced over the corpus, so that they do
not depend on what is asked. Words that only other windows have are added when they are asked about, with frequency 0.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentgloss.explanations.labels.units import UnitReader
from latentgloss.scores.judges.labels.reading import is_word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jaxtyping import Float32, Float64, Int64, UInt32

    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import Vectors

SAMPLE = 1 << 15
"""Windows of the corpus in which types are counted."""
COMMON = 1 / 200
"""A word is frequent if its share of all units is larger."""
USUAL = 4096
"""Words, the most frequent of the corpus, to which a label is on average as close as to any."""
SCALE = 100_000
"""Frequencies are counted per so many units."""


class Units(NamedTuple):
    """The units of several windows, one after the other."""

    types: Int64[np.ndarray, " units"]
    """Number of the type of each unit."""
    window: Int64[np.ndarray, " units"]
    """Row of the window that each unit is in, ascending."""
    of_token: Int64[np.ndarray, "windows length"]
    """Index of the unit that each token stands for; -1 if it stands for none."""


class Lexicon:
    """Types of unit by number. It grows with the windows and labels that are read, and is for one thread at a time."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        corpus: Callable[[int], UInt32[np.ndarray, "windows length"]],
        vectors: Callable[[], Vectors],
    ) -> None:
        """All arguments are called when the lexicon is first used.

        `corpus`: returns the tokens of at most so many windows. `vectors`: the stored vectors of texts.
        """
        self._vocabulary, self._corpus, self._vectors = vocabulary, corpus, vectors
        self.names: list[str] = []
        """The type with each number."""
        self._number: dict[str, int] = {}
        self._of_reader: list[int] = []
        """The number of each of the reader's types."""
        self._mean: Float64[np.ndarray, " dimension"] | None = None
        self._directions: Float32[np.ndarray, "types dimension"] = np.zeros((0, 1), dtype=np.float32)

    def numbers(self, types: Iterable[str]) -> list[int]:
        """The number of each type; new types are added."""
        found = []
        for name in types:
            number = self._number.setdefault(name, len(self.names))
            if number == len(self.names):
                self.names.append(name)
            found.append(number)
        return found

    def units(self, tokens: UInt32[np.ndarray, "windows length"]) -> Units:
        """The units of windows."""
        windows = [self._reader(row) for row in tokens]
        self._of_reader += self.numbers(self._reader.types[len(self._of_reader) :])
        sizes = np.array([len(window.types) for window in windows], dtype=np.int64)
        first = np.cumsum(sizes) - sizes
        of_token = np.array([window.of_token for window in windows], dtype=np.int64).reshape(tokens.shape)
        read = np.concatenate([np.empty(0, np.int64), *(window.types for window in windows)])
        return Units(
            np.array(self._of_reader, dtype=np.int64)[read],
            np.repeat(np.arange(len(windows)), sizes),
            np.where(of_token < 0, -1, of_token + first[:, None]),
        )

    @cached_property
    def _reader(self) -> UnitReader:
        return UnitReader(self._vocabulary())

    @cached_property
    def _counts(self) -> Int64[np.ndarray, " types"]:
        """How often each type occurs in the sample of the corpus; types that it does not have are missing."""
        counts = np.bincount(self.units(self._corpus(SAMPLE)).types, minlength=1)
        return counts[: int(np.flatnonzero(counts).max(initial=0)) + 1]

    def share(self, numbers: Int64[np.ndarray, " types"]) -> Float64[np.ndarray, " types"]:
        """The share of each type among the units of the corpus."""
        counts = self._counts
        known = np.where(numbers < len(counts), counts[np.minimum(numbers, len(counts) - 1)], 0)
        shares: Float64[np.ndarray, " types"] = known / max(int(counts.sum()), 1)
        return shares

    def frequent(self, word: str) -> bool:
        """Whether a word is among the most frequent of the corpus (`COMMON`)."""
        return word in self._number and bool(self.share(np.array([self._number[word]]))[0] > COMMON)

    def closeness(
        self, types: Int64[np.ndarray, " types"], words: Iterable[int], *, relative: bool = False
    ) -> Float64[np.ndarray, " types"]:
        """The largest cosine of each type with some `words` (numbers), at least 0; 0 for types that are no words.

        `relative`: minus the mean over the corpus's words (`USUAL`), each as often as it occurs. A label is closer to
        any word than to marks of punctuation, and the closer, the more words it names.
        """
        named = [number for number in dict.fromkeys(words) if is_word(self.names[number])]
        if not named:
            return np.zeros(len(types))
        # In float64, because the last digits of a product depend on what else is multiplied.
        near = self.directions(np.array(named, dtype=np.int64)).T
        found: Float64[np.ndarray, " types"] = (self.directions(types) @ near).max(axis=1)
        if relative:
            usual, weights = self._usual
            found = found - (usual @ near).max(axis=1) @ weights
        return np.where([is_word(self.names[number]) for number in types], np.maximum(found, 0), 0)

    @cached_property
    def _usual(self) -> tuple[Float64[np.ndarray, "words dimension"], Float64[np.ndarray, " words"]]:
        """Directions of the corpus's most frequent words, and the weight of each; the weights add up to 1."""
        counts = self._counts
        words = np.array([i for i in np.flatnonzero(counts) if is_word(self.names[i])], dtype=np.int64)
        words = words[np.argsort(-counts[words], kind="stable")[:USUAL]]
        return self.directions(words), counts[words] / max(int(counts[words].sum()), 1)

    def directions(self, numbers: Int64[np.ndarray, " types"]) -> Float64[np.ndarray, "types dimension"]:
        """Per type, (v - μ) / ‖v - μ‖ with μ the mean vector of the corpus's words; 0 for types that are no words."""
        counts = self._counts
        new = self.names[len(self._directions) :]
        words = np.array([i for i, name in enumerate(new) if is_word(name)], dtype=np.int64)
        if len(words):
            vectors = self._vectors().get([new[i] for i in words]).astype(np.float64)
            if self._mean is None:
                weights = np.concatenate([counts, np.zeros(len(new) - len(counts))])[words]
                self._mean = (vectors * weights[:, None]).sum(axis=0) / max(float(weights.sum()), 1)
            added = np.zeros((len(new), vectors.shape[1]), dtype=np.float32)
            away = vectors - self._mean
            added[words] = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
            self._directions = np.concatenate([self._directions.reshape(-1, added.shape[1]), added])
        elif new:
            added = np.zeros((len(new), self._directions.shape[1]), dtype=np.float32)
            self._directions = np.concatenate([self._directions, added])
        found: Float64[np.ndarray, "types dimension"] = self._directions[numbers].astype(np.float64)
        return found
