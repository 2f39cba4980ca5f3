"""Whose fault it is that a request failed: its own, or that of a server that answers nobody.

What belongs here: what the server has shown in this run, and what follows from one more failure. Who is in doubt asks
the server a short question of another kind (`Client._answers`): what answers that and not these is there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentgloss.llm.engines.base import Failure


TRIES = 6
WEIGHT = {"timeout": 3, "busy": 0}
"""A time-out costs minutes and may be billed: two of them are enough. Being busy is no fault."""
BUSY_TRIES = 60
WAIT_MOST_S = 900.0
"""A server that asks for a longer pause has a quota for the day: the run ends."""
ALL_REJECTED = 20
"""So many refused requests, and none answered, look like a mistake in the registry."""


@dataclass
class Tries:
    """Attempts at one request. Times are of the monotonic clock."""

    first: float = field(default_factory=time.monotonic)
    failed: int = 0
    busy: int = 0

    def count(self, failure: Failure) -> None:
        self.failed += WEIGHT.get(failure.kind, 1)
        self.busy += failure.kind == "busy"

    @property
    def most(self) -> int:
        return max(self.failed, self.busy)

    @property
    def over(self) -> bool:
        return self.failed >= TRIES or self.busy >= BUSY_TRIES


@dataclass(frozen=True)
class Verdict:
    """What follows from a failure: there is no reply to this request, for `reason`."""

    reason: str
    ends: str = ""
    """Not empty: the run ends, and why."""
    todo: str = ""
    doubtful: bool = False
    """Only if the server does not answer another question either."""
    again: bool = False
    """And if it does not: the request is tried again for now."""


@dataclass
class Health:
    """What the server has shown since the run began."""

    patience_s: float
    last_good: float = field(default_factory=time.monotonic)
    ever_good: bool = False
    rejected: int = 0

    def good(self) -> None:
        self.last_good, self.ever_good = time.monotonic(), True

    def verdict(self, failure: Failure, tries: Tries) -> Verdict | None:
        """None: the request is tried again."""
        kind, why = failure.kind, failure.reason
        if kind in ("forbidden", "misdeclared"):
            todo = "correct the registry entry, the key or the account"
            return Verdict(why, f"refuses to answer ({why})", todo)
        if kind == "rejected":
            self.rejected += 1
            if self.ever_good or self.rejected < ALL_REJECTED:
                return Verdict(why)
            return Verdict(why, f"refuses every request ({why})", "correct the registry entry", doubtful=True)
        if (failure.wait_s or 0.0) > WAIT_MOST_S:
            return Verdict(why, f"asks for a pause of {failure.wait_s:,.0f} s", "wait")
        if not tries.over:
            return None
        reason = f"{why}, tried {tries.most} times"
        if self.last_good > tries.first:
            return Verdict(reason)
        silent = time.monotonic() - tries.first  # before, perhaps nobody asked
        patient = self.ever_good and silent < self.patience_s
        if kind == "unreachable" and patient:
            return None
        ends = f"has answered nobody for {silent:.0f} s ({why})"
        return Verdict(reason, ends, "see to the server", doubtful=kind != "unreachable", again=patient)
