"""demo/run.py in a process of its own, over the miniature workspace: an SAE that fails, mended, then nothing to do."""

import os
import subprocess
import sys
from pathlib import Path

import tiny
from repository import ROOT

from latentgloss.workspace import Workspace


def run(workspace: Workspace, home: Path) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "LATENTGLOSS_CONFIG": str(workspace.settings.folder / "latentgloss.toml"),
        "DAGSTER_HOME": str(home),
    }
    return subprocess.run([sys.executable, "demo/run.py"], cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_failure_stops_no_other_sae_and_a_fresh_store_computes_nothing(
    tiny_workspace: Workspace, tmp_path: Path
) -> None:
    tiny.register(tmp_path, tiny.SPARSIFY, "sparsify", extra="latents = {start = 0, stop = 100}\n")
    broken, whole = tiny_workspace.registry.saes.values()
    weights = next(broken.path.glob("*.safetensors"))
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])

    failed = run(tiny_workspace, tmp_path / "home")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert broken.partition in failed.stdout and weights.name in failed.stdout
    assert tiny_workspace.store.current("detection_scores", whole.partition) is not None
    assert tiny_workspace.store.current("detection_scores", broken.partition) is None

    weights.write_bytes(data)
    mended = run(tiny_workspace, tmp_path / "home")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "detection_scores     1 computed,   1 reused" in mended.stdout

    again = run(tiny_workspace, tmp_path / "home")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to compute" in again.stdout
    screen = again.stdout.split("nothing to compute")[1].splitlines()[1:]
    ours = [line for line in screen if "report.md" not in line]  # how long its path is depends on the user
    assert len(screen) <= 45 and max(map(len, ours)) <= 100, "one screen"
    for said in ("detection", "fuzzing", "null", "table", "Best: ", "Worst: ", "lineage", "report.md"):
        assert any(said in line for line in screen), said
    assert all(any(sae.partition("/")[2] in line for line in screen) for sae in tiny_workspace.registry.saes)
    page = (tiny_workspace.settings.store_root / "report.md").read_text()
    assert "specificity" in page and all(sae in page for sae in tiny_workspace.registry.saes)
