"""Units: the words, numbers, line breaks and marks of a window, and the unit in which each token lies.

What belongs here: reading a window of token ids as text. A label names words, and a latent fires on tokens, which are
often pieces of words; so a token stands for the unit in which it begins. Letters of any script make a word; in text
without spaces a word is a run of letters. Nothing is read or written.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int16, Int32, UInt32

    from latentgloss.models.vocabulary import Vocabulary

NUMBER, LINE = "0", "\n"
"""Types of all numbers and of all line breaks. The type of a word is the word in lower case, that of a mark itself."""
CACHED = 20_000
"""Windows that a reader remembers. The latents of an SAE are shown the same windows again and again."""

_UNIT = re.compile(
    r"(?P<word>[^\W\d_]+(?:['’](?:t|s|re|ve|ll|d|m)\b)?)|(?P<number>\d+)|(?P<line>\s*\n\s*)|(?P<space>\s+)|(?P<mark>.)",
    re.DOTALL,
)


class Window(NamedTuple):
    """The units of one window, in order, without blank space."""

    types: Int32[np.ndarray, " units"]
    """Number of each unit's type in `UnitReader.types`."""
    texts: Int32[np.ndarray, " units"]
    """Number of each unit's text, as it is written there, in `UnitReader.texts`."""
    of_token: Int16[np.ndarray, " length"]
    """Place of the unit in which each token begins; -1 for special tokens and blank space."""


class UnitReader:
    """Reads windows of one subject model. Types and texts are numbered in the order in which they are first seen."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.types: list[str] = []
        self.texts: list[str] = []
        self._type_numbers: dict[str, int] = {}
        self._text_numbers: dict[str, int] = {}
        self._windows: OrderedDict[bytes, Window] = OrderedDict()

    def __call__(self, tokens: UInt32[np.ndarray, " length"]) -> Window:
        """The units of a window."""
        key = tokens.tobytes()
        found = self._windows.get(key)
        if found is None:
            found = self._windows[key] = self._read(tokens)
            if len(self._windows) > CACHED:
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(key)
        return found

    def _read(self, tokens: UInt32[np.ndarray, " length"]) -> Window:
        pieces = self._pieces(tokens)
        text = "".join(pieces)
        types: list[int] = []
        texts: list[int] = []
        place = np.full(len(text) + 1, -1, dtype=np.int16)
        for match in _UNIT.finditer(text):
            kind = match.lastgroup
            if kind == "space":
                continue
            place[match.start() : match.end()] = len(types)
            word = match.group()
            name = NUMBER if kind == "number" else LINE if kind == "line" else word.lower()
            types.append(_numbered(name, self._type_numbers, self.types))
            texts.append(_numbered(LINE if kind == "line" else word, self._text_numbers, self.texts))
        at = 0
        of_token = np.full(len(pieces), -1, dtype=np.int16)
        for i, piece in enumerate(pieces):
            blank = len(piece) - len(piece.lstrip())
            if piece:  # a piece of blank space alone belongs to a line break, if it has one
                of_token[i] = place[at + (blank if blank < len(piece) else 0)]
            at += len(piece)
        return Window(np.array(types, dtype=np.int32), np.array(texts, dtype=np.int32), of_token)

    def _pieces(self, tokens: UInt32[np.ndarray, " length"]) -> list[str]:
        """The characters that each token adds to the text: those that it completes. Special tokens add none."""
        vocabulary = self.vocabulary
        data = [b"" if int(t) in vocabulary.special else vocabulary.data[int(t)] for t in tokens]
        try:
            return [part.decode() for part in data]
        except UnicodeDecodeError:  # a character of several tokens
            pieces, whole, done = [], b"", 0
            for part in data:
                whole += part
                text = whole.decode("utf-8", "ignore")
                pieces.append(text[done:])
                done = len(text)
            return pieces


@lru_cache(maxsize=2)
def unit_reader(vocabulary: Vocabulary) -> UnitReader:
    """The reader of a vocabulary, one per process, so that explainers that are made anew share its windows."""
    return UnitReader(vocabulary)


def _numbered(name: str, numbers: dict[str, int], names: list[str]) -> int:
    if name not in numbers:
        numbers[name] = len(names)
        names.append(name)
    return numbers[name]


def stem(word: str) -> str:
    """A word without the commonest English endings (plural, -ed, -ing, final e); other scripts stay as they are.

    Forms of one word get one stem, so that a label names a word once. It is coarse, and that does no harm: at worst two
    words share a place in a label.
    """
    found = re.sub(r"['’](?:s|re|ve|ll|d|m)$", "", word.lower())
    if not found.isascii() or not found.isalpha() or len(found) < 4:
        return found
    if found.endswith("ies") and len(found) > 4:
        found = found[:-3] + "y"
    elif found.endswith(("sses", "xes", "zes", "ches", "shes")):
        found = found[:-2]
    elif found.endswith("s") and not found.endswith(("ss", "us", "is", "as", "os")):
        found = found[:-1]
    for ending in ("ing", "ed"):
        core = found.removesuffix(ending)
        if core != found and len(core) >= 3 and re.search("[aeiouy]", core):
            found = core[:-1] if len(core) > 3 and core[-1] == core[-2] and core[-1] not in "lsz" else core
            break
    if found.endswith("e") and len(found) > 3:
        found = found[:-1]
    return found[:-1] + "i" if found.endswith("y") and len(found) > 4 else found
