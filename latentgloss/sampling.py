"""The latents that something costly is done for: a seeded sample of the eligible ones.

What belongs here: which latents they are. Explainers and scorers that sample use the same rule, so that with the same
seed the smaller of two samples is part of the larger: what is judged has been explained.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import UInt32

from latentgloss import schema
from latentgloss.hashing import counter_hash


def sampled(
    eligibility: pl.DataFrame, n: int | Literal["all"] | None, seed: int
) -> UInt32[np.ndarray, " sample"] | None:
    """`n` of the eligible latents, ascending; None: all of them, for `n` None or "all".

    Those of the lowest hashes of seed and latent, so that a smaller sample is part of a larger one, and a latent that
    comes or goes changes the sample by one. `eligibility` has rows of `schema.ELIGIBILITY`.
    """
    if n is None or n == "all":
        return None
    eligible = eligibility.filter(pl.col("status") == "eligible")["latent"].to_numpy()
    order = np.argsort(counter_hash(seed, eligible), kind="stable")
    return np.sort(eligible[order[:n]])


def smaller(*sizes: int | Literal["all"] | None) -> int | None:
    """The size of the smallest of several samples of one seed, which is what they have in common."""
    return min((n for n in sizes if isinstance(n, int)), default=None)


def of_block(latents: UInt32[np.ndarray, " sample"], block: str) -> list[int]:
    """Those of a sample that are in one block."""
    return [int(latent) for latent in latents[latents // schema.BLOCK == int(block)]]
