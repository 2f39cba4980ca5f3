"""Real parts are tested for real in CI: there, a skipped test of one is a failure.

Elsewhere a test marked `demo`, `dagster`, `kill` or `vllm` may skip itself (no free port, no weights installed).
Hooks for `conftest.py`; nothing else belongs here.
"""

from __future__ import annotations

import os

import pytest

MARKERS = frozenset({"demo", "dagster", "kill", "vllm"})
_skipped: list[str] = []


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and MARKERS & set(report.keywords):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:  # a whole file: its markers are unknown, so it is taken for a real part
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and _in_ci():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and _in_ci():
        terminalreporter.section("skipped real parts: a failure in CI", red=True)
        for nodeid in _skipped:
            terminalreporter.line(nodeid)
