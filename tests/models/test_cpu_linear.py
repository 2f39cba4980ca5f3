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


class Recurrent(nn.Module):
    """Reads the weight of a linear layer, as state-space models do."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Linear(5, 5, bias=False), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called((self.read.weight @ x.transpose(-1, -2)).transpose(-1, -2).contiguous())


@needs_bfloat16
def test_replaces_plain_layers_under_their_names_and_leaves_what_is_shared() -> None:
    class Special(nn.Linear):
        pass

    embedding = nn.Embedding(7, 5)
    head = nn.Linear(5, 7, bias=False)
    head.weight = embedding.weight
    parts = {
        "embedding": embedding,
        "block": nn.Sequential(nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 5, bias=False)),
        "special": Special(5, 5),
        "head": head,
    }
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    model = model.bfloat16().requires_grad_(False)
    names = [name for name, _ in model.named_modules()]
    ids = torch.tensor([[1, 2]])
    before = model(ids)
    assert order_weights(model, lambda: model(ids)) == 2
    assert torch.equal(model(ids), before)
    assert [name for name, _ in model.named_modules()] == names
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["block.0"] is kinds["block.2"] is OrderedLinear
    assert kinds["special"] is Special
    assert kinds["head"] is nn.Linear
    assert order_weights(model, lambda: model(ids)) == 0  # nothing is left to do


@needs_bfloat16
def test_a_layer_whose_weight_is_read_stays() -> None:
    model = nn.Sequential(nn.Linear(5, 5), Recurrent()).bfloat16().requires_grad_(False)
    x = torch.randn(2, 3, 5).bfloat16()
    before = model(x)
    assert order_weights(model, lambda: model(x)) == 2
    assert type(model.get_submodule("1.read")) is nn.Linear
    assert type(model.get_submodule("1.called")) is OrderedLinear
    assert torch.equal(model(x), before)


@needs_bfloat16
def test_a_weight_that_is_read_later_is_missing_not_invented() -> None:
    """A branch that the trial did not take fails; it does not compute with memory that nobody has filled."""
    block = Recurrent().bfloat16().requires_grad_(False)
    assert order_weights(block, lambda: None) == 2
    with pytest.raises(AttributeError, match="weight"):
        block(torch.zeros(1, 1, 5).bfloat16())


@needs_bfloat16
def test_a_layer_that_rounds_otherwise_for_its_inputs_stays() -> None:
    """For a transposed input, `nn.Linear` adds the bias after rounding; the operator of oneDNN adds it before."""
    model = nn.Sequential(nn.Linear(5, 5)).bfloat16().requires_grad_(False)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).bfloat16().transpose(1, 2)
    before = model(x)
    order_weights(model, lambda: model(x))
    assert torch.equal(model(x), before)


@needs_bfloat16
def test_a_layer_with_other_bits_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).bfloat16().requires_grad_(False)
    x = torch.randn(2, 5).bfloat16()
    before = model(x)
    reorder = torch.ops.mkldnn._reorder_linear_weight
    altered = [False, True]

    def altering(weight: torch.Tensor, rows: int) -> torch.Tensor:
        return reorder(weight * 1.01 if altered.pop(0) else weight, rows)

    _able()
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", altering)
    assert order_weights(model, lambda: model(x)) == 1
    assert [type(layer) for layer in model] == [OrderedLinear, nn.Linear]
    assert torch.equal(model(x), before)


@needs_bfloat16
def test_after_a_trial_that_fails_every_layer_is_kept_apart_from_its_original() -> None:
    model = nn.Sequential(nn.Linear(5, 5)).bfloat16().requires_grad_(False)
    with pytest.raises(ZeroDivisionError):
        order_weights(model, lambda: 1 / 0)
    assert not hasattr(model[0], "weight")


@needs_bfloat16
def test_leaves_other_dtypes_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).requires_grad_(False)
    x = torch.ones(1, 3)

    def trial() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x)

    assert order_weights(model, trial) == 0
    assert order_weights(model, trial, dtype=torch.float32) == 1


def test_without_the_operators_the_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(OrderedLinear, "forward", gone)
    _able.cache_clear()
    try:
        assert order_weights(nn.Sequential(nn.Linear(3, 3)).bfloat16(), lambda: None) == 0
    finally:
        _able.cache_clear()
