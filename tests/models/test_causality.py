"""Causality: a model that reads later tokens is refused, wherever it does so; others load."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import CONFIGS
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from latentgloss.errors import SubjectError
from latentgloss.models.causality import check_causal


def make(model_type: str = "llama", dtype: str = "float32", **options: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **options})
    return AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()


class Peek(nn.Module):
    """Adds a share of the next token's vector."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :-1] + self.share * x[:, 1:], x[:, -1:]], dim=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_attention_that_looks_ahead_is_refused_and_named(dtype: str) -> None:
    model = make(dtype=dtype)
    check_causal(model, "tiny")
    model.model.layers[1].self_attn.is_causal = False  # PyTorch's kernel is given no mask here, only this
    with pytest.raises(SubjectError) as e:
        check_causal(model, "tiny")
    assert "tiny: the model reads the future" in str(e.value)
    assert "'layers.1.self_attn.o_proj' before position 50" in str(e.value)
    assert "which a position depends on itself and on earlier ones" in e.value.expected
    assert "dtype" in e.value.todo


@pytest.mark.parametrize("place", ["input_layernorm", "mlp"])
def test_one_token_ahead_is_enough(place: str) -> None:
    model = make()
    layer = model.model.layers[0]
    setattr(layer, place, nn.Sequential(getattr(layer, place), Peek(0.05)))
    with pytest.raises(SubjectError, match=rf"'layers\.0\.{place}\.1'"):
        check_causal(model, "tiny")


def test_a_leak_in_the_base_model_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between modules, where no module but the model returns it."""
    model = make()
    norm, peek = model.model.norm.forward, Peek(0.05)
    monkeypatch.setattr(model.model.norm, "forward", lambda x: peek(norm(x)))
    with pytest.raises(SubjectError, match="reads the future"):
        check_causal(model, "tiny")


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"vocab_size": 4, "max_position_embeddings": 4}),
        ("llama", {"hidden_size": 128, "num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": 4}),
        ("gpt2", {"n_positions": 3}),
        ("qwen3_moe", {}),
        ("mamba", {}),
        ("xlm", {"causal": True}),
        ("bert", {"is_decoder": True}),
    ],
)
def test_causal_models_pass(model_type: str, options: dict[str, Any]) -> None:
    model = make(model_type, **options)
    before = sum(len(module._forward_hooks) for module in model.modules())
    state = torch.random.get_rng_state()
    check_causal(model, "tiny")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(len(module._forward_hooks) for module in model.modules()) == before


def test_a_model_that_does_not_run_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()

    def fails(*_: Any, **__: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'to'")

    monkeypatch.setattr(model.model.layers[0].mlp, "forward", fails)
    with pytest.raises(SubjectError, match="LlamaForCausalLM in float32 does not run on token ids") as e:
        check_causal(model, "tiny")
    assert "(AttributeError: 'NoneType' object has no attribute 'to')" in str(e.value)
    assert not any(module._forward_hooks for module in model.modules())
