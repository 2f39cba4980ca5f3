"""Linear layers in bfloat16 on a CPU, whose weights are reordered once instead of at every call.

What belongs here: one module that replaces `nn.Linear`, and the choice of the layers that it replaces. oneDNN, which
computes the matrix products, otherwise reorders the weights at every call. On processors with AVX-512 the results are
the same bit for bit (tests/models/test_cpu_linear.py). A layer stays as it was if a trial at loading gives other bits,
or if another module reads its weight. Nothing is read or written.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


ROWS = 4096
"""Tokens per product for which oneDNN chooses the order. With other numbers, the results are as correct."""


class OrderedLinear(nn.Module):
    """x Wᵀ + b in bfloat16, like the `nn.Linear` that it replaces; a float32 layer is computed as under autocast.

    It has no `weight`, because only oneDNN can read the reordered one. During a trial it keeps the replaced layer,
    compares itself with it, and gives out its weight, as for `self.dt_proj.weight @ x` in Mamba.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.inference_mode():
            self._ordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16(), ROWS)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)
        self._trial: nn.Linear | None = None
        self._replaces = True

    @property
    def weight(self) -> Tensor:
        """The weight of the replaced layer, during a trial only; reading it ends the replacement."""
        if self._trial is None:
            raise AttributeError("OrderedLinear has no weight, because only oneDNN can read the reordered one")
        self._replaces = False
        return self._trial.weight

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """x Wᵀ + b in bfloat16."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self._ordered, self.bias, "none", [], "")
        if self._trial is not None:
            expected = self._trial(x)
            self._replaces &= found.dtype == expected.dtype and torch.equal(found, expected)
        return found


@cache
def _able() -> bool:
    """Whether it works here. PyTorch's operators for it are internal (its compiler uses them) and may change."""
    operators: Any = torch.ops.mkldnn
    try:
        with torch.random.fork_rng(
            devices=[]
        ):  # drawing the layer's first weights must not advance the caller's generator
            plain = nn.Linear(32, 16, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.linspace(-1, 1, 64).view(2, 32).bfloat16()
        return bool(operators._is_mkldnn_bf16_supported()) and torch.equal(OrderedLinear(plain)(x), plain(x))
    except (AttributeError, RuntimeError, TypeError):
        return False


def order_weights(model: nn.Module, trial: Callable[[], object], *, dtype: torch.dtype = torch.bfloat16) -> int:
    """Replaces each plain linear layer with weights in `dtype` by an `OrderedLinear` and returns their number.

    `trial` runs the model once, in every way in which it will be used. A layer is put back if its weight is read in the
    trial, or if any bit of its output differs from that of the `OrderedLinear`. Layers whose weight another module
    shares (a head tied to the embedding) are never replaced. The model must be on a CPU and used without gradients;
    `dtype` is float32 if it runs under autocast to bfloat16. Returns 0 if the processor has no bfloat16 products or
    PyTorch lacks the operators.
    """
    if not _able():
        return 0
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    places: list[tuple[nn.Module, str, nn.Linear, OrderedLinear]] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == dtype and holders[id(child.weight)] == 1:
                places.append((parent, name, child, OrderedLinear(child)))
    for parent, name, child, ordered in places:
        object.__setattr__(ordered, "_trial", child)  # past nn.Module, so that it is no part of the model
        setattr(parent, name, ordered)
    try:
        trial()
    finally:
        for parent, name, child, ordered in places:
            object.__setattr__(ordered, "_trial", None)
            if not ordered._replaces:
                setattr(parent, name, child)
    return sum(ordered._replaces for *_, ordered in places)
