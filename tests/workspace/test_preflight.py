"""What would stop a run is found before anything runs, in the words of the stage that would refuse it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from latentgloss.cli import cli
from latentgloss.errors import LanguageModelError, SaeError, SettingsError
from latentgloss.llm.engines.openai_compatible import OpenAICompatible
from latentgloss.models.devices import chosen_device
from latentgloss.saes.opening import open_sae
from latentgloss.workspace import Workspace
from latentgloss.workspace.preflight import problems

if TYPE_CHECKING:
    from pathlib import Path

SERVER = 'name = "judge"\nengine = "openai_compatible"\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"\n'
PAID = "paid = true\nprices = {prompt = 1.0, completion = 2.0}\n"
ASKED = '[explanations]\nexplainers = ["llm"]\nmodel = "judge"\n'


def changed(root: Path, old: str = "", new: str = "", extra: str = "", server: str = "") -> Workspace:
    """A tiny workspace with other settings, and a language model `judge` if `server` declares it."""
    tiny.tiny_workspace(root, n_documents=5)
    path = root / "latentgloss.toml"
    assert old in tiny.SETTINGS
    path.write_text(tiny.SETTINGS.replace(old, new, 1) + extra)
    if server:
        (root / "registry" / "language_models").mkdir()
        (root / "registry" / "language_models" / "judge.toml").write_text(server)
    return Workspace.open(path)


def test_what_can_run_has_no_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(changed(tmp_path / "a")) == []
    monkeypatch.setenv("A_KEY", "k")
    settings = ASKED + '[detection]\njudges = ["executed", "llm:judge"]\n[budget]\nusd = 1.0\n'
    server = SERVER + 'api_key_env = "A_KEY"\n' + PAID
    assert problems(changed(tmp_path / "b", extra=settings, server=server)) == []


@pytest.mark.parametrize("saes", [True, False])
@pytest.mark.parametrize(
    ("old", "new", "extra", "says"),
    [
        ("", "", '[explanations]\nexplainers = ["patern"]\n', "explainer 'patern' is unknown"),
        ("", "", '[explanations]\nexplainers = ["null:tokens"]\n', "explainer 'null:tokens' is unknown"),
        ("", "", '[detection]\njudges = ["judge"]\n', "judge 'judge' is unknown"),
        ("", "", '[fuzzing]\njudges = ["tokens"]\n', "judge 'tokens' is unknown"),
        ("", "", '[intruder]\njudges = ["executed"]\n', "judge 'executed' is unknown"),
        ("", "", '[detection]\njudges = ["llm:nobody"]\n', "language model 'nobody' is not in the registry"),
        ("", "", '[explanations]\nmodel = "nobody"\n', "language model 'nobody' is not in the registry"),
        ('embedders = ["tiny"]', 'embedders = ["tinny"]', "", "embedder 'tinny' is not in the registry"),
        ('embedder = "tiny"', 'embedder = "tinny"', "", "embedder 'tinny' is not in the registry"),
        ("[negatives]", '[negatives]\nembedder = "tinny"', "", "embedder 'tinny' is not in the registry"),
        ('device = "cpu"', 'device = "gpu"', "", "`machine.device` is 'gpu'"),
    ],
)
def test_a_mistake_in_the_settings_is_found(
    tmp_path: Path, old: str, new: str, extra: str, says: str, saes: bool
) -> None:
    workspace = changed(tmp_path, old, new, extra)
    if not saes:
        for path in (tmp_path / "registry" / "saes").glob("*.toml"):
            path.unlink()
    (found,) = problems(workspace)
    assert says in found.found and found.expected and found.todo
    assert "report" not in str(found).replace("[report]", "")


@pytest.mark.parametrize(
    ("old", "new", "stage"),
    [
        ("nulls = 2", 'nulls = 2\nexplainers = ["patern"]', "explanations"),
        ("nulls = 2", 'nulls = 2\nexplainers = ["llm"]\nmodel = "nobody"', "explanations"),
        ("nulls = 2", 'nulls = 2\nexplainers = ["llm"]', "explanations"),
        ("nulls = 2", 'nulls = 2\n[detection]\njudges = ["exekuted"]', "detection_scores"),
        ("nulls = 2", 'nulls = 2\n[intruder]\njudges = ["llm:nobody"]', "intruder_scores"),
        ('embedders = ["tiny"]', 'embedders = ["tinny"]', "embedding_scores"),
    ],
)
def test_a_stage_refuses_a_name_in_the_same_words(tmp_path: Path, old: str, new: str, stage: str) -> None:
    """Under settings with a mistake, after everything has run without it."""
    assert old in tiny.WORLD
    workspace = tiny.computed_workspace(tmp_path, tiny.WORLD.replace(old, new, 1))
    (found,) = problems(workspace)
    (outcome,) = workspace.materialise(stage, [tiny.SPARSIFY], tiny.runner(stage))
    assert outcome.status == "failed" and str(outcome.error) == str(found)


def test_an_explainer_without_a_model_is_found(tmp_path: Path) -> None:
    (found,) = problems(changed(tmp_path, extra='[explanations]\nexplainers = ["llm"]\n'))
    assert "explainer 'llm' needs a language model" in found.found


def test_a_source_that_is_gone_is_found(tmp_path: Path) -> None:
    workspace = changed(tmp_path)
    (tmp_path / "corpus" / "documents.jsonl").unlink()
    (found,) = problems(workspace)
    assert "documents.jsonl does not exist" in str(found)


@pytest.mark.parametrize(("name", "says"), [("config.json", "no config.json"), ("model.safetensors", "no weights")])
@pytest.mark.parametrize("pipe", [False, True])
def test_a_model_without_a_file_is_found(tmp_path: Path, name: str, says: str, pipe: bool) -> None:
    workspace = changed(tmp_path)
    (tmp_path / "model" / name).unlink()
    if pipe:
        os.mkfifo(tmp_path / "model" / name)
    assert any(says in error.found and error.expected and error.todo for error in problems(workspace))


@pytest.mark.parametrize("partition", tiny.SAES)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, None])
def test_an_sae_whose_file_is_gone_damaged_or_quantised_is_found(
    tmp_path: Path, partition: str, dtype: torch.dtype | None
) -> None:
    workspace = changed(tmp_path)
    folder = workspace.registry.sae(partition).path
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    if dtype is not None:
        save_file({name: t.to(dtype) if name == "W_dec" else t for name, t in tensors.items()}, path)
    for damage in (lambda: None, lambda: path.write_bytes(path.read_bytes()[:40]), path.unlink):
        damage()
        found = problems(workspace)
        if dtype is None and path.exists() and path.stat().st_size > 40:
            assert found == []
            continue
        with pytest.raises(SaeError) as refused:
            open_sae(workspace.registry.sae(partition))
        assert [str(e) for e in found] == [str(refused.value)] and str(path) in str(found[0])


@pytest.mark.parametrize("value", [None, ""])
def test_a_key_that_is_not_set_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    workspace = changed(tmp_path, extra=ASKED, server=SERVER + 'api_key_env = "A_KEY"\n')
    (found,) = problems(workspace)
    with pytest.raises(LanguageModelError) as refused:
        OpenAICompatible(workspace.registry.language_model("judge"))
    assert str(found) == str(refused.value) and "A_KEY" in found.found


def test_a_paid_model_without_budget_is_found(tmp_path: Path) -> None:
    (found,) = problems(changed(tmp_path, extra=ASKED, server=SERVER + PAID))
    assert "judge is a paid model, and there is no budget" in found.found


def test_a_model_that_nothing_asks_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    assert problems(changed(tmp_path, server=SERVER + 'api_key_env = "A_KEY"\n' + PAID)) == []


def test_doctor_says_all_of_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    extra = '[explanations]\nexplainers = ["llm", "patern"]\nmodel = "judge"\n[detection]\njudges = ["exekuted"]\n'
    workspace = changed(
        tmp_path, 'device = "cpu"', 'device = "cuda:99"', extra, SERVER + PAID + 'api_key_env = "A_KEY"\n'
    )
    result = CliRunner().invoke(
        cli, ["--config", str(workspace.settings.folder / "latentgloss.toml"), "doctor", "--json"]
    )
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    found = json.loads(result.stdout)["problems"]
    for word in ("'patern'", "'exekuted'", "cuda:99", "A_KEY", "no budget"):
        assert len([text for text in found if word in text]) == 1
    assert len(found) == 5
    assert not (tmp_path / "data").exists()


# The device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:1", "meta", "", "cuda:-1", "xpu", "cpu cuda"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"machine\.device.*cpu"):
        chosen_device(name)


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_there(name: str) -> None:
    assert chosen_device(name) == "cpu"


def test_without_a_setting_a_gpu_is_used_if_there_is_one() -> None:
    assert chosen_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_stage_refuses_the_device_in_the_same_words(tmp_path: Path) -> None:
    workspace = changed(tmp_path, 'device = "cpu"', 'device = "gpu"')
    (found,) = problems(workspace)
    for use in (lambda: workspace.subject("tiny"), lambda: workspace.embedder("tiny").documents(["a"])):
        with pytest.raises(SettingsError) as refused:
            use()
        assert str(refused.value) == str(found)
