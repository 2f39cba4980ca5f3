"""Failures of one partition: the error says what to do, and it is kept."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from latentgloss.activations import forward_pass
from latentgloss.errors import InputError, LatentglossError
from latentgloss.machine.background import BackgroundWorkers
from latentgloss.pipeline.failures import as_error, attempt
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.recipe import Recipe
from latentgloss.pipeline.stage_run import StageRun
from latentgloss.store import Draft


def test_a_full_gpu_says_what_to_lower() -> None:
    error = as_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nGPU 0 has …"))
    assert "Tried to allocate 8.00 GiB" in str(error) and "batch_tokens" in str(error) and "report" not in str(error)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (InputError("this is ours"), "this is ours"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "make the file readable"),
        (ZeroDivisionError("nobody foresaw this"), "please report this"),
    ],
)
def test_what_else_is_raised(raised: Exception, said: str) -> None:
    def fails() -> None:
        raise raised

    error = attempt(fails)
    assert isinstance(error, LatentglossError) and said in str(error)


def test_an_error_stays_whatever_succeeds_afterwards(tmp_path: Path) -> None:
    """Shards are written by several threads: one that fails must not be forgotten when the next is done."""
    workspace = tiny.tiny_workspace(tmp_path)
    parts = {"settings": workspace.settings, "registry": workspace.registry, "store": workspace.store}
    run = StageRun(STAGES["activation_cache"], tiny.SPARSIFY, Recipe({}, {}), workspace, **parts)

    def fails() -> None:
        raise InputError("the first")

    run.attempt(fails)
    run.attempt(lambda: None)
    assert "the first" in str(run.error)


def test_a_shard_that_fails_beside_a_gpu_fails_its_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = tiny.tiny_workspace(tmp_path)
    assert not [o.error for o in tiny.run_all(workspace, ["tokenized_corpus", "resolved_saes"]) if o.error]
    monkeypatch.setattr(forward_pass, "SHARD", 4096)
    monkeypatch.setattr(forward_pass, "BackgroundWorkers", lambda _, threads: BackgroundWorkers("cuda", 2))
    put = Draft.put

    def full_once(draft: Draft, name: str, *arguments: Any) -> None:
        if name == "shard-000001" and draft.partition == tiny.SPARSIFY:
            raise OSError(errno.ENOSPC, "No space left on device", "/x")
        put(draft, name, *arguments)

    monkeypatch.setattr(Draft, "put", full_once)
    outcomes = {o.partition: o for o in tiny.run_all(workspace, ["activation_cache"])}
    assert outcomes[tiny.SAELENS].status == "computed"
    assert outcomes[tiny.SPARSIFY].status == "failed" and "disk is full" in str(outcomes[tiny.SPARSIFY].error)
