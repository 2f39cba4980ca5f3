"""The real daemon and webserver over the demo's registry and a small corpus.

The five SAEs are there already. A file for a sixth is dropped into the registry; its chain must run to the scores and
the report without anybody asking, and of the others nothing may be computed again.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dagster_processes import free_port, graphql, partitions, quiet, running, wait
from repository import ROOT

from latentgloss.pipeline.graph import STAGES
from latentgloss.workspace import Workspace

pytestmark = [pytest.mark.dagster, pytest.mark.timeout(900)]
MODEL, OLD, NEW = "smollm2", "smollm2/layers.9/topk2048", "smollm2/layers.9/sixth"
SAE_STAGES = [stage.name for stage in STAGES.values() if stage.grain == "sae"]
TOKENS = 20_000
PATIENCE = 540.0
"""Seconds for the sixth chain: eight ticks of 15 s, a dozen starts of a process, and the work itself."""


def small_workspace(folder: Path) -> Workspace:
    """The demo's trained SAEs, some of their latents, a small corpus, a store of its own; weights where they are."""
    shutil.copytree(ROOT / "registry", folder / "registry", ignore=shutil.ignore_patterns("*random2048*", "*neurons*"))
    for path in (folder / "registry").rglob("*.toml"):
        text = path.read_text()
        original = ROOT / path.relative_to(folder)

        def absolute(match: re.Match[str], parent: Path = original.parent) -> str:
            return f'source = "path:{(parent / match[1]).resolve()}"'

        text = re.sub(r'^source = "path:(.*?)"', absolute, text, flags=re.MULTILINE)
        text = re.sub(r"^tokens = .*\n", "", text, flags=re.MULTILINE)
        text = text.replace('latents = "all"', "latents = {sample = 256}")
        path.write_text(text.replace("[corpus]\n", f"[corpus]\ntokens = {TOKENS}\n"))
    (folder / "latentgloss.toml").write_text(
        "[contexts]\nexplain = 60\nselect = 20\ntest = 40\nmin_explain = 10\nmin_test = 10\nmin_test_documents = 3\n"
        "[negatives]\nexplain = 60\nselect = 20\ntest = 40\n[explanations]\nnulls = 1\n[embedding]\nsample = 40\n"
        "[report]\nresamples = 200\n"
    )
    return Workspace.open(folder / "latentgloss.toml")


def versions(workspace: Workspace) -> dict[str, int]:
    """Every version in the store and when its manifest was written: computing again writes one."""
    root = workspace.store.files.root
    return {str(p.parent.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("manifest.json")}


def test_a_sixth_sae_runs_its_chain_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    folder.mkdir()
    workspace = small_workspace(folder)
    assert len(workspace.registry.saes) == 5
    assert not workspace.registry.problems
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    env = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "LATENTGLOSS_CONFIG": str(folder / "latentgloss.toml"),
        "PYTHONWARNINGS": "ignore",
    }

    made = subprocess.run([sys.executable, "demo/run.py", "--full"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    before = versions(workspace)
    assert {key.split("/")[0] for key in before} == set(STAGES)

    port = free_port()
    logs = [tmp_path / "webserver.log", tmp_path / "daemon.log"]
    with (
        running(
            "dagster-webserver", "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml", env=env, log=logs[0]
        ) as web,
        running("dagster-daemon", "run", "-w", "workspace.yaml", env=env, log=logs[1]) as daemon,
    ):
        wait(
            "the five SAEs in the webserver",
            lambda: len(partitions(port, "detection_scores")) == 5,
            120,
            logs,
            web,
            daemon,
        )
        # Two ticks over an unchanged registry: the daemon has found nothing to do.
        wait("first ticks of automation", lambda: ticks(port, "automation") >= 2, 120, logs, web, daemon)
        assert versions(workspace) == before

        old = next(p for p in (folder / "registry/saes").rglob("*.toml") if declares(p, OLD))
        (folder / "registry/saes/sixth.toml").write_text(
            re.sub(r'^name = ".*"', 'name = "sixth"', old.read_text(), flags=re.MULTILINE)
        )
        reported = Workspace.open(folder / "latentgloss.toml").store

        def finished() -> bool:
            last = [reported.current(stage, MODEL) for stage in ("score_report", "search_index")]
            done = all(found and any(pin["partition"] == NEW for pin in found.manifest.inputs) for found in last)
            return done and NEW in partitions(port, "detection_scores") and quiet(port)

        wait(f"the chain of {NEW}", finished, PATIENCE, logs, web, daemon)
        for stage in SAE_STAGES:
            assert NEW in partitions(port, stage), stage
            assert partitions(port, stage, "failedPartitions") == []

    after = versions(workspace)
    assert before.items() <= after.items(), "a version of another SAE was written again"
    added = {key.rsplit("/", 1)[0] for key in after.keys() - before.keys()}
    assert added == {f"{stage}/{NEW}" for stage in SAE_STAGES} | {f"score_report/{MODEL}", f"search_index/{MODEL}"}
    assert {s.state for s in Workspace.open(folder / "latentgloss.toml").states()} == {"fresh"}


def declares(path: Path, partition: str) -> bool:
    text = path.read_text()
    return all(f'= "{part}"' in text for part in partition.split("/"))


def ticks(port: int, sensor: str) -> int:
    query = """
    query ($selector: SensorSelector!) {
      sensorOrError(sensorSelector: $selector) { ... on Sensor { sensorState { ticks(limit: 5) { status } } } }
    }"""
    selector = {"repositoryName": "__repository__", "repositoryLocationName": "latentgloss", "sensorName": sensor}
    found = graphql(port, query, selector=selector)["sensorOrError"]["sensorState"]["ticks"]
    assert all(tick["status"] != "FAILURE" for tick in found), found
    return len([tick for tick in found if tick["status"] in ("SKIPPED", "SUCCESS")])
