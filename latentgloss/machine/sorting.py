"""Fast sorting with NumPy: keys are packed into plain 64-bit integers, which NumPy sorts fastest.

What belongs here: orders, ranks, distinct values and balanced samples. Results are the same as those of `numpy.lexsort`
and `numpy.unique`, at a fraction of their time for arrays of a million elements and more.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer, UInt64


def order_by(*fields: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Indices that sort stably by several fields of non-negative integers, of which the first one matters most."""
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
    """Indices that sort keys stably. Fast if the keys are nearly always distinct."""
    order = np.argsort(keys)
    ascending = keys[order]
    if (ascending[1:] == ascending[:-1]).any():
        order = np.argsort(keys, kind="stable")
    return order


def distinct(*values: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " distinct"]:
    """The values that occur in any of the arrays, each once and ascending. Fast if equal values are adjacent."""
    found = ascending(np.concatenate([_unlike_last(v) for v in values]))
    return _unlike_last(found)


def _unlike_last(values: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " kept"]:
    """The values without those that equal the value before them."""
    kept: Int64[np.ndarray, " kept"] = values[
        np.append(0, np.flatnonzero(values[1:] != values[:-1]) + 1)[: len(values)]
    ]
    return kept


def ascending(values: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The values in ascending order. Returns the array itself if it is sorted, as positions in a corpus mostly are."""
    return values if (values[1:] >= values[:-1]).all() else np.sort(values)


def rank_in(order: Int64[np.ndarray, " n"], *groups: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Rank of each row within its group, counted from 0, when the rows are visited in `order`.

    Rows with equal values in all `groups` are one group; `order` must visit the rows of a group one after another.
    """
    starts = np.zeros(len(order), dtype=bool)
    starts[:1] = True
    for group in groups:
        sorted_group = group[order]
        starts[1:] |= sorted_group[1:] != sorted_group[:-1]
    start = np.flatnonzero(starts)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(start, np.diff(start, append=len(order)))
    return rank


SPARE = 128
"""Rows that `enough` adds to twice the size of a sample."""


def enough(sizes: Int64[np.ndarray, " groups"]) -> Int64[np.ndarray, " groups"]:
    """Number of random rows that nearly always suffice for a sample of each size, even if ten kinds take turns."""
    return 2 * sizes + SPARE


def in_turns(
    group: Int64[np.ndarray, " n"],
    kind: Integer[np.ndarray, " n"],
    hashes: UInt64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " groups"],
) -> tuple[Int64[np.ndarray, " drawn"], Int64[np.ndarray, " drawn"]]:
    """A random sample of each group in which the group's kinds take turns.

    Returns the indices of the sampled rows, sorted by group and place in the sample, and these places, from 0. Within a
    kind, and among the rows of one turn, the row with the lowest of the 48-bit `hashes` comes first, and the row with
    the lower index if two hashes are equal. A smaller sample is the beginning of a larger one.
    """
    n_groups, n_kinds = len(sizes), int(kind.max(initial=0)) + 1
    cell = group * n_kinds + kind
    n = np.bincount(group, minlength=n_groups)
    # Rows with low hashes come first, so a few more rows than the sample's size nearly always determine the sample.
    # Groups in which these rows do not suffice are sampled again from all of their rows.
    limit = np.minimum(enough(sizes) / np.maximum(n, 1), 1.0)
    keep = np.flatnonzero(hashes < (limit * 2.0**48)[group])
    drawn, order = _in_turns(group, cell, hashes, sizes, keep)
    present, kept, taken = (
        np.bincount(x, minlength=n_groups * n_kinds).reshape(n_groups, n_kinds) for x in (cell, cell[keep], cell[drawn])
    )
    missed = ((kept < present) & (kept < taken.max(axis=1, keepdims=True))).any(axis=1)
    short = (limit < 1) & (missed | (taken.sum(axis=1) < np.minimum(sizes, n)))
    if not short.any():
        return drawn, order
    more, more_order = _in_turns(group, cell, hashes, sizes, np.flatnonzero(short[group]))
    complete = ~short[group[drawn]]
    drawn, order = np.concatenate([drawn[complete], more]), np.concatenate([order[complete], more_order])
    by_group = order_by(group[drawn], order)
    return drawn[by_group], order[by_group]


def _in_turns(
    group: Int64[np.ndarray, " n"],
    cell: Int64[np.ndarray, " n"],
    hashes: UInt64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " groups"],
    keep: Int64[np.ndarray, " kept"],
) -> tuple[Int64[np.ndarray, " drawn"], Int64[np.ndarray, " drawn"]]:
    """As `in_turns`, from the rows `keep` alone; `cell` numbers the pairs of group and kind."""
    keep = keep[np.lexsort((hashes[keep], group[keep]))]
    turn = rank_in(order_by(cell[keep]), cell[keep])
    keep = keep[order_by(group[keep], turn)]
    order = rank_in(np.arange(len(keep)), group[keep])
    first = order < sizes[group[keep]]
    return keep[first], order[first]
