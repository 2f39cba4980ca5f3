"""Counter-based random numbers: a hash of (seed, counters), the same in any order and company."""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer, UInt64


def counter_hash(seed: int, *fields: Integer[np.ndarray, "*_"] | int) -> UInt64[np.ndarray, "*_"]:
    """64 random bits per element of the (broadcast, non-negative) `fields`: no state, no order.

    What is drawn for a latent thus depends on nothing but the seed, the latent and the context. The mixer is
    splitmix64 (Steele, Lea & Flood, OOPSLA 2014).
    """
    return further_hash(_mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)), *fields)


def further_hash(state: UInt64[np.ndarray, "*_"], *fields: Integer[np.ndarray, "*_"] | int) -> UInt64[np.ndarray, "*_"]:
    """`counter_hash` of some fields and then of these, from the hashes of the former: what is shared is hashed once."""
    for value in fields:
        state = _mix(state ^ np.asarray(value).astype(np.uint64))
    return state


def _mix(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= np.right_shift(x, np.uint64(27), out=shifted)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x
