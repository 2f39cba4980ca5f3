"""Random permutations of ranges, evaluated at single indices without a table.

What belongs here: the shuffle by which `contexts/negatives.py` draws windows from intervals. Reads and writes nothing.

Method: the swap-or-not shuffle (Hoang, Morris & Rogaway, CRYPTO 2012). A round pairs x with k - x modulo the size, for
a random k, and swaps each pair or not by a random bit. It works for any size, tiny ones included.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt64

from latentgloss.statistics.counter_rng import counter_hash

_CHUNK = 2**14
"""Indices permuted at once, so that their arrays stay in the processor's caches."""

_ROUNDS = 32
"""Rounds of the shuffle: the image of one index is uniform but for 2^-32, and tests find pairs of images uniform."""


def permuted(
    index: Int64[np.ndarray, " n"],
    group: Int64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " groups"],
    keys: UInt64[np.ndarray, " groups"],
) -> Int64[np.ndarray, " n"]:
    """Image of each index under the random permutation of range(size) of its group; index < size <= 2^32.

    `keys` are the random bits that decide each group's permutation.
    """
    rounds = [counter_hash(number, keys) for number in range(_ROUNDS)]
    shifts = [(bits % np.maximum(sizes, 1).astype(np.uint64)).astype(np.int64) for bits in rounds]
    image = np.empty_like(index)
    for low in range(0, len(index), _CHUNK):
        part = slice(low, low + _CHUNK)
        x, group_of_x = index[part].copy(), group[part]
        size = sizes[group_of_x]
        for number, (bits, k) in enumerate(zip(rounds, shifts, strict=True)):
            partner = k[group_of_x]
            partner -= x
            partner += size & _all_ones_if_negative(partner)  # modulo the size
            pair = np.maximum(x, partner)  # the same for both members
            pair ^= bits.view(np.int64)[group_of_x]
            partner -= x
            partner &= _all_ones_if_negative(counter_hash(number, pair).view(np.int64))  # swaps or stays
            x += partner
        image[part] = x
    return image


def _all_ones_if_negative(x: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """A mask for `&` from the sign bit: -1 (all bits set) where x < 0, else 0."""
    return x >> 63
