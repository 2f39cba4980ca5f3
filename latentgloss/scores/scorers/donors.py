"""Donors: whose pattern of marks a context gets when it is marked wrongly.

What belongs here: the choice of one donor per context, for a whole block of latents at once. Nothing is read or
written. Method: docs/methods.md, Fuzzing.

Contexts *exchange* marks: every context with a donor is itself the donor of exactly one context. If each context took
any pattern that fits it, patterns that fit many contexts (short ones, and those at places where the latent seldom
fires) would appear more often as wrong marks than as right ones, and wrong marks could be recognised by their looks.
With an exchange, the wrong patterns of a latent are its right patterns in another order, and a judge that sees only
marks cannot do better than chance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from latentgloss.statistics.counter_rng import counter_hash

NONE = -1
"""The donor of a context without one."""
_SALT = 0xD0402
"""Salt of the order of rows in a group."""
PASSES = 2
"""Passes over the rows. A context that cannot exchange in the first pass may be able to once others have exchanged."""


def donors(
    seed: int,
    group: Int64[np.ndarray, " rows"],
    latent: Int64[np.ndarray, " rows"],
    context: Int64[np.ndarray, " rows"],
    marked: Bool[np.ndarray, "rows length"],
    closed: Bool[np.ndarray, "rows length"],
) -> Int64[np.ndarray, " rows"]:
    """The row whose marks each row gets, or `NONE`.

    A donor is another row of the same `group` (latent, split, decile) none of whose marks falls on a `closed` token of
    the context (active there, or masked). Rows are taken in the order of a hash of seed, latent and context. Each is
    inserted at the first place in the exchange among the other rows that fits on both sides. So a donor depends on the
    rows of its group alone.
    """
    order = np.lexsort((context, counter_hash(seed ^ _SALT, latent, context), group))
    _, start, size = np.unique(group[order], return_index=True, return_counts=True)
    # Eight tokens per byte, so that an `and` finds the tokens that two patterns have in common.
    pattern, barred = (np.packbits(each[order], axis=1) for each in (marked, closed))
    donor = np.arange(len(group))  # its own row: not in the exchange yet

    def fits(row: Int64[np.ndarray, " some"], source: Int64[np.ndarray, " some"]) -> Bool[np.ndarray, " some"]:
        free: Bool[np.ndarray, " some"] = ~(pattern[source] & barred[row]).any(axis=1)
        return free

    longest = int(size.max(initial=0))
    for turn in range(PASSES * longest):  # one row of every group at a time, tried against one other row at a time
        place = turn % longest
        waiting = np.flatnonzero(size > place)
        # Groups whose row at this place is not in the exchange yet.
        waiting = waiting[donor[start[waiting] + place] == start[waiting] + place]
        for step in range(1, longest):
            waiting = waiting[step < size[waiting]]
            row, other = start[waiting] + place, start[waiting] + (place + step) % size[waiting]
            # The row enters between another row and that row's donor, which is itself if it is not in the exchange.
            enters = fits(row, donor[other]) & fits(other, row)
            donor[row[enters]], donor[other[enters]] = donor[other[enters]], row[enters]
            waiting = waiting[~enters]
    found = np.full(len(group), NONE, dtype=np.int64)
    placed = donor != np.arange(len(group))
    found[order[placed]] = order[donor[placed]]
    return found
