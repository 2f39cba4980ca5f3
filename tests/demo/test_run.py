"""demo/run.py in a process of its own, over the miniature workspace: a SAE that fails, mended, then nothing to do."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from latentgloss import schema
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
    assert "latents eligible" in again.stdout and "specificity" in again.stdout and "lineage" in again.stdout


def test_every_scorer_has_a_row_in_its_own_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LATENTGLOSS_CONFIG", "DAGSTER_HOME", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")  # the module sets defaults; they go with this test
    arms = importlib.import_module("demo.run")._arms
    key = {"profile": "default", "partition": "m/h/s", "control": False}
    blank = dict.fromkeys(("n_latents", "n_alive", "n_eligible", "n_explained", "n_asked", "n_scored"), 1)
    scored = [
        ("detection", "executed", "", "balanced_accuracy", 0.6),
        ("detection", "executed", "", "auroc", 0.7),
        ("detection", "llm", "", "balanced_accuracy", 0.65),
        ("detection", "llm", "", "auroc", 0.75),
        ("embedding", "", "minilm", "auroc", 0.8),
    ]
    rows = [
        {
            **key,
            **blank,
            "explainer": "pattern",
            "scorer": scorer,
            "judge": judge,
            "embedder": embedder,
            "negatives": "random",
            "metric": metric,
            "median": median,
        }
        for scorer, judge, embedder, metric, median in scored
    ]
    found = [
        (scorer, shown["median"].to_list(), gains["median"].to_list())
        for scorer, shown, gains in arms(schema.REPORT.frame(rows))
    ]
    paper = schema.REPORT.frame([{**rows[0], "profile": "paper"}, {**rows[-1], "profile": "paper"}])
    assert [scorer for scorer, *_ in arms(paper)] == ["detection (profile paper)", "embedding (auroc, profile paper)"]
    assert found == [
        ("detection by executed", [0.6], [0.7]),
        ("detection by llm", [0.65], [0.75]),
        ("embedding (auroc)", [0.8], [0.8]),
    ]
