"""Pairs: the active (latent, token) pairs of a shard, from the device that computed them to a sorted table.

What belongs here: moving pairs to the host, sorting them by latent, and rounding activations for storage. Makes rows of
the table `activations`; `activations/forward_pass.py` writes them.

Sparse tensors are used throughout: neither here nor on the device is there a dense [tokens, latents] array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Int32, Int64
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from latentgloss.saes.selection import Sparse


@dataclass(frozen=True)
class Pairs:
    """Active pairs of one batch, ordered by token, on the device that computed them."""

    per_token: Int64[torch.Tensor, " tokens"]
    """Active latents of each token."""
    latent: Int32[torch.Tensor, " pairs"]
    value: Float32[torch.Tensor, " pairs"]

    @classmethod
    def of(cls, triples: Sparse, n_tokens: int) -> Pairs:
        """From what `SparseCoder.encode_sparse` returns for `n_tokens` tokens."""
        import torch

        token, latent, value = triples
        return cls(torch.bincount(token, minlength=n_tokens), latent.to(torch.int32), value)


def sorted_pairs(batches: Sequence[Pairs], n_latents: int, offset: int, precision: str) -> pl.DataFrame:
    """Rows of `schema.ACTIVATIONS` for the batches of a shard whose first position is `offset`.

    Transposing a sparse matrix from CSR to CSC is a counting sort by (latent, position), in linear time. Activations
    are rounded if `precision` is "bfloat16".
    """
    n_tokens = sum(len(batch.per_token) for batch in batches)
    first_of_token = np.zeros(n_tokens + 1, dtype=np.int64)
    np.cumsum(on_host([batch.per_token for batch in batches]), out=first_of_token[1:])
    by_token = sparse.csr_array(
        (on_host([batch.value for batch in batches]), on_host([batch.latent for batch in batches]), first_of_token),
        shape=(n_tokens, n_latents),
    )
    by_latent = by_token.tocsc()
    latent = np.repeat(np.arange(n_latents, dtype=np.uint32), np.diff(by_latent.indptr))
    position = by_latent.indices.astype(np.uint32) + np.uint32(offset)
    value = round_to_bfloat16(by_latent.data) if precision == "bfloat16" else by_latent.data
    return pl.DataFrame({"latent": latent, "position": position, "activation": value})


def round_to_bfloat16(values: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """float32 values rounded to the nearest bfloat16 (ties to even), still stored as float32."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32, copy=False).view(np.float32)


def on_host(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """The parts concatenated along the first axis, as one array on the host."""
    import torch

    array: np.ndarray = torch.cat(list(parts)).cpu().numpy()
    return array
