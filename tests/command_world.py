"""Running a command over the tiny workspace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from click.testing import CliRunner, Result

from latentgloss.cli import cli

P = tiny.SPARSIFY


def run(root: Path, *args: str) -> Result:
    result = CliRunner().invoke(cli, ["--config", str(root / "latentgloss.toml"), *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def rows(root: Path, *args: str) -> Any:
    result = run(root, *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
