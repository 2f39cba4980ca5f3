"""The Makefile: how the Dagster UI is started."""

from __future__ import annotations

import os
import subprocess

import pytest
from repository import ROOT


@pytest.mark.parametrize(("given", "port"), [((), "3000"), (("PORT=3001",), "3001")])
def test_the_ui_starts_on_the_given_port_and_where_dagster_warns_of_nothing(given: tuple[str, ...], port: str) -> None:
    """Dagster warns about a `dagster.yaml` in the folder where it starts, beside the one of DAGSTER_HOME."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PORT", "MAKEFLAGS", "MAKELEVEL")}
    made = subprocess.run(
        ["make", "--no-print-directory", "-n", "ui", *given],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    command = " ".join(made.stdout.replace("\\\n", " ").splitlines()[-1].split())
    assert command.split(" -p ")[1] == port
    start, _, rest = command.partition(" && ")
    folder = start.removeprefix("cd ")
    assert start.startswith("cd ") and os.path.realpath(folder) != os.path.realpath(ROOT)
    assert f"dagster dev -w {ROOT}/workspace.yaml" in rest
    assert f"LATENTGLOSS_CONFIG='{ROOT}/latentgloss.toml'" in rest
