"""Attention in blocks: the same function as PyTorch's, for every shape, and as exact."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from latentgloss.models.cpu_attention import NAME, _forward, causal_attention, use_causal_attention

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 products"
)


def _inputs(seed: int, batch: int, groups: int, share: int, length: int, dim: int) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    heads = groups * share
    # Heads lie beside each other in memory, as a projection leaves them.
    return [
        torch.randn(batch, length, n, dim, generator=make).bfloat16().transpose(1, 2) for n in (heads, groups, groups)
    ]


def _exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, scale=scale, enable_gqa=True
    ).transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 200),
    st.sampled_from([8, 64]),
    st.sampled_from([0.125, 0.3]),
)
def test_equals_attention_in_float64_up_to_bfloat16(
    seed: int, batch: int, groups: int, share: int, length: int, dim: int, scale: float
) -> None:
    q, k, v = _inputs(seed, batch, groups, share, length, dim)
    found = causal_attention(q, k, v, scale)
    assert found.shape == (batch, length, groups * share, dim)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), _exact(q, k, v, scale), rtol=0.02, atol=0.02)


@needs_bfloat16
def test_rounds_twice_and_no_more() -> None:
    """The softmax, which is an input of a product, and the result. PyTorch's kernel rounds no less than the result."""
    q, k, v = _inputs(0, 4, 3, 3, 256, 64)
    q = q * 2
    exact = _exact(q, k, v, 0.125)
    scores = q.double() @ k.repeat_interleave(3, 1).double().transpose(-1, -2) * 0.125
    weights = scores.masked_fill(torch.ones(256, 256).triu(1).bool(), -torch.inf).softmax(-1)
    twice = (weights.bfloat16().double() @ v.repeat_interleave(3, 1).double()).bfloat16().transpose(1, 2)
    ours, rounded, least = (
        float((x.double() - exact).norm() / exact.norm())
        for x in (causal_attention(q, k, v, 0.125), twice, exact.bfloat16())
    )
    assert least <= ours <= 1.02 * rounded
    assert ours < 0.004


def test_sees_nothing_that_comes_later() -> None:
    q, k, v = _inputs(1, 2, 1, 2, 150, 16)
    before = causal_attention(q, k, v, 0.25)
    for tensor in (q, k, v):
        tensor[:, :, 100:] += 1
    after = causal_attention(q, k, v, 0.25)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


def test_a_sequence_is_the_same_in_any_batch() -> None:
    q, k, v = _inputs(2, 5, 3, 3, 256, 64)
    together = causal_attention(q, k, v, 0.125)
    alone = torch.cat([causal_attention(*(t[i : i + 1] for t in (q, k, v)), 0.125) for i in range(5)])
    assert torch.equal(together, alone)


def test_leaves_the_precision_of_other_products_alone() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    q, k, v = _inputs(3, 1, 1, 1, 8, 8)
    causal_attention(q, k, v, 1.0)
    with pytest.raises(RuntimeError):
        causal_attention(q, k[:, :, :3], v, 1.0)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@needs_bfloat16
def test_anything_else_goes_to_the_kernel() -> None:
    q, k, v = _inputs(4, 1, 2, 2, 12, 16)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=False)
    open_ended = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    masked, _ = _forward(module, q, k, v, open_ended, scaling=0.25)  # type: ignore[arg-type]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=open_ended, scale=0.25, enable_gqa=True)
    torch.testing.assert_close(masked, expected.transpose(1, 2))
    plain, _ = _forward(module, q, k, v, None, scaling=0.25)  # type: ignore[arg-type]
    assert torch.equal(plain, causal_attention(q, k, v, 0.25))


@needs_bfloat16
@pytest.mark.parametrize("name", ["s_aux", "softcap", "position_bias", "an_argument_of_tomorrow"])
def test_an_argument_that_could_ask_for_more_goes_to_the_kernel(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from transformers.integrations import sdpa_attention

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        sdpa_attention, "sdpa_attention_forward", lambda *_, **others: asked.append(others) or (None, None)
    )
    q, k, v = _inputs(5, 1, 2, 1, 6, 8)
    module: Any = SimpleNamespace(is_causal=True)
    _forward(module, q, k, v, None, scaling=0.25, position_ids=torch.arange(6), sliding_window=4, **{name: None})
    assert not asked
    for value in (torch.ones(2), 30.0):
        _forward(module, q, k, v, None, scaling=0.25, **{name: value})
        assert asked.pop()[name] is value


@needs_bfloat16
@pytest.mark.parametrize(
    ("model_type", "used"),
    [("llama", True), ("stablelm", True), ("bloom", False), ("falcon", False), ("gemma2", False), ("mixtral", False)],
)
def test_is_used_where_it_changes_nothing_but_rounding(model_type: str, used: bool) -> None:
    """Not by classes without the interface, with a softcap of scores, or with routed experts."""
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).eval()
    before = model.config._attn_implementation
    assert not use_causal_attention(model)  # in float32
    assert use_causal_attention(model.bfloat16()) == used
    assert model.config._attn_implementation == (NAME if used else before)
