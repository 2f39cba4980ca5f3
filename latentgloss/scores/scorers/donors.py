"""Donors: whose pattern of marks a context wears when it is marked wrongly.

What belongs here: the choice of one donor per context, for a whole block of latents at once. Nothing is read or
written. Method: docs/methods.md, Fuzzing.

Contexts *exchange* marks: every one that gets a donor is itself the donor of exactly one. If each took whatever pattern
fits it, patterns that fit many (short ones, and those at places where the latent seldom fires) would be worn more often
than they occur, and a wrong mark could be told by its looks. Exchanged, the wrong patterns of a latent are its right
ones in another order, and nothing that looks at marks alone can do better than chance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from latentgloss.statistics.counter_rng import counter_hash

NONE = -1
"""In place of a donor where there is none."""
_SALT = 0xD0402
PASSES = 2
"""A context that finds no place at first may find one once the others have theirs."""


def donors(
    seed: int,
    group: Int64[np.ndarray, " rows"],
    latent: Int64[np.ndarray, " rows"],
    context: Int64[np.ndarray, " rows"],
    marked: Bool[np.ndarray, "rows length"],
    closed: Bool[np.ndarray, "rows length"],
) -> Int64[np.ndarray, " rows"]:
    """Row whose marks each row wears, or `NONE`.

    A donor is another row of the same `group` (latent, split, decile) none of whose marks falls on a `closed` token
    (active here, or masked). Rows come in the order of a hash of seed, latent and context, and each takes the first
    place among the others that fits on both sides; who wears whose marks thus depends on the rows of its group alone.
    """
    order = np.lexsort((context, counter_hash(seed ^ _SALT, latent, context), group))
    _, start, size = np.unique(group[order], return_index=True, return_counts=True)
    # Eight tokens to a byte: what two patterns have in common is an `and`.
    pattern, barred = (np.packbits(each[order], axis=1) for each in (marked, closed))
    wears = np.arange(len(group))  # itself: no place yet

    def fits(row: Int64[np.ndarray, " some"], donor: Int64[np.ndarray, " some"]) -> Bool[np.ndarray, " some"]:
        free: Bool[np.ndarray, " some"] = ~(pattern[donor] & barred[row]).any(axis=1)
        return free

    longest = int(size.max(initial=0))
    for turn in range(PASSES * longest):  # one row of every group at a time, against one other at a time
        place = turn % longest
        mine = np.flatnonzero(size > place)
        mine = mine[wears[start[mine] + place] == start[mine] + place]
        for step in range(1, longest):
            mine = mine[step < size[mine]]
            row, other = start[mine] + place, start[mine] + (place + step) % size[mine]
            # The row enters between another and what that one wears (itself, if it has no place either).
            enters = fits(row, wears[other]) & fits(other, row)
            wears[row[enters]], wears[other[enters]] = wears[other[enters]], row[enters]
            mine = mine[~enters]
    found = np.full(len(group), NONE, dtype=np.int64)
    placed = wears != np.arange(len(group))
    found[order[placed]] = order[wears[placed]]
    return found
