"""Aggregates over latents: comparisons, sign flips, and latents crossed with documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentgloss.statistics import clusters, crossed, metrics, resampling
from latentgloss.statistics.crossed import Aggregate

modest = settings(max_examples=40, deadline=None)


# --- comparisons -------------------------------------------------------------------------------------------------


@modest
@given(st.lists(st.integers(-4, 5), min_size=2, max_size=9))
def test_sign_flips_are_scipys_exact_test(gains: list[int]) -> None:
    a = np.array(gains, dtype=float)
    found = resampling.compare(a, np.zeros(len(a)), resamples=200)
    # For one sample SciPy has no sign flips; pairs (a, 0) exchanged are the same thing.
    reference = stats.permutation_test(
        (a, np.zeros(len(a))),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert found.p == pytest.approx(reference.pvalue)
    assert found.reason == ""


def test_many_units_are_flipped_at_random() -> None:
    a = np.random.default_rng(0).standard_normal(40) + 0.4
    found = resampling.compare(a, np.zeros(40), resamples=20_000, seed=3).p
    assert found == pytest.approx(stats.ttest_1samp(a, 0).pvalue, rel=0.25)
    assert resampling.compare(a + 9, np.zeros(40), resamples=99).p == 0.01  # never 0


def test_very_many_units_take_the_normal_limit() -> None:
    a = np.random.default_rng(0).standard_normal(1500) + 0.05
    drawn = resampling.compare(a[:1000], np.zeros(1000), resamples=20_000).p
    whole = resampling.compare(a, np.zeros(1500)).p
    assert whole == pytest.approx(2 * stats.norm.sf(abs(a.sum()) / np.sqrt((a**2).sum())))
    assert drawn == pytest.approx(2 * stats.norm.sf(abs(a[:1000].sum()) / np.sqrt((a[:1000] ** 2).sum())), abs=0.015)
    assert resampling.compare(a, a).p == 1.0


def test_one_sae_is_no_test_of_a_claim_about_layers() -> None:
    a, b = np.random.default_rng(0).random((2, 500))
    found = resampling.compare(a + 0.5, b, clusters=np.zeros(500, int))
    assert np.isnan(found.p) and "1 unit" in found.reason
    assert np.isnan(found.eligible.low)
    assert resampling.compare(a + 0.5, b).p < 0.01  # as a claim about the latents of that SAE it is one
    single = resampling.compare(a[:1], b[:1])
    assert np.isnan(single.p) and single.reason


def test_clusters_are_the_units_of_the_test() -> None:
    rng = np.random.default_rng(1)
    sae = np.repeat(np.arange(6), 200)
    a = rng.random(1200) + np.array([0.3, 0.1, 0.2, 0.4, 0.1, -0.2])[sae]
    found = resampling.compare(a, np.full(1200, 0.5), clusters=sae)
    medians = np.array([np.median(a[sae == i]) - 0.5 for i in range(6)])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    assert found.p == pytest.approx(np.mean(np.abs(medians @ signs) >= abs(medians.sum()) - 1e-12))


def test_failures_count_as_chance_over_all_eligible() -> None:
    a = np.array([0.9, 0.8, np.nan, np.nan, 0.9, np.nan])
    b = np.full(6, 0.6)
    found = resampling.compare(a, b, chance=0.5)
    assert found.scored.value == pytest.approx(0.3) and found.scored.n == 3
    assert found.eligible.value == pytest.approx(0.05) and found.eligible.n == 6


# --- latents crossed with documents ------------------------------------------------------------------------------


def judged(
    rng: np.random.Generator, latents: int, documents: int, n: int, latent_sd: float, document_sd: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """truth, prediction, document: probit answers with effects of latent and document; 2 n judgements a latent."""
    document = rng.integers(0, documents, (latents, 2 * n))
    truth = np.broadcast_to(np.arange(2 * n) < n, document.shape)
    effect = latent_sd * rng.standard_normal((latents, 1)) + document_sd * rng.standard_normal(documents)[document]
    right = rng.standard_normal(document.shape) < 0.5 + effect
    return truth, right == truth, document


def accuracy(truth: np.ndarray, prediction: np.ndarray, weight: np.ndarray) -> np.ndarray:
    right = truth == prediction
    tpr, tnr = ((weight * of * right).sum(1) / (weight * of).sum(1) for of in (truth, ~truth))
    return (tpr + tnr) / 2


def area(truth: np.ndarray, evidence: np.ndarray, weight: np.ndarray) -> np.ndarray:
    won = (evidence[:, :, None] > evidence[:, None]) + 0.5 * (evidence[:, :, None] == evidence[:, None])
    pair = (weight * truth)[:, :, None] * (weight * ~truth)[:, None]
    return (won * pair).sum((1, 2)) / pair.sum((1, 2))


@pytest.mark.parametrize("metric", ["accuracy", "auroc"])
def test_influence_is_the_derivative_by_weight(metric: str) -> None:
    rng = np.random.default_rng(2)
    truth, prediction, document = judged(rng, 5, 8, 12, 0.3, 0.5)
    evidence = np.round(prediction + 0.7 * rng.standard_normal(truth.shape), 1)
    every, given = np.ones_like(truth), prediction if metric == "accuracy" else evidence
    of: Any = crossed.influence_on_accuracy if metric == "accuracy" else crossed.influence_on_auroc
    value: Any = accuracy if metric == "accuracy" else area
    influence = of(truth, given, every)
    np.testing.assert_allclose(influence.sum(1), 0, atol=1e-12)
    change = 1e-6 * rng.standard_normal(8)[document]
    moved = (value(truth, given, 1 + change) - value(truth, given, 1 - change)) / 2
    np.testing.assert_allclose((influence * change).sum(1), moved, rtol=1e-4, atol=1e-12)


def test_what_is_not_valid_has_no_influence() -> None:
    rng = np.random.default_rng(3)
    truth, prediction, _ = judged(rng, 3, 8, 10, 0.3, 0.5)
    evidence, valid = prediction + rng.random(truth.shape), rng.random(truth.shape) < 0.7
    for of, said in ((crossed.influence_on_accuracy, prediction), (crossed.influence_on_auroc, evidence)):
        found = of(truth, said, valid)  # type: ignore[operator]
        assert (found[~valid] == 0).all()
        assert np.isnan(of(truth, said, valid & truth)).any(1).all()  # type: ignore[operator]


def test_variance_of_documents_is_that_of_crossed_effects() -> None:
    """For means the parts are known: Σ_d (Σ_i φ_id)² - Σ_id φ_id² over L²."""
    rng = np.random.default_rng(4)
    truth, prediction, document = judged(rng, 12, 60, 40, 0.3, 0.6)
    every = np.ones_like(truth)
    influence = crossed.influence_on_accuracy(truth, prediction, every)
    values = metrics.confusion(truth, prediction, every).balanced_accuracy
    found = crossed.crossed_interval(values, influence, document, "mean", document_resamples=4000)
    cell = np.zeros((12, 60))
    np.add.at(cell, (np.arange(12)[:, None], document), influence)
    expected = (cell.sum(0) ** 2).sum() - (cell**2).sum()
    assert found.sd_documents == pytest.approx(np.sqrt(expected) / 12, rel=0.07)
    assert found.sd_latents == pytest.approx(values.std() / np.sqrt(12), rel=0.05)
    assert found.value == pytest.approx(values.mean())


@pytest.mark.parametrize("aggregate", ["mean", "median"])
def test_crossed_intervals_cover_and_latents_alone_do_not(aggregate: Aggregate) -> None:
    rng = np.random.default_rng(5)
    hit, alone, runs = 0, 0, 600
    true = stats.norm.cdf(0.5 / np.sqrt(1 + 0.5**2 + (0.2**2 if aggregate == "mean" else 0)))
    for seed in range(runs):
        truth, prediction, document = judged(rng, 80, 100, 40, 0.2, 0.5)
        every = np.ones_like(truth)
        values = metrics.confusion(truth, prediction, every).balanced_accuracy
        influence = crossed.influence_on_accuracy(truth, prediction, every)
        found = crossed.crossed_interval(
            values, influence, document, aggregate, seed=seed, resamples=400, document_resamples=100
        )
        hit += found.low <= true <= found.high
        own = crossed.crossed_interval(
            values, influence, np.full_like(document, -1), aggregate, resamples=400, document_resamples=100
        )
        alone += own.low <= true <= own.high
        assert own.sd_documents == 0
    assert 0.93 <= hit / runs <= 0.97
    assert alone / runs < 0.85


def test_order_chunks_and_unscored_latents_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    truth, prediction, document = judged(rng, 30, 20, 15, 0.3, 0.5)
    every = np.ones_like(truth)
    values = metrics.confusion(truth, prediction, every).balanced_accuracy
    influence = crossed.influence_on_accuracy(truth, prediction, every)
    expected = crossed.crossed_interval(values, influence, document)
    more = [np.concatenate([a, a[:3]]) for a in (influence, document)]
    unscored = crossed.crossed_interval(np.append(values, [np.nan] * 3), *more)
    assert unscored == pytest.approx(expected)
    monkeypatch.setattr(clusters, "CHUNK", 64)
    monkeypatch.setattr(crossed, "WIDE", 64)
    assert crossed.crossed_interval(values, influence, document)[:4] == pytest.approx(expected[:4], abs=0.01)


def test_nothing_to_resample_has_no_ends() -> None:
    one = crossed.crossed_interval(np.array([0.7]), np.zeros((1, 4)), np.zeros((1, 4), int))
    assert one.value == 0.7 and np.isnan(one.low)
    same = crossed.crossed_interval(np.array([0.7, 0.8]), np.zeros((2, 4)), np.zeros((2, 4), int))
    assert np.isnan(same.high)
    none = crossed.crossed_interval(np.array([]), np.zeros((0, 4)), np.zeros((0, 4), int))
    assert np.isnan(none.value) and none.n == 0
