"""kill -9 at random points of every stage: the next run ends with the same content and repeats nothing finished."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import tiny

from latentgloss.pipeline.graph import STAGES
from latentgloss.workspace import Workspace

KILLS = 3
"""Per stage."""

_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["latentgloss.activations.stages", "latentgloss.models.subject", "transformers", "polars"])


def run_stage(config: Path, stage: str, die_at: int | None, late: bool, written: object) -> None:
    """Runs a stage in this process; at write number `die_at` the process kills itself, before or after the rename."""
    from latentgloss.store import local

    count = 0
    original = local.os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        written.value = count  # type: ignore[attr-defined]
        if count == die_at and not late:
            os.kill(os.getpid(), signal.SIGKILL)
        original(descriptor)
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    local.os.fsync = fsync
    workspace = Workspace.open(config)
    outcomes = list(workspace.materialise(stage, workspace.partitions(STAGES[stage]), tiny.runner(stage)))
    if any(o.error for o in outcomes):
        os._exit(3)


def spawn(config: Path, stage: str, die_at: int | None, late: bool = False) -> tuple[int, int]:
    """(exit code, writes begun)."""
    written = _FORK.Value("i", 0)
    child = _FORK.Process(target=run_stage, args=(config, stage, die_at, late, written))
    child.start()
    child.join(120)
    assert child.exitcode is not None
    return child.exitcode, written.value


def contents(workspace: Workspace) -> dict[tuple[str, str], str]:
    found = {}
    for stage in STAGES.values():
        for partition in workspace.partitions(stage):
            version = workspace.store.current(stage.name, partition)
            found[stage.name, partition] = version.manifest.data_version if version else "none"
    return found


def finished_files(folder: Path, stage: str, complete: dict[str, set[str]]) -> dict[Path, int]:
    """Files of finished blocks and their inodes; `complete` names the files each block consists of.

    The corpus is one block, of files that are in no table's folder.
    """
    per_partition: dict[Path, set[str]] = {}
    for path in (folder / "data" / stage).rglob("*.parquet"):
        per_partition.setdefault(path.parent.parent, set()).add(f"{path.parent.name}/{path.name}")
    return {
        version / name: (version / name).stat().st_ino
        for version, there in per_partition.items()
        for names in complete.values()
        if names <= there
        for name in names
    }


def blocks(workspace: Workspace, stage: str) -> dict[str, set[str]]:
    """Files of every block of a stage, as an undisturbed run wrote them."""
    versions = [workspace.store.current(stage, partition) for partition in workspace.partitions(STAGES[stage])]
    return {name: set(block.files) for v in versions if v for name, block in v.manifest.blocks.items()}


@pytest.mark.kill
@pytest.mark.timeout(500)
def test_killed_runs_end_with_the_same_content_and_repeat_nothing_finished(tmp_path):
    calm, folder = tmp_path / "calm", tmp_path / "killed"
    undisturbed = tiny.tiny_workspace(calm)
    writes = {}
    for stage in STAGES:
        code, writes[stage] = spawn(calm / "latentgloss.toml", stage, None)
        assert code == 0
    tiny.tiny_workspace(folder)
    draw = random.Random(20)
    for stage in STAGES:
        assert writes[stage] >= 2, f"{stage} wrote nothing that could be interrupted"
        complete = blocks(undisturbed, stage)
        for _ in range(KILLS):
            before = finished_files(folder, stage, complete)
            code, _ = spawn(folder / "latentgloss.toml", stage, draw.randint(1, writes[stage]), draw.random() < 0.5)
            assert code in (-signal.SIGKILL, 0)  # 0: fewer writes were left than the one it was to die at
            after = finished_files(folder, stage, complete)
            assert before.items() <= after.items(), "a finished file was written again"
        finished = finished_files(folder, stage, complete)
        assert spawn(folder / "latentgloss.toml", stage, None)[0] == 0
        assert finished.items() <= finished_files(folder, stage, complete).items()
    workspace = Workspace.open(folder / "latentgloss.toml")
    assert contents(workspace) == contents(undisturbed)
    assert not list((folder / "data").rglob("*.tmp")), "a half-written file was left behind"
    assert all(state.state == "fresh" for state in workspace.states())
