"""Donors: whose pattern of marks a context wears when it is marked wrongly.

What belongs here: the choice of one donor per context, for a whole block of latents at once. Nothing is read or
written. Method: docs/methods.md, Fuzzing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from latentgloss.hashing import counter_hash

NONE = -1
"""In place of a donor where there is none."""
_SALT = 0xD0402


def donors(
    seed: int,
    group: Int64[np.ndarray, " rows"],
    latent: Int64[np.ndarray, " rows"],
    context: Int64[np.ndarray, " rows"],
    marked: Bool[np.ndarray, "rows length"],
    closed: Bool[np.ndarray, "rows length"],
) -> Int64[np.ndarray, " rows"]:
    """Row whose marks each row wears, or `NONE`.

    The donor is another row of the same `group` (latent, split, decile) none of whose marks falls on a `closed` token
    (active here, or masked); of several the one with the lowest hash of seed, latent, both contexts. What a row
    wears thus depends on the rows of its group alone.
    """
    n = len(group)
    order = np.lexsort((context, group))
    _, start, of, size = np.unique(group[order], return_index=True, return_inverse=True, return_counts=True)
    place = np.arange(n) - start[of]
    # Eight tokens to a byte: what two patterns have in common is an `and`.
    pattern, barred = (np.packbits(each[order], axis=1) for each in (marked, closed))
    key, number = latent[order], context[order]
    best = np.full(n, NONE, dtype=np.int64)
    lowest: UInt64[np.ndarray, " rows"] = np.full(n, np.iinfo(np.uint64).max, dtype=np.uint64)
    for step in range(1, int(size.max(initial=1))):  # the other rows of a group, one per turn, for all groups at once
        row = np.flatnonzero(step < size[of])
        other = start[of[row]] + (place[row] + step) % size[of[row]]
        fits = ~(pattern[other] & barred[row]).any(axis=1)
        row, other = row[fits], other[fits]
        drawn = counter_hash(seed ^ _SALT, key[row], number[row], number[other])
        better = drawn < lowest[row]
        best[row[better]], lowest[row[better]] = other[better], drawn[better]
    found = np.full(n, NONE, dtype=np.int64)
    found[order] = np.where(best >= 0, order[best], NONE)
    return found
