"""What an SAE's files deny is refused by the stage in the words of `saes check`, unless its entry says otherwise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from click.testing import CliRunner

from latentgloss.cli import cli
from latentgloss.errors import SaeError
from latentgloss.pipeline.graph import STAGES
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

UP_TO = ["tokenized_corpus", "resolved_saes", "activation_cache"]


def world(folder: Path, config: dict[str, Any]) -> Workspace:
    """A tiny world in which the files of `mixed` (at `layers.1.mlp` of a Llama) say this of its training."""
    workspace = tiny.tiny_workspace(folder, n_documents=60)
    path = folder / "saes" / "mixed" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return workspace


def cached(workspace: Workspace) -> dict[str, Any]:
    return {o.partition: o for o in tiny.run_all(workspace, UP_TO) if o.stage == "activation_cache"}


def checked(folder: Path) -> dict[str, Any]:
    arguments = ["--config", str(folder / "latentgloss.toml"), "saes", "check", tiny.SAELENS, "--json"]
    (row,) = json.loads(CliRunner().invoke(cli, arguments).stdout)["saes"]
    return row


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hook_name": "blocks.2.hook_mlp_out"}, "'layers.2.mlp' in this model"),
        ({"metadata": {"hook_name": "blocks.1.hook_resid_post"}}, "'layers.1' in this model"),
        ({"hook_name": "blocks.1.hook_mlp_out", "model_name": "gpt2-small"}, "trained on the model 'gpt2-small'"),
        ({"hook_head_index": 0}, "attention head 0 alone"),
        ({"model_from_pretrained_kwargs": {"checkpoint_value": 1000}}, "checkpoint_value = 1000"),
    ],
)
def test_the_stage_refuses_what_the_check_calls_a_problem(tmp_path, config, says):
    workspace = world(tmp_path, config)
    found = cached(workspace)
    assert found[tiny.SPARSIFY].status == "computed", "another SAE of the same pass"
    error = found[tiny.SAELENS].error
    assert isinstance(error, SaeError) and says in str(error) and "trust_registry = true" in error.todo
    assert not list((tmp_path / "data" / "activation_cache" / tiny.SAELENS).rglob("*.parquet"))
    problem = checked(tmp_path)["problems"][0]
    assert error.found == f"{tiny.SAELENS}: {problem['found']}"
    assert (error.expected, error.todo) == (problem["expected"], problem["todo"])


def test_one_who_knows_better_says_so_in_the_registry_and_nothing_becomes_stale(tmp_path):
    workspace = world(tmp_path, {"hook_name": "blocks.2.hook_mlp_out"})
    cached(workspace)
    before = workspace.recipe(STAGES["activation_cache"], tiny.SAELENS).fingerprint
    path = tmp_path / "registry" / "saes" / "mixed.toml"
    path.write_text(path.read_text() + "trust_registry = true\n")
    workspace = Workspace.open(tmp_path / "latentgloss.toml")
    assert cached(workspace)[tiny.SAELENS].status == "computed"
    assert workspace.recipe(STAGES["activation_cache"], tiny.SAELENS).fingerprint == before
    assert {s.state for s in workspace.states() if s.asset in UP_TO} == {"fresh"}
    row = checked(tmp_path)
    assert row["problems"] == []
    assert any("'layers.2.mlp' in this model" in w["message"] for w in row["warnings"])


def test_a_warning_stops_nothing(tmp_path):
    workspace = world(tmp_path, {"hook_name": "blocks.1.hook_mlp_out", "context_size": 32, "prepend_bos": False})
    assert cached(workspace)[tiny.SAELENS].status == "computed"
    assert len(checked(tmp_path)["warnings"]) == 2
