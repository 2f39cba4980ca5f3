"""Sorting as NumPy does it fastest: plain integers of 64 bits, without a second array to carry along.

What belongs here: orders, ranks and distinct values that mean the same as `numpy.lexsort` and `numpy.unique` and cost
a fraction, for arrays of a million and more.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer, UInt64


def order_by(*fields: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Indices that sort by the (non-negative) fields, the first one first; what is equal stays as it stands."""
    n = len(fields[0])
    widths = [int(field.max(initial=0)).bit_length() for field in fields]
    index_width = n.bit_length()
    if sum(widths) + index_width > 64:
        order: Int64[np.ndarray, " n"] = np.lexsort(fields[::-1])
        return order
    key = np.zeros(n, dtype=np.uint64)
    for field, width in zip(fields, widths, strict=True):
        key <<= np.uint64(width)
        key |= field.astype(np.uint64)
    key <<= np.uint64(index_width)
    key |= np.arange(n, dtype=np.uint64)
    key.sort()
    key &= np.uint64((1 << index_width) - 1)
    return key.astype(np.int64)


def order_of(keys: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Stable order of keys that are nearly always distinct."""
    order = np.argsort(keys)
    ascending = keys[order]
    if (ascending[1:] == ascending[:-1]).any():
        order = np.argsort(keys, kind="stable")
    return order


def distinct(*values: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " distinct"]:
    """What occurs in any of the arrays, ascending, each once. Cheapest where equal values stand together."""
    found = ascending(np.concatenate([_unlike_last(v) for v in values]))
    return _unlike_last(found)


def _unlike_last(values: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " kept"]:
    kept: Int64[np.ndarray, " kept"] = values[
        np.append(0, np.flatnonzero(values[1:] != values[:-1]) + 1)[: len(values)]
    ]
    return kept


def ascending(values: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The values sorted; the array itself if it is in order, as what comes from a corpus mostly is."""
    return values if (values[1:] >= values[:-1]).all() else np.sort(values)


def rank_in(order: Int64[np.ndarray, " n"], *groups: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Place of each row within its group, from 0, if all are put into an order that keeps groups together."""
    opens = np.zeros(len(order), dtype=bool)
    opens[:1] = True
    for group in groups:
        sorted_group = group[order]
        opens[1:] |= sorted_group[1:] != sorted_group[:-1]
    start = np.flatnonzero(opens)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(start, np.diff(start, append=len(order)))
    return rank


SPARE = 128


def enough(sizes: Int64[np.ndarray, " groups"]) -> Int64[np.ndarray, " groups"]:
    """Of how many random rows a sample of each size can nearly always be made, turns of ten kinds included."""
    return 2 * sizes + SPARE


def in_turns(
    group: Int64[np.ndarray, " n"],
    kind: Integer[np.ndarray, " n"],
    hashes: UInt64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " groups"],
) -> tuple[Int64[np.ndarray, " drawn"], Int64[np.ndarray, " drawn"]]:
    """A random sample of each group in which its kinds take turns: indices by group and order, and orders from 0.

    Within a kind the lowest of the 48-bit `hashes` comes first, and so it does among those of one turn; the smaller
    index, should two be equal. The sample of a smaller size is the beginning of a larger one's.
    """
    n_groups, n_kinds = len(sizes), int(kind.max(initial=0)) + 1
    cell = group * n_kinds + kind
    n = np.bincount(group, minlength=n_groups)
    # Those of low hash come first, whatever else there is: some more than are asked for mostly decide the sample.
    limit = np.minimum(enough(sizes) / np.maximum(n, 1), 1.0)
    keep = np.flatnonzero(hashes < (limit * 2.0**48)[group])
    drawn, order = _in_turns(group, cell, hashes, sizes, keep)
    there, left, taken = (
        np.bincount(x, minlength=n_groups * n_kinds).reshape(n_groups, n_kinds) for x in (cell, cell[keep], cell[drawn])
    )
    missed = ((left < there) & (left < taken.max(axis=1, keepdims=True))).any(axis=1)
    short = (limit < 1) & (missed | (taken.sum(axis=1) < np.minimum(sizes, n)))
    if not short.any():
        return drawn, order
    more, more_order = _in_turns(group, cell, hashes, sizes, np.flatnonzero(short[group]))
    fine = ~short[group[drawn]]
    drawn, order = np.concatenate([drawn[fine], more]), np.concatenate([order[fine], more_order])
    by_group = order_by(group[drawn], order)
    return drawn[by_group], order[by_group]


def _in_turns(
    group: Int64[np.ndarray, " n"],
    cell: Int64[np.ndarray, " n"],
    hashes: UInt64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " groups"],
    keep: Int64[np.ndarray, " kept"],
) -> tuple[Int64[np.ndarray, " drawn"], Int64[np.ndarray, " drawn"]]:
    keep = keep[np.lexsort((hashes[keep], group[keep]))]
    turn = rank_in(order_by(cell[keep]), cell[keep])
    keep = keep[order_by(group[keep], turn)]
    order = rank_in(np.arange(len(keep)), group[keep])
    first = order < sizes[group[keep]]
    return keep[first], order[first]
