"""Text of a corpus as it stands in a prompt: readable, on one line, and unable to be anything but quoted text.

What belongs here: from token ids (with marks) or a string to what may stand between `OPEN` and `CLOSE`. Nothing is
read or written. How things are shown is told to the model by the prompts (`prompts/`), to people by docs/prompts.md.

Corpus text and explanations are not to be trusted: they may hold what looks like the end of their own quotation, like
another entry, like marks, or like the control tokens of a chat template. None of that can come out of here: no
delimiter, no line break, no control character, no `<<` or `>>` that is not a mark. And nothing is lost: what was
replaced can be told from what is shown (`docs/prompts.md` has the table), except that the marks of a character that
several tokens make up are joined.
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
"""In place of special tokens, which in a corpus stand between documents only."""

_SHOWN = {"\n": "⏎", "\t": "⇥", "<": "‹", ">": "›"}
_RESERVED = frozenset("⟦⟧⟨⟩⏎⇥‹›")
"""What has a meaning in a quotation is written as its number where the text itself has it."""
_PLAIN = re.compile(r"[ -;=?-Z\\^-~]*")
"""Nothing in such a text is replaced."""
_NAMES = r"bos|eos|pad|unk|mask|cls|sep|think|\w+_of_\w+|(?:begin|end|start)_\w+|unused\d+|tool\w*"
_ANGLES = re.compile(
    r"<{2,}|>{2,}"
    r"|<[|｜]|[|｜]>"  # of control tokens: only the outermost characters count
    rf"|</?(?:s|{_NAMES})>",
    re.IGNORECASE,
)
_BETWEEN_MARKS = re.compile(rf"/s|/?(?:{_NAMES})", re.IGNORECASE)
"""What a mark's own angles would make a control token of. But for `s`: <<s>> is the plural of many words."""
_BRACKETS = re.compile(
    r"\[/?(?:INST|SYS\w*|AVAILABLE_TOOLS|TOOL_\w+|ARGS|CALL_ID|IMG\w*|PREFIX|MIDDLE|SUFFIX|THINK|PAD|CLS|SEP|MASK|UNK)\]"
)


@lru_cache(maxsize=4096)
def _replacement(character: str) -> str | None:
    """What stands for a character wherever it occurs; None: it may stand as it is."""
    number = ord(character)
    if character in "\n\t":
        return _SHOWN[character]
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no part of a character, as "surrogateescape" decodes it
        return f"⟨{number - 0xDC00:02X}⟩"
    if character in _RESERVED or (character != " " and unicodedata.category(character)[0] in "CZ"):
        return _numbered(character)
    return None


def _numbered(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"


def _escaped(text: str) -> list[str]:
    """One entry per character of `text`, what it is shown as."""
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
    """A string as it may stand in a quotation, unmarked. Lone surrogates are shown as bytes or numbers."""
    return text if _PLAIN.fullmatch(text) else "".join(_escaped(text))


def quoted(text: str) -> str:
    """The quotation of a string."""
    return f"{OPEN}{readable(text)}{CLOSE}"


def quoted_tokens(
    tokens: UInt32[np.ndarray, " length"], vocabulary: Vocabulary, marked: Bool[np.ndarray, " length"] | None = None
) -> str:
    """The quotation of a window. Neighbouring marked tokens stand between one `<<` and `>>`.

    A character that several tokens make up is marked as a whole if one of them is. Raises ExplainerError if a token is
    not of the vocabulary.
    """
    return quoted_runs(tokens, vocabulary, marked)[0]


def quoted_runs(
    tokens: UInt32[np.ndarray, " length"], vocabulary: Vocabulary, marked: Bool[np.ndarray, " length"] | None = None
) -> tuple[str, list[slice]]:
    """`quoted_tokens`, and for each mark in order the tokens that have a part in it."""
    vocabulary.check(tokens[None])
    ids = tokens.tolist()
    # A special token is one byte that is in no text; its place is remembered, so that the byte itself stays possible.
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
    for i in edges:  # an angle of the text beside a mark would be taken for part of it
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
    """The byte at which each character starts, and where the last ends."""
    return [0, *accumulate(len(c.encode("utf-8", "surrogateescape")) for c in text)]
