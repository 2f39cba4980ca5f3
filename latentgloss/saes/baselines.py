"""Baselines: SAEs without files, defined by the parameters of their registry entry.

What belongs here: making a coder from parameters. Reads and writes nothing. `saes/opening.py` (`BASELINE_VERSION`) must
be raised if the same parameters give other weights.

- `random_topk`: seeded directions of norm 1, decoder = transposed encoder, the k largest dot products. What an SAE of
  this size finds without learning.
- `neurons`: the basis of the activations themselves, the k largest positive values. At the input of an MLP's down
  projection (`layers.9.mlp.down_proj@input`) these are its neurons: what is available without any SAE.

Weights are float32 on the CPU: W_enc [d, n], W_dec [n, d]; biases are 0.

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
"""Directions made at once."""


def read(spec: SaeSpec) -> SparseCoder:
    """The coder that a registry entry describes. Raises SaeError if its parameters do not fit together."""
    p = spec.parameters
    try:
        if spec.format == "neurons":
            return neurons(p["d_in"], p["k"])
        return random_topk(p["d_in"], p["n_latents"], p["k"], p["seed"])
    except SaeError as e:
        raise SaeError(f"{spec.partition}: {e.found}", expected=e.expected, todo="correct the registry file") from e


def neurons(d: int, k: int) -> SparseCoder:
    """One latent per dimension of activations of width `d`; the `k` largest positive ones are active."""
    basis, zeros = torch.eye(d), torch.zeros(d)
    return SparseCoder(basis, zeros, basis, zeros, TopK(k), subtract_b_dec=False, identity=True)


def random_topk(d: int, n: int, k: int, seed: int) -> SparseCoder:
    """`n` latents with directions uniform on the sphere in `d` dimensions; a latent's direction does not depend on `n`.

    Directions are rounded to bfloat16, in which most trained SAEs are stored.
    """
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
    """Directions of latents `start` to `stop`: normal numbers, scaled to norm 1 and rounded to bfloat16.

    They come from a counter-based hash, so they do not depend on the version of a random generator.
    """
    bits = counter_hash(seed, np.arange(start, stop)[:, None], np.arange(d))
    normal = ndtri(((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return torch.from_numpy(normal).bfloat16().float()
