"""What importing loads, seen in a fresh interpreter: the UI's code location and the command line start in seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import ROOT

HEAVY = ("torch", "transformers", "lancedb", "datasets", "llguidance")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("definitions", HEAVY),
        ("latentgloss.cli", (*HEAVY, "dagster")),
        ("latentgloss.explanations.explainers", (*HEAVY, "dagster")),
        ("latentgloss.scores.table", (*HEAVY, "dagster")),
        ("latentgloss.report", (*HEAVY, "dagster")),
        ("latentgloss.workspace", (*HEAVY, "dagster")),
    ],
)
def test_importing_loads_nothing_heavy(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
