"""One recomputed value compared with the stored one (`Check`), and the comparisons that all checks share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Check:
    """One recomputed value, compared with the stored one."""

    what: str
    """What was recomputed."""
    ok: bool | None
    """Whether the values agree; None if it could not be recomputed here."""
    found: str = ""
    """The recomputed value, or why there is none."""
    stored: str = ""

    def __str__(self) -> str:
        return f"{self.what}: found {self.found}" + (f", stored {self.stored}" if self.stored else "")


def equal(what: str, found: Any, stored: Any) -> Check:
    """A check that holds if both values are equal."""
    return Check(what, bool(found == stored), shown(found), shown(stored))


def none_of(what: str, offenders: Iterable[Any], ok: str = "") -> Check:
    """A check that holds if there are no offenders, and otherwise names the first three. `ok`: its text if it holds."""
    wrong = list(offenders)
    return Check(what, not wrong, f"{len(wrong)} that differ, first {wrong[:3]}" if wrong else ok)


def shown(value: Any) -> str:
    """A value as text of at most 100 characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 100 else text[:97] + "…"
