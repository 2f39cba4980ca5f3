"""The rule that CI skips no real part, seen from outside: pytest's exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MARKED = "import pytest\n@pytest.mark.{marker}\ndef test_it():\n    {body}\n"
SKIP = "pytest.skip('no weights here')"


def _run(folder: Path, source: str, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    demo:\n    dagster:\n    kill:\n    vllm:\n    other:\n"
    )
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_ADDOPTS": ""}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take seconds to import and have no part in this
    command = [sys.executable, "-m", "pytest", "-p", "real_parts", "-p", "no:cacheprovider", "-q", str(folder)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("source", "ci", "status"),
    [
        (MARKED.format(marker="demo", body=SKIP), "true", 1),
        (MARKED.format(marker="vllm", body=SKIP), "true", 1),
        (MARKED.format(marker="kill", body=SKIP), "", 0),
        (MARKED.format(marker="other", body=SKIP), "true", 0),
        (MARKED.format(marker="dagster", body="pass"), "true", 0),
        ("import pytest\npytest.importorskip('no_such_module')\n", "true", 1),
    ],
    ids=["skipped in CI", "vLLM skipped in CI", "skipped elsewhere", "not a real part", "run", "whole file skipped"],
)
def test_exit_status(tmp_path: Path, source: str, ci: str, status: int) -> None:
    done = _run(tmp_path, source, ci)
    # A file that skips itself leaves no test at all; outside CI pytest calls that status 5.
    assert done.returncode == status, done.stdout + done.stderr
    assert ("skipped real parts" in done.stdout) == (status == 1)
