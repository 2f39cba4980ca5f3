"""Selection: which latents of an SAE are active, given its pre-activations.

What belongs here: one class per activation function (`saes/coder.py` applies them), the type of sparse activations, and
the search for the k largest. Tensors are float32 [tokens, n] on any device. Reads and writes nothing.

Sources: JumpReLU, Rajamanoharan et al. 2024, arXiv 2407.14435; TopK, Gao et al. 2024, arXiv 2406.04093; GroupMax, the
`groupmax` activation of EleutherAI's sparsify.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUPS = {"cuda": 32}
"""Latents per group in the search for the k largest (`top`), by kind of device; 1 for other devices."""


@dataclass(frozen=True)
class Relu:
    """f = max(pre, 0)."""


@dataclass(frozen=True)
class JumpRelu:
    """f = pre where pre > threshold, else 0 (Rajamanoharan et al. 2024). BatchTopK SAEs use it for inference too."""

    threshold: Float[Tensor, " n"]
    """One threshold per latent; a negative one counts as 0."""


@dataclass(frozen=True)
class TopK:
    """f = pre for the k largest pre of a token, where positive, else 0 (Gao et al. 2024)."""

    k: int


@dataclass(frozen=True)
class GroupMax:
    """f = pre for the largest pre of each of k groups of n/k consecutive latents, where positive, else 0."""

    k: int


Activation = Relu | JumpRelu | TopK | GroupMax
Sparse = tuple[Int[Tensor, " m"], Int[Tensor, " m"], Float[Tensor, " m"]]
"""(token index, latent, activation) of every active pair: int64 ascending, int64, float32 > 0."""


def top(
    pre: Float[Tensor, "tokens n"], k: int, group: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest values of each row and their columns, in any order; ties at the k-th place fall either way.

    The k largest are in the k groups with the largest maxima, where a group is `group` latents. A GPU's `topk` reads
    its input a dozen times. This reads the input once to find the maxima, and then `group` * k values per row. On a CPU
    it saved no time.
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
