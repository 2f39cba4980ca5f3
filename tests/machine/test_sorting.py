from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgloss.machine import sorting
from latentgloss.machine.sorting import distinct, in_turns, order_by, order_of, rank_in
from latentgloss.statistics.counter_rng import counter_hash


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 200), st.lists(st.integers(1, 2**40), min_size=1, max_size=3))
def test_orders_and_ranks_are_those_of_numpy(seed: int, n: int, bounds: list[int]) -> None:
    rng = np.random.default_rng(seed)
    fields = [rng.integers(0, bound, n) % 7 * (bound // 7) for bound in bounds]  # many ties, wide values
    order = order_by(*fields)
    assert np.array_equal(order, np.lexsort(fields[::-1]))
    assert np.array_equal(order_of(fields[0].astype(np.uint64)), np.argsort(fields[0], kind="stable"))
    assert np.array_equal(distinct(fields[0], fields[-1]), np.unique(np.concatenate([fields[0], fields[-1]])))
    groups = list(zip(*(field.tolist() for field in fields), strict=True))
    seen: dict[tuple[int, ...], int] = {}
    for at in order.tolist():
        assert rank_in(order, *fields)[at] == seen.get(groups[at], 0)
        seen[groups[at]] = seen.get(groups[at], 0) + 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(0, 30), st.sampled_from([-1000, -20, 0, 10**6]))
def test_kinds_take_turns_in_every_sample(seed: int, n: int, size: int, spare: int) -> None:
    """However few rows are looked at first, as a loop over turns has it; and more only append."""
    rng = np.random.default_rng(seed)
    group, kind = rng.integers(0, 3, n), rng.integers(0, 4, n) ** 2
    hashes = counter_hash(seed, np.arange(n)) >> np.uint64(16)
    sizes = np.array([size, size + 7, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "SPARE", spare)
        drawn, order = in_turns(group, kind, hashes, sizes)
    for number, most in enumerate(sizes.tolist()):
        left = {k: sorted(np.flatnonzero((group == number) & (kind == k)), key=lambda i: hashes[i]) for k in range(10)}
        expected: list[int] = []
        while len(expected) < most and any(left.values()):
            expected += sorted((rows.pop(0) for rows in left.values() if rows), key=lambda i: hashes[i])
        here = group[drawn] == number
        assert drawn[here].tolist() == expected[:most]
        assert order[here].tolist() == list(range(here.sum()))
