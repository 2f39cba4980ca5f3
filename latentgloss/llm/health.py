"""Decides what a failed request means: that this request fails, or that the server answers nothing.

What belongs here: what the server has shown in this run, and the consequence of one more failure. Where a failure
leaves both possible (`Verdict.doubtful`), the sender sends a short request in the same form (`probing.py`). If the
server answers that one, it is available, and only the failing requests have no reply. Nothing is read or written here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from latentgloss.errors import LanguageModelError
    from latentgloss.llm.engines.base import Failure


TRIES = 6
"""Failed attempts, weighted by `WEIGHT`, after which a request is given up."""
WEIGHT = {"timeout": 3, "busy": 0}
"""A time-out costs minutes and may be billed, so two of them are enough. A busy server has not failed."""
BUSY_TRIES = 60
"""Attempts answered by "busy" after which a request is given up."""
WAIT_MOST_S = 900.0
"""Longest pause that a server may demand. A longer one means that a daily quota is spent, and the run ends."""


@dataclass
class Tries:
    """The failed attempts at one request."""

    first: float = field(default_factory=time.monotonic)
    """When the first attempt began, in seconds of the monotonic clock."""
    failed: int = 0
    """Failures, weighted by `WEIGHT`."""
    busy: int = 0

    def count(self, failure: Failure) -> None:
        """Adds a failed attempt."""
        self.failed += WEIGHT.get(failure.kind, 1)
        self.busy += failure.kind == "busy"

    @property
    def most(self) -> int:
        """The larger of the two counts; the pause before the next attempt grows with it."""
        return max(self.failed, self.busy)

    @property
    def over(self) -> bool:
        """Whether the request has used up its attempts."""
        return self.failed >= TRIES or self.busy >= BUSY_TRIES


@dataclass(frozen=True)
class Verdict:
    """The consequence of a failure: the request has no reply, and possibly the run ends."""

    reason: str
    """Why the request has no reply."""
    ends: str = ""
    """If not empty, the run ends; the text says what the server does."""
    todo: str = ""
    """What the user should do about it."""
    expected: str = ""
    """What was expected instead, if the failure says so."""
    doubtful: bool = False
    """`ends` holds only if the server does not answer the short request in the same form either."""
    again: bool = False
    """If it does not answer that one, the failed request is tried again for now and the run does not end yet."""


@dataclass
class Health:
    """What the server has shown since the run began. Times are in seconds of the monotonic clock."""

    patience_s: float
    """How long a server that has answered before may be silent until the run ends."""
    last_good: float = field(default_factory=time.monotonic)
    """When the server last answered, or when the run began."""
    ever_good: bool = False
    """Whether the server has answered any request."""
    answered: dict[Hashable, float] = field(default_factory=dict)
    """When the server last answered a request, by the form of the request (`probing.form`)."""
    not_before: float = 0.0
    """No request is sent before this time, because a busy server demands a pause."""
    stopped: LanguageModelError | None = None
    """The error that ended the run."""

    def begin(self) -> None:
        """Forgets everything, for a new run."""
        self.stopped, self.not_before = None, 0.0
        self.last_good, self.ever_good, self.answered = time.monotonic(), False, {}

    def good(self, form: Hashable = None) -> None:
        """Records that the server has answered a request of this form."""
        self.last_good, self.ever_good = time.monotonic(), True
        self.answered[form] = self.last_good

    def pause(self, seconds: float) -> None:
        """Holds back all requests for some time from now."""
        self.not_before = max(self.not_before, time.monotonic() + seconds)

    def stop(self, error: LanguageModelError) -> None:
        """Ends the run; the first error of a run is kept."""
        self.stopped = self.stopped or error

    def raise_if_stopped(self) -> None:
        """Raises the error that ended the run, if it has ended."""
        if self.stopped is not None:
            raise self.stopped

    def verdict(self, failure: Failure, tries: Tries, form: Hashable = None) -> Verdict | None:
        """The consequence of a failure that is already counted in `tries`; None if the request is tried again.

        `form`: that of the request. A server may refuse every request of one form and answer all others.
        """
        kind, why = failure.kind, failure.reason
        if kind in ("forbidden", "misdeclared"):
            todo = failure.todo or "correct the registry entry, the key or the account"
            return Verdict(why, f"refuses to answer ({why})", todo, failure.expected)
        if kind == "rejected":
            if form in self.answered:
                return Verdict(why)
            return Verdict(why, f"refuses every request ({why})", "correct the registry entry", doubtful=True)
        if (failure.wait_s or 0.0) > WAIT_MOST_S:
            return Verdict(why, f"demands a pause of {failure.wait_s:,.0f} s", "wait")
        if not tries.over:
            return None
        reason = f"{why}, tried {tries.most} times"
        if self.last_good > tries.first:
            return Verdict(reason)
        silent = time.monotonic() - tries.first  # earlier silence may only mean that no request was sent
        patient = self.ever_good and silent < self.patience_s
        if kind == "unreachable" and patient:
            return None
        ends = f"has answered no request for {silent:.0f} s ({why})"
        return Verdict(reason, ends, "check the server", doubtful=kind != "unreachable", again=patient)
