"""`saes check` as a whole: the trouble of one SAE leaves the others' report, and nothing steers the terminal."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from assets.pictures import _cell, bars
from latentgloss.cli import cli
from latentgloss.errors import SaeError
from latentgloss.machine.printable import printable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """SAEs of every kind of trouble beside the two good ones."""
    folder = tmp_path_factory.mktemp("check")
    workspace = tiny.tiny_workspace(folder, n_documents=60)
    assert workspace
    for name in ("eighth", "zeros", "placed", "strange"):
        tiny.write_saelens(folder / "saes" / name)
        tiny.register(folder, f"tiny/layers.1/{name}", "saelens")
    weights = folder / "saes" / "eighth" / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"W_dec": tensors["W_dec"].to(torch.float8_e4m3fn)}, weights)
    weights = folder / "saes" / "zeros" / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"][[3, 9]] = 0
    save_file(tensors, weights)
    config = folder / "saes" / "placed" / "cfg.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hook_name": "blocks.1.hook_resid_pre"}))
    tiny.register(folder, "tiny/layers.1/steering", "saelens")
    path = folder / "registry" / "saes" / "steering.toml"
    path.write_text(path.read_text().replace("saes/steering", "saes/\\u001b[31mred\\u202eder"))
    return folder


def check(folder: Path, *arguments: str):
    return CliRunner().invoke(cli, ["--config", str(folder / "latentgloss.toml"), "saes", "check", *arguments])


def test_every_sae_is_reported_whatever_is_wrong_with_one(folder, monkeypatch):
    from latentgloss.saes import opening

    read = opening.READERS["saelens"]

    def fails(path):
        if path.name == "strange":
            raise RuntimeError("nobody expected this")
        return read(path)

    monkeypatch.setitem(opening.READERS, "saelens", fails)
    done = check(folder, "--json")
    assert done.exit_code == 1
    rows = {row["partition"].rpartition("/")[2]: row for row in json.loads(done.stdout)["saes"]}
    assert set(rows) == {"words", "mixed", "eighth", "zeros", "placed", "strange", "steering"}
    told = {name: " ".join(p["message"] for p in row["problems"]) for name, row in rows.items()}
    assert told["words"] == told["mixed"] == told["zeros"] == ""
    assert "W_dec is stored as float8_e4m3fn" in told["eighth"]
    assert "nobody expected this" in told["strange"]
    assert "'layers.1@input' or hookpoint = 'layers.0'" in told["placed"]
    assert "cannot be read" in told["steering"]
    (warning,) = rows["zeros"]["warnings"]
    assert "2 of 64 latents is zero (3, 9)" in warning["message"]
    assert {row["width"] for row in rows.values()} == {tiny.D_MODEL}


def test_nothing_from_a_file_reaches_the_terminal_as_a_command(folder):
    for arguments in (["saes", "check"], ["saes", "list"], ["saes", "check", "tiny/layers.1/steering"]):
        done = CliRunner().invoke(cli, ["--config", str(folder / "latentgloss.toml"), *arguments])
        assert "red" in done.output
        assert all(c.isprintable() or c == "\n" for c in done.output)
    assert "warning: the decoder row of 2 of 64" in check(folder, "tiny/layers.1/zeros").output


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {
        "vocab_size": 300,
        "hidden_size": tiny.D_MODEL,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "gpt2": {"vocab_size": 300, "n_embd": tiny.D_MODEL, "n_layer": 2, "n_head": 4, "n_positions": 128},
}


@pytest.mark.parametrize(
    ("shape", "hookpoint", "config", "says"),
    [
        ("gemma2", "layers.1.mlp", {"hook_name": "blocks.1.hook_mlp_out"}, "layers.1.post_feedforward_layernorm'"),
        ("gemma2", "layers.1.self_attn", {"hook_name": "blocks.1.hook_attn_out"}, "layers.1.post_attention_layernorm'"),
        ("llama", "layers.1", {"hook_name": "blocks.1.hook_resid_pre"}, "'layers.1@input'"),
        ("llama", "layers.1", {"hook_name": "blocks.0.hook_resid_post", "hook_layer": 0}, "'layers.0'"),
        ("gpt2", "h.1", {"metadata": {"hook_name": "blocks.1.hook_mlp_out"}}, "'h.1.mlp'"),
        ("llama", "layers.1", {"model_name": "gpt2-small"}, "'gpt2-small'"),
        ("gpt2", "h.1", {"metadata": {"model_name": "google/gemma-2-2b"}}, "'google/gemma-2-2b'"),
        ("gpt2", "h.1", {"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "center_writing_weights"),
        ("gemma2", "layers.1.mlp", {}, ""),
        ("llama", "layers.1", {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"}, ""),
        ("gpt2", "h.1", {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"}, ""),
    ],
)
def test_what_an_sae_s_files_say_of_its_training_is_compared_with_the_registry(
    tmp_path: Path, shape: str, hookpoint: str, config: dict[str, Any], says: str
) -> None:
    """Named where it contradicts; nothing is said where it does not."""
    tiny.tiny_workspace(tmp_path, n_documents=5)
    if SHAPES[shape]:
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape, **SHAPES[shape], bos_token_id=1))
        made.save_pretrained(tmp_path / "model")
    for path in (tmp_path / "registry" / "saes").iterdir():
        path.unlink()
    tiny.write_saelens(tmp_path / "saes" / "own")
    tiny.register(tmp_path, f"tiny/{hookpoint}/own", "saelens")
    path = tmp_path / "saes" / "own" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    done = check(tmp_path, "--json")
    (row,) = json.loads(done.stdout)["saes"]
    told = [p["message"] for p in row["problems"]]
    assert done.exit_code == len(told) == bool(says)
    assert row["warnings"] == []
    assert not says or says in told[0]


HOSTILE = "a\x1b]0;title\x07\u202etxt\u2066\r\nb\tc\x9b1mé漢"


def test_one_function_cleans_what_is_printed():
    assert printable(HOSTILE) == "a\ufffd]0;title\ufffd\ufffdtxt\ufffd  b c\ufffd1mé漢"
    assert printable("two\nlines\x1b", lines=True) == "two\nlines\ufffd"
    assert printable(7) == "7"
    error = SaeError(HOSTILE, expected="\x1b[2J", todo="\u202e")
    assert all(c.isprintable() or c == "\n" for c in str(error))
    assert error.found == HOSTILE, "for JSON, which escapes it"


def test_pictures_and_tables_of_the_dagster_ui_hold_no_control_characters():
    assert all(c.isprintable() for c in _cell(HOSTILE))
    svg = bars({HOSTILE: 3.0}, "latents")
    assert all(c.isprintable() for c in svg)
    ElementTree.fromstring(svg)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"metadata": [1]}, ""),
        ({"metadata": "x", "hook_name": 7}, ""),
        ({"normalize_activations": ["x"]}, "normalize_activations \"['x']\""),
        ({"normalize_activations": {"a": 1}}, "normalize_activations"),
        ({"hook_name": "blocks." + "9" * 6000 + ".hook_resid_pre"}, "no place of tiny"),
        ({"hook_name": "h." + "1" * 5000}, "no place of tiny"),
        ("pipe", "not a regular file"),
        ("weights pipe", "not a regular file"),
        ("float64", "W_enc holds numbers beyond float32"),
    ],
)
def test_what_a_file_may_hold_is_named_and_nobody_is_asked_to_report_it(tmp_path, config, says):
    tiny.tiny_workspace(tmp_path, n_documents=5)
    cfg, weights = (tmp_path / "saes" / "mixed" / name for name in ("cfg.json", "sae_weights.safetensors"))
    if config == "pipe":
        _pipe(cfg)
    elif config == "weights pipe":
        _pipe(weights)
    elif config == "float64":
        tensors = load_file(weights)
        save_file(tensors | {"W_enc": tensors["W_enc"].double() * 1e300}, weights)
    else:
        cfg.write_text(json.dumps(json.loads(cfg.read_text()) | config))
    done = check(tmp_path, tiny.SAELENS)
    assert says in done.output and "report this" not in done.output
    assert done.exit_code == (1 if says and "place" not in says else 0)
