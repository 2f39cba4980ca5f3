"""What would prevent a model from reading its corpus is found before anything runs, and stages refuse the same way."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
from click.testing import CliRunner
from tokenizers import Tokenizer

from latentgloss.cli import cli
from latentgloss.errors import EmbedderError, LatentglossError, SettingsError, SubjectError
from latentgloss.models.devices import chosen_device
from latentgloss.models.readiness import check_model_ready, model_problems
from latentgloss.models.subject import load_subject
from latentgloss.models.tokenizer import load_tokenizer
from latentgloss.workspace import Workspace


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.tiny_workspace(folder, n_documents=60)
    return folder


@pytest.fixture
def folder(world, tmp_path):
    shutil.copytree(world, tmp_path / "w")
    return tmp_path / "w"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def corpus(folder, old, new):
    path = folder / "registry" / "models" / "tiny.toml"
    path.write_text(path.read_text().replace(old, new))


def without(name):
    return lambda folder: edit(folder / "model" / "tokenizer_config.json", lambda c: c.pop(name))


def set_config(**values):
    return lambda folder: edit(folder / "model" / "config.json", lambda c: c.update(values))


def larger_tokenizer(folder, special=False):
    path = folder / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    if special:
        tokenizer.add_special_tokens(["<image>"])
    else:
        tokenizer.add_tokens(["another", "word"])
    tokenizer.save(str(path))


def long_sequences(folder):
    corpus(folder, "sequence_length = 64", "sequence_length = 600")


FAULTS = {
    "no BOS": (without("bos_token"), "prepend_bos = false"),
    "no EOS": (without("eos_token"), "`separator`"),
    "unknown separator": (
        lambda folder: corpus(folder, "sequence_length", 'separator = "<nothing>"\nsequence_length'),
        "has no token '<nothing>'",
    ),
    "long sequences": (long_sequences, "sequences of 600 tokens, but the model has 512 positions"),
    "large tokenizer": (larger_tokenizer, "2 tokens of the tokenizer have ids from 291 ('another') on"),
    "own code": (
        set_config(model_type="mystery", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}),
        "code that comes with it, which is never run",
    ),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_model_that_cannot_read_its_corpus_is_named_by_check_doctor_and_stage(folder, name):
    """The same error from the function, `saes check` (with the rest of its report), `doctor` and the first stage."""
    spoil, says = FAULTS[name]
    assert model_problems(Workspace.open(folder / "latentgloss.toml").registry.model("tiny"), folder / "cache") == []
    spoil(folder)
    workspace = Workspace.open(folder / "latentgloss.toml")
    spec = workspace.registry.model("tiny")
    (problem, *_) = problems = model_problems(spec, workspace.model_cache)
    assert says in str(problem) and "What to do" in str(problem)
    assert name == "own code" or len(problems) == 1
    with pytest.raises(type(problem)) as e:
        check_model_ready(spec, workspace.model_cache)
    assert str(e.value) == str(problem)
    done = CliRunner().invoke(cli, ["--config", str(folder / "latentgloss.toml"), "saes", "check"], input="y\n" * 9)
    assert done.exit_code == 1
    assert done.output.count(str(problem)) == 1, "a model's problem is printed once, not for each of its SAEs"
    assert f"{tiny.SPARSIFY}  " in done.output and f"{tiny.SAELENS}  " in done.output
    done = CliRunner().invoke(cli, ["--config", str(folder / "latentgloss.toml"), "doctor", "--json"], input="y\n" * 9)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["problems"] == [str(problem) for problem in problems]
    (outcome,) = tiny.run_all(workspace, ["tokenized_corpus"])
    assert str(outcome.error) == str(problem)


def test_doctor_names_all_that_is_wrong_with_a_model(folder):
    for name in ("no BOS", "long sequences", "large tokenizer"):
        FAULTS[name][0](folder)
    done = CliRunner().invoke(cli, ["--config", str(folder / "latentgloss.toml"), "doctor", "--json"])
    found = json.loads(done.stdout)["problems"]
    assert len(found) == 3
    for name in ("no BOS", "long sequences", "large tokenizer"):
        assert len([text for text in found if FAULTS[name][1] in text]) == 1


def test_a_corpus_that_was_made_before_is_refused_by_the_stage_that_reads_it(folder):
    workspace = Workspace.open(folder / "latentgloss.toml")
    tiny.run_all(workspace, ["tokenized_corpus", "resolved_saes"])
    workspace.resources = None
    spec = workspace.registry.model("tiny")
    workspace.registry.models["tiny"] = spec.model_copy(
        update={"corpus": spec.corpus.model_copy(update={"sequence_length": 600})}
    )
    run = type("Run", (), {"model": workspace.registry.model("tiny"), "resources": workspace})
    from latentgloss.activations.stages import _pass

    with pytest.raises(SubjectError, match="512 positions"):
        _pass([run])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: larger_tokenizer(folder, special=True),
        lambda folder: corpus(folder, "sequence_length = 64", "sequence_length = 512"),
        lambda folder: (
            without("bos_token")(folder),
            corpus(folder, "sequence_length", "prepend_bos = false\nsequence_length"),
        ),
        lambda folder: (
            without("eos_token")(folder),
            corpus(folder, "sequence_length", 'separator = "<unk>"\nsequence_length'),
        ),
        set_config(auto_map={"AutoModelForCausalLM": "m.M"}),
    ],
)
def test_what_can_be_read_is_not_refused(folder, spoil):
    """A special token that no text gives, full-length sequences, settings without BOS or EOS, code that is not used."""
    spoil(folder)
    workspace = Workspace.open(folder / "latentgloss.toml")
    assert model_problems(workspace.registry.model("tiny"), workspace.model_cache) == []
    assert workspace.subject("tiny").width_at("layers.0") == tiny.D_MODEL


# Devices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "tpu", "CPU ", "", "meta"])
def test_a_device_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(SettingsError, match="cpu") as e:
        chosen_device(name)
    assert repr(name) in str(e.value)
    assert "[machine]" in e.value.todo


def test_a_device_that_is_there_is_kept():
    assert chosen_device("cpu") == "cpu"
    assert chosen_device(None) in ("cpu", "cuda")


def test_check_names_the_device_once_and_reads_the_saes(folder):
    path = folder / "latentgloss.toml"
    path.write_text(path.read_text().replace('device = "cpu"', 'device = "gpu"'))
    done = CliRunner().invoke(cli, ["--config", str(path), "saes", "check", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [row["n_latents"] for row in found["saes"]] == [tiny.N_LATENTS, 64]
    for row in found["saes"]:
        assert [p["where"] for p in row["problems"]] == ["tiny"]
        assert "`machine.device` is 'gpu'" in row["problems"][0]["message"]
    workspace = Workspace.open(path)
    with pytest.raises(SettingsError, match="'gpu'"):
        workspace.subject("tiny")
    with pytest.raises(SettingsError, match="'gpu'"):
        workspace.embedder("tiny").documents(["a"])


# Code in folders -------------------------------------------------------------------------------------------

CODE = "from pathlib import Path\nPath({!r}).write_text('ran')\n"


def asked(*_):
    raise AssertionError("a question on stdin")


@pytest.mark.parametrize("what", ["model", "tokenizer", "embedder", "module of an embedder"])
def test_code_of_a_folder_is_never_run_and_never_asked_about(folder, tmp_path, monkeypatch, what):
    monkeypatch.setattr("builtins.input", asked)
    ran = tmp_path / "ran"
    place = folder / ("embedder" if "embedder" in what else "model")
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (place / f"{name}.py").write_text(CODE.format(str(ran)) + "class Own: pass\n")
    config = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    workspace = Workspace.open(folder / "latentgloss.toml")
    spec = workspace.registry.model("tiny")
    loads: tuple = (lambda: workspace.subject("tiny"),)
    if what == "model":
        set_config(model_type="own", auto_map=config | {"AutoModel": "modeling_own.Own"})(folder)
    elif what == "tokenizer":
        auto = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
        edit(place / "tokenizer_config.json", lambda c: c.update(auto))
        loads = (lambda: load_tokenizer(spec, folder / "cache"), lambda: workspace.vocabulary("tiny"))
    elif what == "embedder":
        edit(
            place / "config.json",
            lambda c: c.update(model_type="own", auto_map=config | {"AutoModel": "modeling_own.Own"}),
        )
        loads = (lambda: workspace.embedder("tiny").documents(["a"]),)
    else:
        edit(place / "modules.json", lambda c: c[0].update(type="modeling_own.Own"))
        loads = (lambda: workspace.embedder("tiny").documents(["a"]),)
    for load in loads:
        with pytest.raises((SubjectError, EmbedderError), match="which is never run") as e:
            load()
        assert str(place) in str(e.value)
    assert not ran.exists()


def test_a_model_of_a_language_model_is_refused_alike(folder, monkeypatch):
    from latentgloss.config.entries import ModelSpec
    from latentgloss.llm.engines.transformers import TransformersEngine

    monkeypatch.setattr("builtins.input", asked)
    set_config(model_type="own", auto_map={"AutoConfig": "c.Own", "AutoModelForCausalLM": "m.Own"})(folder)
    spec = ModelSpec(name="m", source=f"path:{folder / 'model'}", dtype="float32")
    engine = TransformersEngine(spec, folder / "cache", device="cpu", threads=1)
    with pytest.raises(LatentglossError, match="never run"):
        _ = engine._model
    with pytest.raises(SubjectError, match="never run"):
        load_subject(spec, folder / "cache", device="cpu")
