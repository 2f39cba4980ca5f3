"""Quotes corpus text for a prompt: readable, on one line, and in a form that can only be read as quoted text.

What belongs here: turning token ids (with marks) or a string into the text between `OPEN` and `CLOSE`. Nothing is read
or written. The prompts (`*.txt`) explain the notation to the model, docs/prompts.md explains it to people.

Corpus text and explanations are not trusted. They may contain text that looks like the end of their own quotation, like
another entry, like marks, or like the control tokens of a chat template. A quotation therefore never contains a
delimiter, a line break, a control character, or a `<<` or `>>` that is not a mark. Nothing is lost: the original text
follows from the quotation (the table is in docs/prompts.md), except that the marks of a character made of several
tokens are joined.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt32

    from latentgloss.models.vocabulary import Vocabulary


OPEN, CLOSE = "⟦", "⟧"
MARK, UNMARK = "<<", ">>"
BORDER = "⟨|⟩"
"""Shown instead of special tokens, which a corpus contains only between documents."""

_SHOWN = {"\n": "⏎", "\t": "⇥", "<": "‹", ">": "›"}
_RESERVED = frozenset("⟦⟧⟨⟩⏎⇥‹›")
"""Characters with a meaning in a quotation. Where the text itself contains them, their numbers are shown."""
_PLAIN = re.compile(r"[ -;=?-Z\\^-~]*")
"""A text in which nothing is replaced."""
_NAMES = r"bos|eos|pad|unk|mask|cls|sep|think|\w+_of_\w+|(?:begin|end|start)_\w+|unused\d+|tool\w*"
_ANGLES = re.compile(
    r"<{2,}|>{2,}"
    r"|<[|｜]|[|｜]>"  # of control tokens: only the outermost characters count
    rf"|</?(?:s|{_NAMES})>",
    re.IGNORECASE,
)
_BETWEEN_MARKS = re.compile(rf"/s|/?(?:{_NAMES})", re.IGNORECASE)
"""Marked text that would form a control token with the angles of its own mark.

`s` is left out, because <<s>> is the plural ending of many words."""
_BRACKETS = re.compile(
    r"\[/?(?:INST|SYS\w*|AVAILABLE_TOOLS|TOOL_\w+|ARGS|CALL_ID|IMG\w*|PREFIX|MIDDLE|SUFFIX|THINK|PAD|CLS|SEP|MASK|UNK)\]"
)


@lru_cache(maxsize=4096)
def _replacement(character: str) -> str | None:
    """The text that replaces a character wherever it occurs; None if it is shown as it is."""
    number = ord(character)
    if character in "\n\t":
        return _SHOWN[character]
    if 0xDC80 <= number <= 0xDCFF:  # "surrogateescape" decodes a byte that belongs to no character to this
        return f"⟨{number - 0xDC00:02X}⟩"
    if character in _RESERVED or (character != " " and unicodedata.category(character)[0] in "CZ"):
        return _numbered(character)
    return None


def _numbered(character: str) -> str:
    """A character's number, as a quotation shows it."""
    return f"⟨U+{ord(character):04X}⟩"


def _escaped(text: str) -> list[str]:
    """The text shown for each character of `text`."""
    shown = list(text)
    for i, character in enumerate(text):
        if not (" " <= character <= "~"):
            shown[i] = _replacement(character) or character
    for found in _ANGLES.finditer(text):
        for i in range(*found.span()):
            shown[i] = _SHOWN.get(text[i], shown[i])
    for found in _BRACKETS.finditer(text):
        shown[found.start()] = "⟨U+005B⟩"
    return shown


def readable(text: str) -> str:
    """The inside of a string's quotation, without marks. Lone surrogates are shown as bytes or numbers."""
    return text if _PLAIN.fullmatch(text) else "".join(_escaped(text))


def quoted(text: str) -> str:
    """The quotation of a string, with its delimiters."""
    return f"{OPEN}{readable(text)}{CLOSE}"


def quoted_tokens(
    tokens: UInt32[np.ndarray, " length"], vocabulary: Vocabulary, marked: Bool[np.ndarray, " length"] | None = None
) -> str:
    """The quotation of a window's tokens. Neighbouring marked tokens share one pair of `<<` and `>>`.

    A character made of several tokens is marked as a whole if one of them is. Raises ExplainerError if a token id is
    outside the vocabulary.
    """
    return quoted_runs(tokens, vocabulary, marked)[0]


def quoted_runs(
    tokens: UInt32[np.ndarray, " length"], vocabulary: Vocabulary, marked: Bool[np.ndarray, " length"] | None = None
) -> tuple[str, list[slice]]:
    """`quoted_tokens`, and for each mark, in order, the slice of the tokens that are at least partly inside it."""
    vocabulary.check(tokens[None])
    ids = tokens.tolist()
    # A special token becomes a byte that UTF-8 never uses. Its position is replaced below, not every such byte.
    data = [b"\xff" if i in vocabulary.special else vocabulary.data[i] for i in ids]
    text = b"".join(data).decode("utf-8", "surrogateescape")
    flags = [False] * len(ids) if marked is None else marked.tolist()
    plain = _PLAIN.fullmatch(text) is not None
    if plain and not any(flags):
        return f"{OPEN}{text}{CLOSE}", []
    starts = [0, *accumulate(map(len, data))]
    at = range(len(text) + 1) if plain else _character_starts(text)
    shown = list(text) if plain else _escaped(text)
    place = {byte: i for i, byte in enumerate(at)}
    for start, i in zip(starts, ids, strict=False):
        if i in vocabulary.special:
            shown[place[start]] = BORDER
    of_byte = np.repeat(flags, [len(d) for d in data])
    on = [bool(of_byte[a:b].any()) for a, b in pairwise(at)] if any(flags) else [False] * len(text)
    edges = [i for i, (a, b) in enumerate(zip([False, *on], [*on, False], strict=True)) if a != b]
    for i in edges:  # an angle of the text beside a mark would look like a part of it
        for beside in (i - 1, i):
            if 0 <= beside < len(text):
                shown[beside] = _SHOWN.get(text[beside], shown[beside])
    runs: list[slice] = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        for i in (first, last - 1):
            if text[i] in "|｜" or (i == first and _BETWEEN_MARKS.fullmatch(text[first:last])):
                shown[i] = _numbered(text[i])
        shown[first] = MARK + shown[first]
        shown[last - 1] += UNMARK
        begin, end = bisect_right(starts, at[first]) - 1, bisect_left(starts, at[last])
        runs.append(slice(begin, end))
    return f"{OPEN}{''.join(shown)}{CLOSE}", runs


def _character_starts(text: str) -> list[int]:
    """The offset in bytes at which each character starts, and at which the last one ends."""
    return [0, *accumulate(len(c.encode("utf-8", "surrogateescape")) for c in text)]
