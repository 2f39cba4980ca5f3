"""What holds for every test: two threads, no network, shape checks on the core, Hypothesis profiles.

Warnings are errors; the few that are let through, and why, stand in pyproject.toml.
"""

from __future__ import annotations

import gc
import os
import tempfile

_threads = os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_NUM_THREADS", _threads)  # PyTorch heeds this one first
os.environ.setdefault("POLARS_MAX_THREADS", "2")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DAGSTER_DISABLE_TELEMETRY="1")

from shapes import check_core, next_test

check_core()  # before anything imports the core

from typing import TYPE_CHECKING

import hypothesis
import pytest
from real_parts import (  # noqa: F401  (hooks are found by their names)
    pytest_collectreport,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

if TYPE_CHECKING:
    from pathlib import Path

    from latentgloss.workspace import Workspace

hypothesis.settings.register_profile("dev", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for worlds that tests share (`tiny.computed_workspace`), the same for all processes of a run."""
    if not hasattr(config, "workerinput"):
        worlds = tempfile.TemporaryDirectory(prefix="latentgloss-worlds-")
        os.environ["LATENTGLOSS_TEST_WORLDS"] = worlds.name
        config.add_cleanup(worlds.cleanup)


def pytest_collection_finish() -> None:
    """What the imports made stays, so the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    next_test()


@pytest.fixture
def tiny_workspace(tmp_path: Path) -> Workspace:
    """The workspace of `tiny.py`, open, nothing computed yet; all its files are below `tmp_path`."""
    from tiny import tiny_workspace as write

    return write(tmp_path)
