from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgloss.contexts.permutation import permuted
from latentgloss.statistics.counter_rng import counter_hash


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.integers(0, 2**63))
def test_permuted_permutes_each_group(sizes: list[int], key: int) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    index = np.concatenate([np.arange(size) for size in sizes])
    image = permuted(index, group, np.array(sizes), counter_hash(key, np.arange(len(sizes))))
    for number in range(len(sizes)):
        assert np.array_equal(np.sort(image[group == number]), index[group == number])


def test_permuted_reaches_the_largest_sizes() -> None:
    sizes = np.array([2**32, 2**32 - 1, 2**31 + 1])
    image = permuted(sizes - 1, np.arange(3), sizes, np.array([1, 2, 3], dtype=np.uint64))
    assert ((image >= 0) & (image < sizes)).all()


@pytest.mark.parametrize("size", [2, 3, 7, 16, 45])
def test_permutations_are_uniform_alone_and_in_pairs(size: int) -> None:
    n = 40_000
    first, second = (
        permuted(np.full(n, i), np.arange(n), np.full(n, size), counter_hash(7, np.arange(n))) for i in (0, 1)
    )
    assert _z(np.bincount(first, minlength=size)) < 4
    pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert not pairs.diagonal().any()
    if size > 2:
        assert _z(pairs[~np.eye(size, dtype=bool)]) < 4


def _z(counts: np.ndarray) -> float:
    """Standardised chi-square of counts that should be equal."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))
