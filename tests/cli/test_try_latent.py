"""`latentgloss try`: the prompts that the stages would send, and what is read; nothing stored, nothing sent if dry."""

from __future__ import annotations

import json

import pytest
import tiny
from click.testing import CliRunner
from scripted_model import Scripted

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.llm.prompts.templates import prompt
from latentgloss.workspace import Workspace

P = tiny.SPARSIFY
STAGES = [
    "tokenized_corpus",
    "resolved_saes",
    "activation_cache",
    "sampled_contexts",
    "sampled_negatives",
    "explanations",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("try")
    tiny.computed_workspace(root, tiny.SETTINGS + '\n[explanations]\nmodel = "scripted"\n')
    return root


@pytest.fixture(scope="module")
def latent(root):
    rows = Workspace.open(root / "latentgloss.toml").store.current("explanations", P).read(schema.EXPLANATIONS)
    return rows.filter(explainer="pattern", status="ok")["latent"][0]


@pytest.fixture
def model(monkeypatch):
    model = Scripted()
    monkeypatch.setattr(Workspace, "language_model", lambda self, name: model)
    return model


def run(root, *args):
    result = CliRunner().invoke(cli, ["--config", str(root / "latentgloss.toml"), "try", P, *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("name", ["llm", "llm_cot", "contrastive"])
def test_a_prompt_is_shown_without_any_model(root, latent, name):
    result = run(root, latent, "--explainer", name, "--dry")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("=== system\nA latent is one unit") and "nothing was sent" in result.stdout
    found = json.loads(run(root, latent, "--explainer", name, "--dry", "--json").stdout)
    assert found["status"] == "" and found["latent"] == latent and len(found["prompt_sha256"]) == 64
    assert "⟦" in found["messages"][-1]["content"]


def test_a_dry_prompt_is_the_one_its_model_would_be_sent(root, latent):
    """In JSON where the registry says so; the server need not be there."""
    folder = root / "registry" / "language_models"
    folder.mkdir(exist_ok=True)
    entry = 'name = "scripted"\nengine = "openai_compatible"\nmodel = "m"\nbase_url = "http://nobody.invalid/v1"\n'
    try:
        for capabilities, name in (("[]", "explain"), ('["json_schema"]', "explain_json")):
            (folder / "scripted.toml").write_text(f"{entry}capabilities = {capabilities}\n")
            found = json.loads(run(root, latent, "--explainer", "llm", "--dry", "--json").stdout)
            assert found["messages"][0]["content"] == prompt(name).shared[0].content
    finally:
        (folder / "scripted.toml").unlink()


def test_an_explanation_and_its_judgement(root, latent, model):
    signal, _ = tiny.words()
    found = json.loads(run(root, latent, "--explainer", "llm", "--json").stdout)
    assert found["status"] == "ok" and signal[latent // 4] in found["value"] and found["cost_usd"] == 0.001
    judged = run(
        root, latent, "--judge", "llm:scripted", "--text", found["value"], "--scorer", "fuzzing", "--prompt", 1
    )
    assert judged.exit_code == 0, judged.stderr
    assert "=== read" in judged.stdout and "5 of 5 right" in judged.stdout
    stored = run(root, latent, "--judge", "scripted", "--explainer", "pattern", "--json")
    found = json.loads(stored.stdout)
    assert len(found["value"]) == len(found["truth"]) == 5 and found["prompts"] > 5 and found["negatives"]
    assert found["messages"][0]["content"] == prompt("detection").shared[0].content
    assert "explanations" not in stored.stderr


def test_a_reply_that_cannot_be_read_is_shown_and_fails(root, latent, model, monkeypatch):
    model._answer = lambda request: "\x1b[31mI'd rather not"
    result = run(root, latent, "--explainer", "llm")
    assert result.exit_code == 1 and "parse_failed" in result.stderr
    assert "I'd rather not" in result.stdout and "\x1b" not in result.stdout and "second reply" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([0], 2, "name an --explainer or a --judge"),
        ([0, "--explainer", "llm", "--text", "x"], 2, "can only be used with --judge"),
        ([0, "--explainer", "pattern"], 1, "has no prompt of its own"),
        ([1, "--explainer", "llm", "--dry"], 1, "is dead"),
        ([9999, "--explainer", "llm", "--dry"], 1, "is not selected"),
        ([9999, "--judge", "x", "--text", "y", "--dry"], 1, "asks nothing about latent 9999"),
        ([0, "--judge", "x", "--explainer", "llm", "--dry"], 1, "no explanations of 'llm'"),
        ([1, "--judge", "x", "--dry"], 1, "has no explanation of latent 1"),
        ([0, "--judge", "absent", "--text", "y"], 1, "'absent' is not in the registry"),
        ([0, "--judge", "x", "--text", "y", "--prompt", "999", "--dry"], 1, "there is no prompt 999"),
        ([0, "--judge", "x", "--text", "y", "--scorer", "intruder", "--dry"], 2, "without an explanation"),
        ([1, "--judge", "x", "--scorer", "intruder", "--dry"], 1, "no trial of latent 1"),
        ([9999, "--judge", "x", "--scorer", "intruder", "--dry"], 1, "no trial of latent 9999"),
    ],
)
def test_what_cannot_be_tried(root, args, code, message):
    result = run(root, *args)
    assert result.exit_code == code and message in result.stderr


def test_nothing_is_stored(root, latent, model):
    before = sorted(p for p in (root / "data").rglob("*") if p.is_file())
    run(root, latent, "--explainer", "llm")
    run(root, latent, "--judge", "scripted", "--explainer", "pattern")
    assert sorted(p for p in (root / "data").rglob("*") if p.is_file()) == before
