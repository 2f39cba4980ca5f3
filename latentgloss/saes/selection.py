"""Which latents of an SAE are active: ReLU, JumpReLU, TopK, GroupMax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GROUPS = {"cuda": 32}
"""Latents of which only the largest is looked at first, where the k largest are sought among many."""


@dataclass(frozen=True)
class Relu:
    """f = max(pre, 0)."""


@dataclass(frozen=True)
class JumpRelu:
    """f = pre where pre > threshold, else 0 (Rajamanoharan et al. 2024). BatchTopK infers in this way too."""

    threshold: Float[Tensor, " n"]


@dataclass(frozen=True)
class TopK:
    """f = the k largest pre, where positive (Gao et al. 2024)."""

    k: int


@dataclass(frozen=True)
class GroupMax:
    """f = the largest pre of each of k groups of n/k consecutive latents, where positive."""

    k: int


Activation = Relu | JumpRelu | TopK | GroupMax
Sparse = tuple[Int[Tensor, " m"], Int[Tensor, " m"], Float[Tensor, " m"]]
"""token index (int64, ascending), latent (int64), value (float32, > 0)."""


def top(
    pre: Float[Tensor, "tokens n"], k: int, group: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest of each row and where they are, in any order; of equal ones at the k-th place, any.

    They lie in the k groups of latents with the largest maxima. A GPU's `topk` reads its input a dozen times, this
    once, and then no more than `group` times k. On a CPU that gained nothing.
    """
    n = pre.shape[1]
    stride = n // group
    if group == 1 or n % group or stride < 4 * k:
        value, latent = pre.topk(k, dim=1, sorted=False)
        return value, latent
    best = pre.view(-1, group, stride).amax(1).topk(k, dim=1, sorted=False).indices
    members = (best[:, None] + torch.arange(0, n, stride, device=pre.device)[:, None]).flatten(1)
    value, place = pre.gather(1, members).topk(k, dim=1, sorted=False)
    return value, members.gather(1, place)
