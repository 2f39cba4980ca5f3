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


class Rate:
    """Units per second since the work of this unit began: texts may be embedded for blocks to score, and more after."""

    def __init__(self) -> None:
        self._begin(0, "")

    def _begin(self, done: int, unit: str) -> None:
        self.began = time.monotonic()
        self.before, self.done, self.unit = done, done, unit

    def __call__(self, done: int, unit: str) -> float:
        # At nothing done: a partition may have waited for others since it was announced.
        if done == 0 or (self.unit and (unit != self.unit or done < self.done)):
            self._begin(done, unit)
        self.done, self.unit = done, unit
        return (done - self.before) / max(time.monotonic() - self.began, 1e-9)


class Lines:
    """At most a line every `SECONDS_BETWEEN_LINES`, none before work (of this unit) has gone on for as long."""

    def __init__(self, label: str, write: Callable[[str], None]) -> None:
        self.label, self.write = label, write
        self.rate, self.last = Rate(), -SECONDS_BETWEEN_LINES

    def __call__(self, done: int, total: int | None, unit: str) -> None:
        rate, now = self.rate(done, unit), time.monotonic()
        if now - max(self.last, self.rate.began) < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        share, left = "", ""
        if total:
            share = f" of {total:,} ({done / total:.0%})"
            left = f", {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        self.write(f"{self.label}: {done:,}{share} {unit}, {rate:,.{0 if rate >= 10 else 1}f} {unit}/s{left}")
