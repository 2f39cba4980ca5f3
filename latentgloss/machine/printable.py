"""Printable text: what comes from files, models and servers, made harmless for terminals, logs and pages.

What belongs here: one function that replaces control characters. A terminal obeys them (ESC), and some change the order
in which a line is read (U+202E). Nothing is read or written.
"""

from __future__ import annotations


def printable(value: object, *, lines: bool = False) -> str:
    """`value` as text without control characters: white space becomes a space, everything else U+FFFD.

    `lines`: keeps line breaks, for messages of several lines.
    """
    text = str(value)
    if text.isprintable():
        return text
    kept = "\n" if lines else ""
    return "".join(
        c if c.isprintable() or c in kept else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
