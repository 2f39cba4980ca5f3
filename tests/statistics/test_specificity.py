"""Nulls and families: against brute force, SciPy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentgloss.statistics import multiple_testing, specificity

modest = settings(max_examples=80, deadline=None)
ps = st.lists(st.floats(0, 1) | st.just(np.nan) | st.sampled_from([0.01, 0.04]), min_size=0, max_size=12)


# --- families ----------------------------------------------------------------------------------------------------


@modest
@given(ps)
def test_holm_steps_down(p: list[float]) -> None:
    """A hypothesis is rejected at α iff it and every smaller p pass α / (number not yet rejected)."""
    found = multiple_testing.holm(np.array(p))
    known = [i for i, value in enumerate(p) if not np.isnan(value)]
    assert all(np.isnan(found[i]) for i in set(range(len(p))) - set(known))
    ordered = sorted(known, key=lambda i: p[i])
    for alpha in (0.05, 0.2, 0.5):
        rejected = set()
        for step, i in enumerate(ordered):
            if p[i] * (len(ordered) - step) > alpha:
                break
            rejected.add(i)
        assert {i for i in known if found[i] <= alpha} == rejected


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(multiple_testing.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


@modest
@given(ps)
def test_benjamini_hochberg_is_the_step_up(p: list[float]) -> None:
    """Rejected at q: the k smallest, for the largest k whose k-th p is at most k q / m."""
    found = multiple_testing.benjamini_hochberg(np.array(p))
    values = np.array([value for value in p if not np.isnan(value)])
    assert np.isnan(found).sum() == len(p) - len(values)
    ordered, m = np.sort(values), len(values)
    for q in (0.05, 0.2, 0.5):
        passing = [k for k in range(1, m + 1) if ordered[k - 1] * m / k <= q]
        cut = ordered[max(passing) - 1] if passing else -1.0
        np.testing.assert_array_equal(found[~np.isnan(found)] <= q, values <= cut)


# --- specificity -------------------------------------------------------------------------------------------------


def test_specificity_is_over_the_partners_there_are() -> None:
    score = np.array([0.9, 0.8, 0.7, np.nan])
    null = np.array([[0.5, 0.6], [0.4, np.nan], [np.nan, np.nan], [0.5, 0.5]])
    np.testing.assert_allclose(specificity.specificity(score, null), [0.35, 0.4, np.nan, np.nan])


# --- p -----------------------------------------------------------------------------------------------------------


@modest
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 15))
def test_p_is_the_share_of_nulls_of_its_bin_that_reach_the_score(seed: int, n: int, per_bin: int) -> None:
    rng = np.random.default_rng(seed)
    null, null_density = rng.integers(0, 6, n) / 5, rng.integers(0, 8, n) / 100
    score, density = rng.integers(0, 6, 7) / 5, rng.integers(-1, 9, 7) / 100
    found = specificity.pooled_p(score, density, null, null_density, per_bin)
    edges = [-np.inf, *specificity._edges(null_density, per_bin), np.inf]
    for s, d, p in zip(score, density, found, strict=True):
        pool = [
            x
            for x, e in zip(null, null_density, strict=True)
            if sum(e >= k for k in edges) == sum(d >= k for k in edges)
        ]
        assert len(pool) >= min(per_bin, n)
        assert p == pytest.approx((1 + sum(x >= s for x in pool)) / (len(pool) + 1))


def test_without_nulls_there_is_no_p() -> None:
    one = np.array([0.5])
    assert np.isnan(specificity.pooled_p(one, one, np.array([]), np.array([]))).all()
    assert np.isnan(specificity.pooled_p(np.array([np.nan]), one, one, one)).all()
    assert specificity.pooled_p(one, one, np.array([0.1, np.nan]), np.array([0.1, 0.1])) == 0.5  # of one null, at best


def test_p_of_an_explanation_no_better_than_anothers_is_uniform_in_every_range_of_density() -> None:
    rng = np.random.default_rng(0)
    n = 6000
    density = np.exp(rng.uniform(-9, -2, n))
    level = 0.5 + 0.03 * np.log(density)  # null scores depend on density
    null, score = (level + 0.05 * rng.standard_normal(n) for _ in range(2))
    p = specificity.pooled_p(score, density, null, density)
    assert stats.kstest(p, "uniform").statistic < 0.03
    rare, dense = density < np.quantile(density, 0.2), density > np.quantile(density, 0.8)
    unbinned = specificity.pooled_p(score, density, null, density, per_bin=n)
    for part in (rare, dense):
        assert np.mean(p[part] < 0.1) == pytest.approx(0.1, abs=0.03)
    assert np.mean(unbinned[dense] < 0.1) > 0.2  # one bin for all would call dense latents specific


@pytest.mark.parametrize("true", [0.0, 0.3])
def test_benjamini_hochberg_keeps_its_promise_on_pooled_p(true: float) -> None:
    rng = np.random.default_rng(1)
    shares, found_any = [], []
    for _ in range(200):
        density = rng.random(1000)
        null = rng.standard_normal(1000)
        real = rng.random(1000) < true
        p = specificity.pooled_p(rng.standard_normal(1000) + 4 * real, density, null, density)
        claimed = multiple_testing.benjamini_hochberg(p) <= 0.1
        shares.append((claimed & ~real).sum() / max(1, claimed.sum()))
        found_any.append(claimed[real].mean() if real.any() else 0)
    assert np.mean(shares) <= 0.1 + 0.02
    assert not true or np.mean(found_any) > 0.9
