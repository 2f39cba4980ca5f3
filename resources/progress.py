"""Progress of long runs, as lines with rates in Dagster's log.

`Progress.start(log)` returns the argument `progress` of `Workspace.materialise`: a function from a label to a function
that is called with (done, total or None, unit).
"""

import time
from collections.abc import Callable
from typing import Any

import dagster as dg

Advance = Callable[[int, int | None, str], None]
"""Called with (done, total or None, unit) whenever work has progressed."""

SECONDS_BETWEEN_LINES = 10.0


class Progress(dg.ConfigurableResource):
    """Progress lines in the run's log, at most one every ten seconds per partition."""

    def start(self, log: Any) -> Callable[[str], Advance]:
        """A function that begins the progress of a labelled partition and returns its `Advance`."""
        return lambda label: Lines(label, log.info)


class Rate:
    """Units per second since the work in the current unit began.

    The unit can change during a stage: blocks are scored, then texts are embedded for them, then more blocks follow.
    """

    def __init__(self) -> None:
        self._begin(0, "")

    def _begin(self, done: int, unit: str) -> None:
        self.began = time.monotonic()
        self.before, self.done, self.unit = done, done, unit

    def __call__(self, done: int, unit: str) -> float:
        """The rate at this point of the work."""
        # With nothing done, the time starts again, because a partition may have waited for others since it began.
        if done == 0 or (self.unit and (unit != self.unit or done < self.done)):
            self._begin(done, unit)
        self.done, self.unit = done, unit
        return (done - self.before) / max(time.monotonic() - self.began, 1e-9)


class Lines:
    """Writes at most one line every `SECONDS_BETWEEN_LINES`, the first one that long after work in the unit began."""

    def __init__(self, label: str, write: Callable[[str], None]) -> None:
        self.label, self.write = label, write
        self.rate, self.last = Rate(), -SECONDS_BETWEEN_LINES

    def __call__(self, done: int, total: int | None, unit: str) -> None:
        """Writes a line if one is due: share done, rate and time left."""
        rate, now = self.rate(done, unit), time.monotonic()
        if now - max(self.last, self.rate.began) < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        share, left = "", ""
        if total:
            share = f" of {total:,} ({done / total:.0%})"
            left = f", {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        self.write(f"{self.label}: {done:,}{share} {unit}, {rate:,.{0 if rate >= 10 else 1}f} {unit}/s{left}")
