"""The workspaces in which commands are tried."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a workspace in which every stage was run. Tests that change anything use `bare`."""
    root = tmp_path_factory.mktemp("cli")
    tiny.computed_workspace(root)
    return root


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Folder of a workspace in which nothing was run."""
    tiny.tiny_workspace(tmp_path, n_documents=60)
    return tmp_path
