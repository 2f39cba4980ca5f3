"""Units: what a window consists of for a reader. Words, numbers, line breaks and single marks.

What belongs here: cutting the text of a window into units, and which unit each token stands for. A unit has a *type*:
a word in lower case, `NUMBER` for any run of digits, `LINE` for any line break, and a mark itself. Blank space is no
unit. A word that the edge of a window cuts is the piece that is left of it. Nothing is read or written.

A word is a run of letters with their combining marks, in any script; an English ending after an apostrophe belongs to
it. Scripts that put no spaces between words have no such runs: there, each Chinese or Japanese character is a unit, and
in Thai, Lao, Khmer and Burmese each letter with its marks.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt32

    from latentgloss.models.vocabulary import Vocabulary

NUMBER, LINE = "0", "\n"
"""The types of all numbers and of all line breaks."""
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Blocks of scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Kana, Han."""


@cache
def unit_pattern() -> re.Pattern[str]:
    """One match per unit or run of blank space; the group that matches is `word`, `number`, `line`, `blank` or `mark`.

    Combining marks have to be listed, because Python's `\\w` leaves them out.
    """
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
    spaced = rf"(?:(?![{_UNSPACED}])[^\W\d_][{marks}]*)+(?:['’](?i:t|s|re|ve|ll|d|m)\b)?"
    unspaced = rf"(?![{marks}])[{_UNSPACED}][{marks}]*"
    return re.compile(
        rf"(?P<word>{spaced}|{unspaced})|(?P<number>\d+)|(?P<line>\s*\n\s*)|(?P<blank>\s+)|(?P<mark>.)", re.DOTALL
    )


def types_of(text: str) -> list[tuple[int, str]]:
    """Start and type of each unit of a text, in order; the type of blank space is empty."""
    found = []
    for match in unit_pattern().finditer(text):
        kind, said = match.lastgroup, match.group()
        if kind == "word":
            said = unicodedata.normalize("NFC", said.lower()).replace("’", "'")
        fixed = {"number": NUMBER, "line": LINE, "blank": ""}
        found.append((match.start(), fixed.get(str(kind), said)))
    return found


def is_word(unit: str) -> bool:
    """Whether a type is a word."""
    match = unit_pattern().match(unit)
    return match is not None and match.lastgroup == "word"


class Cut(NamedTuple):
    """The units of one window."""

    types: tuple[str, ...]
    """The type of each unit, in the order of the text."""
    of_token: Int64[np.ndarray, " length"]
    """Index of the unit that each token stands for, that of its first character that is not blank; -1 if it has none,
    such as a special token."""


def cut(tokens: UInt32[np.ndarray, " length"], vocabulary: Vocabulary) -> Cut:
    """The units of a window. Bytes that form no character are marks."""
    data = [b"" if token in vocabulary.special else vocabulary.data[token] for token in tokens.tolist()]
    raw = b"".join(data)
    text = raw.decode("utf-8", "surrogateescape")
    ends = np.cumsum([len(piece) for piece in data])
    starts = ends - [len(piece) for piece in data]
    if len(text) < len(raw):  # from bytes to characters; a character of several tokens belongs to all of them
        first = np.cumsum([0, *(len(c.encode("utf-8", "surrogateescape")) for c in text)])
        starts, ends = np.searchsorted(first, starts, side="right") - 1, np.searchsorted(first, ends)
    units = types_of(text)
    number = np.cumsum([bool(unit) for _, unit in units]) - 1
    begins = [start for start, _ in units]
    of_token = np.full(len(data), -1, dtype=np.int64)
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        piece = text[start:end]
        if not piece or not data[i]:
            continue
        blank = len(piece) - len(piece.lstrip())
        unit = bisect_right(begins, start + (blank if blank < len(piece) else 0)) - 1
        if units[unit][1]:
            of_token[i] = number[unit]
    return Cut(tuple(unit for _, unit in units if unit), of_token)
