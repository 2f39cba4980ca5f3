"""Names of places as hookpoints: TransformerLens' and other models' names, on the modules of many architectures.

The modules are those of transformers itself, on the meta device. A place is checked by what it is in a pass, too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from latentgloss.errors import SubjectError
from latentgloss.models.sites import Places
from latentgloss.models.subject import Subject

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=2, n_positions=32),
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=SMALL,
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 5, "num_attention_heads": 1},
    ),
    "olmo2": lambda: transformers.Olmo2Config(**SMALL),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "opt": lambda: transformers.OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16),
    "bloom": lambda: transformers.BloomConfig(vocab_size=60, hidden_size=16, n_layer=3, n_head=2),
    "mpt": lambda: transformers.MptConfig(vocab_size=60, d_model=16, n_layers=3, n_heads=2),
    "phi": lambda: transformers.PhiConfig(**SMALL),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=60, hidden_size=16, num_layers=3, num_heads=2, attention_types=[[["global"], 3]]
    ),
}


@cache
def places(name: str) -> Places:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    return Places(path for path, _ in model.base_model.named_modules() if path)


@pytest.mark.parametrize(
    ("model", "name", "hookpoint"),
    [
        ("gpt2", "blocks.1.hook_resid_post", "h.1"),
        ("gpt2", "blocks.1.hook_resid_pre", "h.1@input"),
        ("gpt2", "blocks.0.hook_resid_mid", "h.0.ln_2@input"),
        ("gpt2", "blocks.2.hook_mlp_out", "h.2.mlp"),
        ("gpt2", "blocks.2.hook_attn_out", "h.2.attn"),
        ("gpt2", "blocks.0.attn.hook_z", "h.0.attn.c_proj@input"),
        ("gpt2", "blocks.0.mlp.hook_post", "h.0.mlp.c_proj@input"),
        ("gpt2", "blocks.0.mlp.hook_pre", "h.0.mlp.c_fc"),
        ("gpt2", "layers.1", "h.1"),
        ("gpt2", "layers.1@input", "h.1@input"),
        ("gpt2", "model.layers.1.self_attn", "h.1.attn"),
        ("gpt2", "layers.1.mlp.down_proj@input", "h.1.mlp.c_proj@input"),
        ("gpt2", "transformer.h.2.mlp", "h.2.mlp"),
        ("gpt2", "gpt_neox.layers.0", "h.0"),
        ("llama", "h.1", "layers.1"),
        ("llama", "transformer.h.2.attn", "layers.2.self_attn"),
        ("llama", "model.layers.1.mlp", "layers.1.mlp"),
        ("llama", "blocks.2.hook_resid_mid", "layers.2.post_attention_layernorm@input"),
        ("llama", "blocks.2.mlp.hook_pre", "layers.2.mlp.gate_proj"),
        ("llama", "resid_post_layer_2", "layers.2"),
        ("llama", "mlp_out_layer_0", "layers.0.mlp"),
        ("llama", "layer.2", "layers.2"),
        ("gemma2", "blocks.1.hook_mlp_out", "layers.1.post_feedforward_layernorm"),
        ("gemma2", "blocks.1.hook_attn_out", "layers.1.post_attention_layernorm"),
        ("gemma2", "blocks.1.hook_resid_mid", "layers.1.pre_feedforward_layernorm@input"),
        ("gemma3", "blocks.1.hook_mlp_out", "language_model.layers.1.post_feedforward_layernorm"),
        ("gemma3", "blocks.2.hook_resid_post", "language_model.layers.2"),
        ("gemma3", "layers.2", "language_model.layers.2"),
        ("olmo2", "blocks.1.hook_mlp_out", "layers.1.post_feedforward_layernorm"),
        ("olmo2", "blocks.1.hook_resid_mid", "layers.1.mlp@input"),
        ("gpt_neox", "blocks.1.hook_attn_out", "layers.1.attention"),
        ("gpt_neox", "blocks.1.attn.hook_z", "layers.1.attention.dense@input"),
        ("opt", "blocks.1.hook_resid_post", "decoder.layers.1"),
        ("bloom", "blocks.1.hook_mlp_out", "h.1.mlp.dense_4h_to_h"),
        ("mpt", "blocks.1.hook_resid_post", "blocks.1"),
        ("mpt", "blocks.1.hook_mlp_out", "blocks.1.ffn.down_proj"),
        ("phi", "blocks.1.hook_mlp_out", "layers.1.mlp"),
        ("gpt_neo", "blocks.1.attn.hook_z", "h.1.attn.attention.out_proj@input"),
    ],
)
def test_a_place_by_another_name(model: str, name: str, hookpoint: str) -> None:
    assert places(model).hookpoints(name)[0] == hookpoint
    if name.removesuffix("@input") not in places(model).modules:
        assert places(model).suggestions(name) == [hookpoint]


def test_the_two_names_of_a_place_between_layers() -> None:
    found = places("gpt2")
    assert found.hookpoints("blocks.1.hook_resid_post") == ["h.1", "h.2@input"]
    assert found.hookpoints("blocks.2.hook_resid_post") == ["h.2"]
    assert found.hookpoints("blocks.1.hook_resid_pre") == ["h.1@input", "h.0"]
    assert found.hookpoints("h.0") == ["h.0", "h.1@input"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt2", "blocks.7.hook_resid_post"),
        ("gpt2", "blocks.1.hook_pattern"),
        ("gpt2", "blocks.1.ln1.hook_normalized"),
        ("gpt_neox", "blocks.1.hook_resid_mid"),
        ("opt", "blocks.1.hook_mlp_out"),  # its modules have one row for all tokens of a batch
        ("llama", "layers.3"),
        ("llama", "something"),
    ],
)
def test_no_place_is_guessed(model: str, name: str) -> None:
    found = places(model)
    assert found.hookpoints(name) == []
    assert found.suggestions(name) == [f"{found.layers}.{i}" for i in (0, 1, 2)]


def test_a_list_of_layers_is_answered_with_its_layers() -> None:
    assert places("gpt2").suggestions("h") == ["h.0", "h.1", "h.2"]
    assert places("llama").suggestions("layers") == ["layers.0", "layers.1", "layers.2"]


def test_a_typing_mistake_is_answered_from_the_same_layer() -> None:
    assert places("llama").suggestions("layers.1.mpl")[0] == "layers.1.mlp"
    assert all(name.startswith("h.1.") for name in places("gpt2").suggestions("h.1.mpl.c_proj"))


@pytest.mark.parametrize("model", ["gpt2", "llama", "gemma2", "olmo2", "gpt_neo", "bloom", "mpt"])
def test_what_a_layer_adds_is_what_the_residual_stream_gains(model: str) -> None:
    """resid_pre + attn_out + mlp_out = resid_post, whatever norms, residual sums and scales are inside the modules."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIGS[model]())
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim == 1:
                parameter += 0.5 * torch.rand(parameter.shape)
    subject = Subject(base.float(), PreTrainedTokenizerFast(tokenizer_object=_tokenizer()), {})
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    names = {kind: subject.places.hookpoints(f"blocks.1.hook_{kind}")[0] for kind in kinds}
    found = subject.activations(np.arange(1, 13).reshape(2, 6), list(names.values()))
    pre, attention, mlp, post = (found[names[kind]] for kind in kinds)
    torch.testing.assert_close(pre + attention + mlp, post, atol=1e-4, rtol=1e-4)


def test_the_error_names_the_right_place() -> None:
    subject = Subject(
        transformers.GPT2LMHeadModel(CONFIGS["gpt2"]()), PreTrainedTokenizerFast(tokenizer_object=_tokenizer()), {}
    )
    for name, right in (("blocks.1.hook_resid_post", "'h.1'."), ("layers.1", "'h.1'."), ("h", "'h.0', 'h.1', 'h.2'.")):
        for call in (subject.width_at, lambda name: subject.activations(np.array([[1, 2]]), [name])):
            with pytest.raises(SubjectError) as e:
                call(name)
            assert f"such as {right}" in str(e.value)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
