"""How long work tells how far it is: lines with rates in Dagster's log.

`Progress.start(log)` returns what `Workspace.materialise` takes as `progress`: called with a label, it returns a
function called as (done, total or None, unit).
"""

import time
from collections.abc import Callable
from typing import Any

import dagster as dg

Advance = Callable[[int, int | None, str], None]

SECONDS_BETWEEN_LINES = 10.0


class Progress(dg.ConfigurableResource):
    """Lines in the run's log, at most one every ten seconds per partition."""

    def start(self, log: Any) -> Callable[[str], Advance]:
        return lambda label: Lines(label, log.info)


class Lines:
    """At most a line every `SECONDS_BETWEEN_LINES`, with the rate since the work (of this unit) began."""

    def __init__(self, label: str, write: Callable[[str], None]) -> None:
        self.label, self.write = label, write
        self._begin(0, "")

    def _begin(self, done: int, unit: str) -> None:
        self.began = self.last = time.monotonic()
        self.before, self.done, self.unit = done, done, unit

    def __call__(self, done: int, total: int | None, unit: str) -> None:
        now = time.monotonic()
        if done == 0:  # a partition may have waited for others since it was announced
            self._begin(0, unit)
            return
        if self.unit and (unit != self.unit or done < self.done):
            # Other work within the same: texts to embed for blocks to score, and then texts of another kind.
            self._begin(done, unit)
            return
        self.done, self.unit = done, unit
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        rate = (done - self.before) / max(now - self.began, 1e-9)
        share, left = "", ""
        if total:
            share = f" of {total:,} ({done / total:.0%})"
            left = f", {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        self.write(f"{self.label}: {done:,}{share} {unit}, {rate:,.{0 if rate >= 10 else 1}f} {unit}/s{left}")
