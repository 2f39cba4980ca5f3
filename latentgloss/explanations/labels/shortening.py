"""The label of an explanation that was written as a text: the text itself, or its beginning."""

from __future__ import annotations

import re
import unicodedata

MOST = 120
"""Most characters of a label."""
_ENDS = re.compile(r"(?<=[.!?;。！？；])\s*")
"""Where a text may be cut without an ellipsis."""


def shortened(text: str) -> str:
    """A text in one line of at most `MOST` characters.

    White space is folded, and characters that cannot be seen are left out. A longer text is cut after the last sentence
    or clause that fits, if that is at least a third of the line; or else after a word, with an ellipsis.
    """
    seen = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(seen.split())
    if len(line) <= MOST:
        return line
    ends = [found.start() for found in _ENDS.finditer(line) if MOST // 3 <= found.start() <= MOST]
    if ends:
        return line[: ends[-1]].rstrip(" ;；")
    cut = line[: MOST - 1]
    word = cut.rfind(" ")
    return (cut[:word] if word >= MOST // 3 else cut).rstrip(" ,;:") + "…"
