"""Files without all weights: refused if a weight is used, whatever it is; taken if nothing depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny
import torch
from architectures import CONFIGS, REFUSED, _tokenizer
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from latentgloss.config.entries import EmbedderSpec, ModelSpec
from latentgloss.errors import EmbedderError, LanguageModelError, SubjectError
from latentgloss.llm.engines.transformers import TransformersEngine
from latentgloss.models.embedder import SentenceEmbedder
from latentgloss.models.identity import lens_identity
from latentgloss.models.subject import load_subject
from latentgloss.protocols import Message, Request

if TYPE_CHECKING:
    from latentgloss.models.subject import Subject

Change = "Callable[[dict[str, torch.Tensor]], object]"
TOKENS = np.random.default_rng(0).integers(3, 90, (2, 9))


def without(*names: str) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            del tensors[name]

    return change


def base_only(tensors: dict[str, torch.Tensor]) -> None:
    """As `AutoModel.from_pretrained(…).save_pretrained` saves: without the prefix, and without a head of its own."""
    for name in list(tensors):
        tensor = tensors.pop(name)
        if not name.startswith("lm_head"):
            tensors[name.removeprefix("model.")] = tensor


def changed(folder: Path, change: Change | None, config: dict[str, Any] | None = None) -> Path:
    if change is not None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def llama(root: Path, change: Change | None = None, **config: Any) -> Path:
    tiny.write_model(root / "model")
    return changed(root / "model", change, config)


def spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec(name="mine", source=f"path:{folder}", dtype="float32", **options)


def loaded(folder: Path, **options: Any) -> Subject:
    return load_subject(spec(folder, **options), folder.parent / "cache", device="cpu")


Q, BIAS = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (without(Q), {}, f"lack 1 of the model's weights: {Q}"),
        (without("model.layers.2.post_attention_layernorm.weight"), {}, "post_attention_layernorm"),
        (without("model.norm.weight"), {}, "model.norm.weight"),
        (without("model.embed_tokens.weight"), {}, "model.embed_tokens.weight"),
        (None, {"num_hidden_layers": 5}, r"lack 18 .* model\.layers\.3.* and 14 more"),
        (lambda t: t.update({f"other.{k}": t.pop(k) for k in list(t)}), {}, "lack 30 of"),
        (lambda t: t.update({Q: torch.zeros(32, 64)}), {}, r"q_proj\.weight; the first has shape \[32, 64\]"),
        (None, {"intermediate_size": 100}, "other shapes than config.json says"),
        (None, {"vocab_size": 300}, r"embed_tokens\.weight; the first has shape"),
        (lambda t: t.update({BIAS: torch.ones(64)}), {}, f"would run without: {BIAS}"),
        (lambda t: t.update({"model.norm.bias": torch.ones(64)}), {}, "would run without: model.norm.bias"),
    ],
)
@pytest.mark.parametrize("rerandomise", [None, 1])
def test_files_that_do_not_hold_the_model_are_refused(tmp_path, change, config, says, rerandomise):
    folder = llama(tmp_path, change, **config)
    with pytest.raises(SubjectError, match=says) as e:
        loaded(folder, rerandomise=rerandomise)
    assert e.value.expected and "config.json that belongs to these weights" in e.value.todo
    assert not list((tmp_path / "cache").glob("model-*"))


def head_apart(t: dict[str, torch.Tensor]) -> None:
    t["lm_head.weight"] = t["model.embed_tokens.weight"] * 2


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (None, {}),  # the head is tied
        (base_only, {}),
        (lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}), {}),
        (lambda t: t.update({"score.weight": torch.ones(2, 64)}), {}),  # the head of another task
        (None, {"num_hidden_layers": 2}),  # fewer layers than there are
        (head_apart, {"tie_word_embeddings": False}),
    ],
)
def test_what_may_be_absent_or_left_over_changes_nothing(tmp_path, change, config):
    right = loaded(llama(tmp_path / "right")).activations(TOKENS, ["layers.1"])["layers.1"]
    subject = loaded(llama(tmp_path / "other", change, **config))
    assert torch.equal(subject.activations(TOKENS, ["layers.1"])["layers.1"], right)
    assert subject.lens().top(torch.eye(64)[:3], 4)[1].shape == (3, 4)


def test_without_its_head_a_model_has_activations_and_no_lens(tmp_path):
    right = loaded(llama(tmp_path / "right")).activations(TOKENS, ["layers.1"])["layers.1"]
    folder = llama(tmp_path / "other", base_only, tie_word_embeddings=False, architectures=["LlamaModel"])
    subject = loaded(folder)
    assert torch.equal(subject.activations(TOKENS, ["layers.1"])["layers.1"], right)
    with pytest.raises(SubjectError, match="LM head are not in the model's files"):
        subject.lens()


@pytest.mark.parametrize(
    ("change", "config", "lens"),
    [
        (None, {}, {}),
        (base_only, {"architectures": ["LlamaModel"]}, {}),
        (head_apart, {"tie_word_embeddings": False}, {}),
        (base_only, {"tie_word_embeddings": False, "architectures": ["LlamaModel"]}, {"lens": "none"}),
        (without("model.norm.weight"), {"tie_word_embeddings": False}, {"lens": "none"}),
    ],
)
def test_only_what_was_cached_with_a_random_head_is_stale(tmp_path, change, config, lens):
    assert lens_identity(spec(llama(tmp_path, change, **config))) == lens


@pytest.mark.parametrize("model_type", [name for name in CONFIGS if name not in REFUSED])
def test_of_every_architecture_a_layer_s_weight_must_be_there(tmp_path, model_type):
    """One matrix and one vector of the last layer; complete files load (test_architectures.py)."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **CONFIGS[model_type]))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    stored = [name for name in whole if ".1." in name and "vision" not in name]
    chosen = [next((n for n in reversed(stored) if whole[n].ndim == d), None) for d in (2, 1)]
    assert any(chosen)
    for name in filter(None, chosen):
        save_file({k: t for k, t in whole.items() if k != name}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(SubjectError, match="lack"):
            loaded(folder)


def test_the_image_part_of_a_multimodal_model_may_be_absent(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", **CONFIGS["gemma3"]))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    right = loaded(folder).activations(TOKENS, ["language_model.layers.1"])["language_model.layers.1"]

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        image = [name for name in tensors if "vision_tower" in name or "multi_modal" in name]
        assert image
        without(*image)(tensors)

    subject = loaded(changed(folder, drop))
    assert torch.equal(subject.activations(TOKENS, ["language_model.layers.1"])["language_model.layers.1"], right)
    assert subject.lens()


# Embedders and language models ------------------------------------------------------------------------------


def embedder(root: Path, change: Change | None = None) -> SentenceEmbedder:
    tiny.write_embedder(root / "embedder")
    changed(root / "embedder", change)
    return SentenceEmbedder(EmbedderSpec(name="mine", source=f"path:{root}/embedder", dtype="float32"), root)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.0.output.dense.bias",
        "embeddings.LayerNorm.weight",
        "embeddings.position_embeddings.weight",
    ],
)
def test_an_embedder_that_lacks_weights_is_refused(tmp_path, name):
    with pytest.raises(EmbedderError, match=f"mine: the files lack 1 of the model's weights: {name}"):
        embedder(tmp_path, without(name)).documents(["a"])


def test_an_embedder_with_other_shapes_is_refused(tmp_path):
    change = "encoder.layer.0.intermediate.dense.weight"
    with pytest.raises(EmbedderError, match=change):
        embedder(tmp_path, lambda t: t.update({change: torch.zeros(8, 32)})).documents(["a"])


def test_a_pooler_that_no_vector_depends_on_may_be_absent(tmp_path):
    texts = [" ".join(text.split()[:9]) for text in tiny.documents(5)]
    right = embedder(tmp_path / "right").documents(texts)
    drop = without("pooler.dense.weight", "pooler.dense.bias")
    np.testing.assert_array_equal(embedder(tmp_path / "other", drop).documents(texts), right)


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (without(Q), {}, f"lack 1 of the model's weights: {Q}"),
        (base_only, {"tie_word_embeddings": False}, "lm_head.weight"),
    ],
)
def test_a_language_model_needs_its_head_too(tmp_path, change, config, says):
    folder = llama(tmp_path, change, **config)
    path = folder / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    engine = TransformersEngine(spec(folder), tmp_path / "cache", device="cpu")
    with pytest.raises(LanguageModelError, match=says):
        list(engine.answer_all([Request((Message("user", tiny.words()[0][0]),), max_tokens=3)]))
