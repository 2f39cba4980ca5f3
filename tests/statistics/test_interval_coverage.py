"""Stored 95 % intervals hold the truth 93 to 97 times in 100: some cells of `benchmarks/interval_coverage.py`."""

from __future__ import annotations

import pytest

from benchmarks import interval_coverage as study

SOME = [
    (study.BANDS[0], 50, 5, 0.0),
    (study.BANDS[0], 50, 5, 0.3),
    (study.BANDS[2], 100, 2, 0.0),
    (study.BANDS[4], 50, 2, 0.3),
    (study.BANDS[4], 100, 5, 0.3),
    # with prompts of five, across documents
    (study.BANDS[0], 50, 2, 0.2, 0.3),
    (study.BANDS[2], 100, 2, 0.0, 0.1),
    (study.BANDS[4], 50, 2, 0.0, 0.3),
]
ERROR = 0.006
"""Two standard errors of a share of .95 among 5,000."""


@pytest.mark.parametrize("metric", study.METRICS)
def test_intervals_cover(metric: str) -> None:
    found = {where: study.cell(metric, *where) for where in SOME}  # type: ignore[arg-type]
    assert {w: c for w, c in found.items() if not 0.93 - ERROR <= c <= 0.97 + ERROR} == {}


def test_documents_alone_miss_what_prompts_do() -> None:
    where = (study.BANDS[2], 100, 2, 0.0, 0.3)
    for metric in ("tpr", "balanced_accuracy", "auroc"):
        assert study.cell(metric, *where, latents=1500) > 0.93 - 0.011
        assert study.cell(metric, *where, latents=1500, known=False) < 0.90
