"""Baselines that no file holds: they are what their registry entry says.

- `random_topk`: seeded directions of norm 1, decoder = transposed encoder, the k largest dot products. What a SAE of
  its size finds without learning anything.
- `neurons`: the basis of the activations themselves, the k largest positive ones. Over the input of an MLP's down
  projection (`layers.9.mlp.down_proj@input`) these are its neurons: what is to be had without any SAE.

Method: Paulo et al., arXiv 2410.13928, section 4 (neurons and random SAEs beside trained ones).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import ndtri

from latentgloss.errors import SaeError
from latentgloss.saes.coder import SparseCoder
from latentgloss.saes.selection import TopK
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from latentgloss.config.entries import SaeSpec


_ROWS = 4096


def read(spec: SaeSpec) -> SparseCoder:
    """The coder that a registry entry describes. Raises SaeError if its numbers do not fit each other."""
    p = spec.parameters
    try:
        if spec.format == "neurons":
            return neurons(p["d_in"], p["k"])
        return random_topk(p["d_in"], p["n_latents"], p["k"], p["seed"])
    except SaeError as e:
        raise SaeError(f"{spec.partition}: {e.found}", expected=e.expected, todo="correct the registry file") from e


def neurons(d: int, k: int) -> SparseCoder:
    """One latent per dimension of the activations."""
    basis, zeros = torch.eye(d), torch.zeros(d)
    return SparseCoder(basis, zeros, basis, zeros, TopK(k), subtract_b_dec=False, identity=True)


def random_topk(d: int, n: int, k: int, seed: int) -> SparseCoder:
    """Directions uniform on the sphere, in bfloat16 as trained SAEs mostly are; a latent's does not depend on `n`."""
    directions = torch.cat([_directions(start, min(start + _ROWS, n), d, seed) for start in range(0, n, _ROWS)])
    return SparseCoder(
        directions.T.contiguous(),
        torch.zeros(n),
        directions,
        torch.zeros(d),
        TopK(k),
        subtract_b_dec=False,
        bfloat16_weights=True,
    )


def _directions(start: int, stop: int, d: int, seed: int) -> Float[Tensor, "rows d"]:
    """Normal numbers from a counter, so that no version of a generator decides what an entry means."""
    bits = counter_hash(seed, np.arange(start, stop)[:, None], np.arange(d))
    normal = ndtri(((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return torch.from_numpy(normal).bfloat16().float()
