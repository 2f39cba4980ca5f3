"""Masking: the positions that make no context activating.

What belongs here: the reasons for which positions are masked, and the norms by which sinks are found. Makes rows of the
table `masked`; `activations/forward_pass.py` writes them.

A masked position has the first of these reasons that applies:

- `special`: BOS and the other special tokens of the tokenizer.
- `first`: the first position of a sequence.
- `sink`: an attention sink, whose activation norm at the hookpoint exceeds `mask.sink_norm` times the median norm over
  the first sequences of the corpus (without their first positions).

Method: docs/methods.md, Data (context).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Int64, UInt32

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def norms_of(x: Float[torch.Tensor, "*shape d"]) -> Float32[torch.Tensor, " positions"]:
    """Norm of the activation at each position, in one flat tensor on the device of `x`."""
    import torch

    norms: torch.Tensor = x.norm(dim=-1, dtype=torch.float32).flatten()
    return norms


def sink_limit(norms: Float32[np.ndarray, " positions"], length: int, sink_norm: float) -> float:
    """The norm above which a position is a sink, from the norms of whole sequences of `length` tokens."""
    median = float(np.median(norms.reshape(-1, length)[:, 1:]))
    return sink_norm * median


def special_and_first(
    tokens: UInt32[np.ndarray, "sequences length"], special_ids: Sequence[int]
) -> dict[str, Int64[np.ndarray, " _"]]:
    """Indices of the tokens masked as `special` and as `first`, into the flattened array."""
    special = np.isin(tokens, np.asarray(sorted(special_ids), dtype=tokens.dtype))
    first = np.zeros_like(special)
    first[:, 0] = True
    return {"special": np.flatnonzero(special), "first": np.flatnonzero(first & ~special)}


def masked_rows(
    by_token: dict[str, Int64[np.ndarray, " _"]], sinks: Int64[np.ndarray, " sinks"], offset: int
) -> pl.DataFrame:
    """Rows of `schema.MASKED` of a shard whose first position is `offset`, ascending; one reason per position."""
    known = np.concatenate(list(by_token.values()))
    reasons = {**by_token, "sink": np.setdiff1d(sinks, known)}
    frame = pl.concat(
        pl.DataFrame({"position": (index + offset).astype(np.uint32)}).with_columns(why=pl.lit(why))
        for why, index in reasons.items()
    )
    return frame.sort("position")
