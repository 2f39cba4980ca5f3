"""resources/progress.py: lines for people who wait."""

import pytest

from resources import progress


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_rates_are_those_of_the_unit_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    written: list[str] = []
    lines = progress.Lines("scores m/l/s", written.append)
    clock.now = 1000.0
    lines(0, None, "")  # its turn comes late
    for seconds, done, total, unit in (
        (5, 1, 8, "blocks"),
        (20, 2, 8, "blocks"),
        (1, 64, 640, "texts"),
        (16, 384, 640, "texts"),
        (30, 19, 90, "texts"),
        (16, 67, 90, "texts"),
        (2, 3, 8, "blocks"),
        (20, 5, 8, "blocks"),
    ):
        clock.now += seconds
        lines(done, total, unit)
    assert written == [
        "scores m/l/s: 2 of 8 (25%) blocks, 0.1 blocks/s, 75 s left",
        "scores m/l/s: 384 of 640 (60%) texts, 20 texts/s, 13 s left",
        "scores m/l/s: 67 of 90 (74%) texts, 3.0 texts/s, 8 s left",
        "scores m/l/s: 5 of 8 (62%) blocks, 0.1 blocks/s, 30 s left",
    ]


def test_a_rate_begins_anew_with_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    rate = progress.Rate()
    found = []
    for done, unit in ((0, ""), (10, "texts"), (20, "texts"), (5, "texts"), (6, "texts"), (1, "blocks"), (3, "blocks")):
        clock.now += 1
        found.append(rate(done, unit))
    assert found == [0, 10, 10, 0, 1, 0, 2]
