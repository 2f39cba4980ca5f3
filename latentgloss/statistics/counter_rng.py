"""Counter-based random numbers: each is a hash of a seed and counters, so the order of drawing does not matter.

What belongs here: the hash. Samplers of every room use it; each has a salt of its own for the seed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer, UInt64


def counter_hash(seed: int, *fields: Integer[np.ndarray, "*_"] | int) -> UInt64[np.ndarray, "*_"]:
    """64 random bits per element of the broadcast `fields`, which are non-negative integers.

    There is no state: with latent and context as fields, a draw depends on the seed, the latent and the context alone.
    The mixer is splitmix64 (Steele, Lea & Flood, OOPSLA 2014).
    """
    return further_hash(_mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)), *fields)


def further_hash(state: UInt64[np.ndarray, "*_"], *fields: Integer[np.ndarray, "*_"] | int) -> UInt64[np.ndarray, "*_"]:
    """Continues `counter_hash` with further fields, so that shared leading fields are hashed only once.

    `further_hash(counter_hash(seed, a), b)` equals `counter_hash(seed, a, b)`.
    """
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
