"""Programs as JSON: one way to read them, with one error for whatever does not fit.

What belongs here: what all kinds of programs share. `programs.py` lists which class reads which kind.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from latentgloss.errors import ExplainerError

if TYPE_CHECKING:
    from collections.abc import Callable


T = TypeVar("T")


def read_program(program: str, kind: str, version: int, build: Callable[[dict[str, Any]], T]) -> T:
    """Parses a stored program and returns what `build` makes of it.

    `build` may raise KeyError, TypeError or ValueError for an entry that is missing or wrong. Raises ExplainerError for
    these, for text that is not JSON, and for a program of another kind or version.
    """
    try:
        content = json.loads(program)
        found = content["kind"], content["version"]
        if found == (kind, version):
            return build(content)
    except (KeyError, TypeError, ValueError, RecursionError) as e:  # ValueError includes JSONDecodeError
        raise ExplainerError(
            f"this is not a program of kind {kind!r} ({e})",
            expected="JSON as `to_json` writes it",
            todo="compute the explanations again",
        ) from e
    raise ExplainerError(
        f"a program of kind {found[0]!r}, version {found[1]!r}",
        expected=f"kind {kind!r}, version {version}",
        todo="compute the explanations again",
    )
