"""Linear layers with ordered weights: bit for bit those they replace, whatever the shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentgloss.models.cpu_linear import OrderedLinear, _able, order_weights

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 products"
)


@needs_bfloat16
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    widths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    batch=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    bias=st.booleans(),
    autocast=st.booleans(),
)
def test_equals_the_layer_it_replaces(
    seed: int, widths: tuple[int, int], batch: list[int], bias: bool, autocast: bool
) -> None:
    torch.manual_seed(seed)
    dtype = torch.float32 if autocast else torch.bfloat16
    linear = nn.Linear(*widths, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(*batch, widths[0]).to(dtype)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found, expected = OrderedLinear(linear)(x), linear(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@needs_bfloat16
def test_equals_it_for_a_batch_of_caching_and_an_input_that_is_a_view() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(576, 1536, bias=False).bfloat16().requires_grad_(False)
    x = torch.randn(4096, 2, 576).bfloat16()[:, 0]
    with torch.inference_mode():
        assert torch.equal(OrderedLinear(linear)(x), linear(x))


@needs_bfloat16
def test_replaces_plain_layers_under_their_names_and_leaves_what_is_shared() -> None:
    class Special(nn.Linear):
        pass

    embedding = nn.Embedding(7, 5)
    head = nn.Linear(5, 7, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict(
        {
            "embedding": embedding,
            "block": nn.Sequential(nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 5, bias=False)),
            "special": Special(5, 5),
            "head": head,
        }
    ).bfloat16()
    names = [name for name, _ in model.named_modules()]
    assert order_weights(model) == 2
    assert [name for name, _ in model.named_modules()] == names
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["block.0"] is kinds["block.2"] is OrderedLinear
    assert kinds["special"] is Special
    assert kinds["head"] is nn.Linear
    assert model.get_submodule("block.0").weight.shape == (5, 5)
    assert order_weights(model) == 0  # nothing is left to do


@needs_bfloat16
def test_leaves_other_dtypes_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    assert order_weights(model) == 0
    assert order_weights(model, dtype=torch.float32) == 1


def test_without_the_operators_the_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(OrderedLinear, "forward", gone)
    _able.cache_clear()
    try:
        assert order_weights(nn.Sequential(nn.Linear(3, 3)).bfloat16()) == 0
    finally:
        _able.cache_clear()
