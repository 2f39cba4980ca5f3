"""Linear layers on a CPU in bfloat16, their weights put once into the order that products read them in.

What belongs here: one module that stands in for `nn.Linear`, and where it does. oneDNN, which computes these products,
otherwise puts the weights in order at every call. The results are the same bit for bit on processors with AVX-512
(tests/test_linear.py).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


ROWS = 4096
"""Tokens per product that the order is chosen for; any other number is as right."""


class OrderedLinear(nn.Module):
    """x Wᵀ + b in bfloat16, as the `nn.Linear` it is made from and replaces, in float32 as autocast runs it.

    `weight` has a shape and a dtype, and no values: only products can read the ordered ones.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.inference_mode():
            self._ordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16(), ROWS)
        self.weight = linear.weight.detach().to("meta")
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self._ordered, self.bias, "none", [], "")
        return found


@cache
def _able() -> bool:
    """Whether it works here: the operators are PyTorch's own business (its compiler uses them) and may change."""
    operators: Any = torch.ops.mkldnn
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn
            plain = nn.Linear(32, 16, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.linspace(-1, 1, 64).view(2, 32).bfloat16()
        return bool(operators._is_mkldnn_bf16_supported()) and torch.equal(OrderedLinear(plain)(x), plain(x))
    except (AttributeError, RuntimeError, TypeError):
        return False


def order_weights(model: nn.Module, *, dtype: torch.dtype = torch.bfloat16) -> int:
    """Puts an `OrderedLinear` in place of each plain linear layer of weights in `dtype`, under its name.

    For a model on a CPU that is used without gradients; `dtype` is float32 where it runs under autocast to bfloat16.
    Weights that another module holds, too (a head tied to the embedding), stay as they are. Returns how many were
    replaced: none where the processor has no products in bfloat16, or PyTorch other operators.
    """
    if not _able():
        return 0
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == dtype and holders[id(child.weight)] == 1
    ]
    for parent, name, child in places:
        setattr(parent, name, OrderedLinear(child))
    return len(places)
