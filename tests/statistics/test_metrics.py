"""Metrics, rates, areas, intervals and medians against brute force, SciPy and simulation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from latentgloss.errors import InputError
from latentgloss.statistics import areas, clusters, intervals, metrics, resampling
from latentgloss.statistics.intervals import Interval
from latentgloss.statistics.rates import rate_intervals


class Block(NamedTuple):
    truth: np.ndarray
    evidence: np.ndarray
    prediction: np.ndarray
    valid: np.ndarray
    cluster: np.ndarray
    decile: np.ndarray

    def take(self, columns: np.ndarray) -> Block:
        return Block(*(a[:, columns] for a in self))


def random_block(seed: int, latents: int, n: int, *, values: int = 6) -> Block:
    """Few distinct values (ties), missing judgements, clusters that mix classes, some judgements on their own."""
    rng = np.random.default_rng(seed)
    truth = rng.random((latents, n)) < rng.random((latents, 1))
    evidence = rng.integers(0, values, (latents, n)) + truth * rng.integers(0, 3, (latents, 1))
    return Block(
        truth=truth,
        evidence=evidence / 4,
        prediction=rng.random((latents, n)) < np.where(truth, 0.7, 0.2),
        valid=rng.random((latents, n)) < 0.9,
        cluster=rng.integers(-1, max(1, n // 3), (latents, n)),
        decile=np.where(truth, rng.integers(0, 11, (latents, n)), 0),
    )


blocks = st.builds(random_block, st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 25))
modest = settings(max_examples=60, deadline=None)


def everything(block: Block) -> dict[str, np.ndarray]:
    """Every number a block gives, by name."""
    b = block
    share = np.tile([0.3, 0.7], (len(b.truth), 1))
    rate = np.linspace(0.001, 0.3, len(b.truth))
    result: dict[str, Any] = {
        "tau": metrics.youden_threshold(b.evidence, b.truth, b.valid),
        "auroc": areas.auroc(b.truth, b.evidence, b.valid, b.cluster),
        "auprc": areas.auprc(b.truth, b.evidence, b.valid),
        "auprc at base rate": areas.auprc_at_base_rate(b.truth, b.evidence, b.valid, b.cluster % 2, share, rate),
        "deciles": metrics.recall_by_decile(b.truth, b.prediction, b.decile, b.valid),
        **metrics.confusion(b.truth, b.prediction, b.valid)._asdict(),
        **{
            f"interval of {name}": value
            for name, value in rate_intervals(b.truth, b.prediction, b.valid, b.cluster)._asdict().items()
        },
        **{
            f"{name} at base rate": value
            for name, value in metrics.prevalence_weighted(
                b.truth, b.prediction, b.valid, b.cluster, b.cluster % 2, share, rate
            )
            ._asdict()
            .items()
        },
    }
    flat: dict[str, np.ndarray] = {}
    for name, value in result.items():
        if isinstance(value, Interval):
            flat.update({f"{name}: {end}": column for end, column in value._asdict().items()})
        else:
            flat[name] = value
    return flat


# --- thresholds ------------------------------------------------------------------------------------------


@modest
@given(blocks)
def test_youden_threshold_is_the_best_of_all_thresholds(block: Block) -> None:
    tau = metrics.youden_threshold(block.evidence, block.truth, block.valid)
    for e, t, v, found in zip(block.evidence, block.truth, block.valid, tau, strict=True):
        e, t = e[v], t[v]
        if t.all() or not t.any():
            assert np.isnan(found)
            continue
        rates = [((e[t] >= c).mean(), (e[~t] >= c).mean()) for c in (found, *np.unique(e), np.inf)]
        gains = np.array([round(tpr - fpr, 9) for tpr, fpr in rates])
        assert gains[0] == gains.max()
        assert rates[0][1] <= min(fpr for (_, fpr), g in zip(rates, gains, strict=True) if g == gains.max())
        assert np.min(np.abs(e - found)) >= 0.125 or found == np.nextafter(e.max(), np.inf)


def test_threshold_separates_neighbouring_floats() -> None:
    low = np.float64(0.1)
    evidence = np.array([[low, np.nextafter(low, 1)]])
    tau = metrics.youden_threshold(evidence, np.array([[False, True]]), np.ones((1, 2), bool))
    np.testing.assert_array_equal(evidence >= tau[:, None], [[False, True]])


def test_threshold_ignores_evidence_that_is_missing() -> None:
    evidence = np.array([[0.1, 0.9, np.nan, 0.5]])
    truth = np.array([[False, True, False, True]])
    assert metrics.youden_threshold(evidence, truth, np.ones((1, 4), bool)) == pytest.approx(0.3)


def test_shrinkage_sets_in_below_twenty_and_without_a_jump() -> None:
    tau, n = np.array([1.0, 1.0, 1.0, np.nan, 1.0]), np.array([0, 10, 20, 50, 400])
    np.testing.assert_allclose(metrics.shrink(tau, n, 0.5), [0.5, 0.75, 1.0, 0.5, 1.0])
    np.testing.assert_allclose(metrics.shrink(tau[2:3], n[2:3], np.array([np.nan])), [1.0])


# --- metrics ---------------------------------------------------------------------------------------------


@modest
@given(blocks)
def test_confusion_and_deciles_count_what_is_there(block: Block) -> None:
    found = metrics.confusion(block.truth, block.prediction, block.valid)
    deciles = metrics.recall_by_decile(block.truth, block.prediction, block.decile, block.valid)
    for i in range(len(block.truth)):
        v = block.valid[i]
        t, p, d = block.truth[i][v], block.prediction[i][v], block.decile[i][v]
        assert (found.tp[i], found.fp[i], found.fn[i], found.tn[i]) == (
            sum(t & p),
            sum(~t & p),
            sum(t & ~p),
            sum(~t & ~p),
        )
        if t.any():
            assert found.tpr[i] == pytest.approx(np.mean(p[t]))
            precision = np.mean(t[p]) if p.any() else 0.0
            f1 = stats.hmean([precision, np.mean(p[t])]) if p.any() and p[t].any() else 0.0
            assert found.f1[i] == pytest.approx(f1)
        if not t.all():
            assert found.tnr[i] == pytest.approx(np.mean(~p[~t]))
        if t.any() and not t.all():
            assert found.balanced_accuracy[i] == pytest.approx((found.tpr[i] + found.tnr[i]) / 2)
        for decile in range(1, 11):
            inside = p[t & (d == decile)]
            expected = inside.mean() if len(inside) else np.nan
            assert deciles[i, decile - 1] == pytest.approx(expected, nan_ok=True)


@modest
@given(blocks)
def test_auroc_is_the_share_of_pairs_in_order(block: Block) -> None:
    found = areas.auroc(block.truth, block.evidence, block.valid, block.cluster).value
    for e, t, v, value in zip(block.evidence, block.truth, block.valid, found, strict=True):
        pos, neg = e[v & t], e[v & ~t]
        if len(pos) == 0 or len(neg) == 0:
            assert np.isnan(value)
            continue
        pairs = (pos[:, None] > neg).mean() + (pos[:, None] == neg).mean() / 2
        assert value == pytest.approx(pairs)
        assert value == pytest.approx(roc_auc_score(t[v], e[v]))
        u = stats.mannwhitneyu(pos, neg, method="asymptotic").statistic
        assert value == pytest.approx(u / (len(pos) * len(neg)))


@modest
@given(blocks)
def test_auprc_is_average_precision(block: Block) -> None:
    found = areas.auprc(block.truth, block.evidence, block.valid)
    for e, t, v, value in zip(block.evidence, block.truth, block.valid, found, strict=True):
        if len(set(t[v])) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(average_precision_score(t[v], e[v]))


@modest
@given(blocks, st.integers(0, 2**32))
def test_auprc_at_the_base_rate_weighs_every_judgement_by_what_it_stands_for(block: Block, seed: int) -> None:
    rng = np.random.default_rng(seed)
    latents, n = block.truth.shape
    stratum, share = rng.integers(0, 3, (latents, n)), rng.random((latents, 3))
    rate = rng.random(latents)
    found = areas.auprc_at_base_rate(block.truth, block.evidence, block.valid, stratum, share, rate)
    for i, value in enumerate(found):
        v = block.valid[i]
        e, t, h = block.evidence[i][v], block.truth[i][v], stratum[i][v]
        sizes = np.bincount(h[~t], minlength=3)
        if not t.any() or not sizes.all():
            assert np.isnan(value)
            continue
        weight = np.where(t, rate[i] / t.sum(), (1 - rate[i]) * (share[i] / share[i].sum() / sizes)[h])
        assert value == pytest.approx(average_precision_score(t, e, sample_weight=weight))


def test_coverage_is_the_share_of_what_was_asked() -> None:
    asked = np.array([[True, True, True, False], [False] * 4])
    valid = np.array([[True, False, True, False], [True] * 4])
    np.testing.assert_allclose(metrics.coverage(asked, valid), [2 / 3, np.nan])


# --- intervals: against definitions ----------------------------------------------------------------------


@modest
@given(st.integers(0, 80), st.integers(0, 80), st.sampled_from([0.8, 0.95, 0.99]), st.booleans())
def test_without_clustering_rates_have_wilsons_interval(hits: int, misses: int, level: float, ids: bool) -> None:
    n = hits + misses
    if n < 2:
        return
    prediction = np.array([[True] * hits + [False] * misses])
    cluster = np.arange(n)[None] if ids else np.full((1, n), -1)
    every = np.ones((1, n), bool)
    expected = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    tpr = rate_intervals(every, prediction, every, cluster, level).tpr
    tnr = rate_intervals(~every, ~prediction, every, cluster, level).tnr
    direct = intervals.wilson(np.array([hits / n]), np.array([n]), level)
    for found in (tpr, tnr, direct):
        np.testing.assert_allclose([found.low[0], found.high[0]], expected, atol=1e-12)


def test_effective_sample_size_is_the_anova_one() -> None:
    # Six clusters of five with hits 5 5 4 1 0 3: mean squares from SciPy's one-way ANOVA.
    hits = [5, 5, 4, 1, 0, 3]
    groups = [np.r_[np.ones(h), np.zeros(5 - h)] for h in hits]
    prediction = np.concatenate(groups)[None] > 0
    cluster, every = np.repeat(np.arange(6), 5)[None], np.ones((1, 30), bool)
    f = stats.f_oneway(*groups).statistic
    icc = (f - 1) / (f - 1 + 5)
    inflation = 1 + 4 * icc
    df = 5 * 5 / (4 * (1 - icc) ** 2)
    expected = intervals.wilson(np.array([18 / 30]), np.array([30 / inflation]), df=df)
    found = rate_intervals(every, prediction, every, cluster).tpr
    np.testing.assert_allclose(np.array(found), np.array(expected))
    assert 0.4 < icc < 0.7


def test_large_clusters_weigh_more_than_their_number() -> None:
    sizes = [8, 2, 2, 2, 2]  # all answers of a cluster agree: intra-cluster correlation 1
    prediction, cluster = np.repeat([True, False, True, True, False], sizes)[None], np.repeat(range(5), sizes)[None]
    every = np.ones((1, 16), bool)
    inflation = np.square(sizes).sum() / 16
    expected = intervals.wilson(np.array([12 / 16]), np.array([16 / inflation]))  # five answers, in effect
    found = rate_intervals(every, prediction, every, cluster).tpr
    np.testing.assert_allclose(np.array(found), np.array(expected))


def test_perfect_rates_and_areas_keep_an_interval() -> None:
    n = 50
    truth = np.repeat([[True, False]], n, axis=1)
    every, cluster = np.ones((1, 2 * n), bool), np.repeat(np.arange(n), 2)[None]  # 25 documents per class
    rates = rate_intervals(truth, truth, every, cluster)
    area = areas.auroc(truth, truth.astype(float), every, cluster)
    for perfect in (*rates, area):
        assert perfect.value[0] == perfect.high[0] == 1.0
    for perfect in (rates.tpr, rates.tnr, area):  # 25 / (25 + 1.96²) = .867; as if 50 were independent: .929
        assert 0.85 < perfect.low[0] < 0.87
    assert 0.87 < rates.balanced_accuracy.low[0] < 0.95
    nothing = areas.auroc(truth, np.zeros((1, 2 * n)), every, cluster)
    assert nothing.value[0] == 0.5
    assert nothing.low[0] < 0.4
    assert nothing.high[0] > 0.6


def delong_variance(pos: np.ndarray, neg: np.ndarray) -> float:
    order = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
    return order.mean(1).var(ddof=1) / len(pos) + order.mean(0).var(ddof=1) / len(neg)


def logit_interval(area: float, variance: float, df: int) -> tuple[float, float]:
    t = stats.t.ppf(0.975, df) * np.sqrt(variance) / (area * (1 - area))
    return tuple(stats.logistic.cdf(stats.logistic.ppf(area) + side * t) for side in (-1, 1))


def test_area_without_clusters_has_delongs_variance() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(60)[None] < 25
    evidence = np.round(truth + rng.standard_normal((1, 60)), 1)
    found = areas.auroc(truth, evidence, np.ones((1, 60), bool), np.full((1, 60), -1))
    variance = delong_variance(evidence[truth], evidence[~truth])
    np.testing.assert_allclose((found.low[0], found.high[0]), logit_interval(found.value[0], variance, df=24))


def test_area_with_clusters_has_obuchowskis_variance() -> None:
    rng = np.random.default_rng(1)
    truth, cluster = np.arange(90) // 12 % 3 == 0, np.arange(90) % 12  # every cluster holds both classes
    evidence = truth + rng.standard_normal(90) + rng.standard_normal(12)[cluster]
    order = (evidence[truth][:, None] > evidence[~truth]).astype(float)
    area, (a, b) = order.mean(), order.shape
    of_pos = np.array([(order.mean(1) - area)[cluster[truth] == c].sum() for c in range(12)])
    of_neg = np.array([(order.mean(0) - area)[cluster[~truth] == c].sum() for c in range(12)])
    variance = 12 / 11 * np.sum((of_pos / a + of_neg / b) ** 2)
    found = areas.auroc(truth[None], evidence[None], np.ones((1, 90), bool), cluster[None])
    np.testing.assert_allclose((found.low[0], found.high[0]), logit_interval(area, variance, df=11))


# --- intervals: coverage ---------------------------------------------------------------------------------

LATENTS, CONTEXTS, SIZE = 800, 100, 5


def simulated(icc: float, tpr: float, tnr: float, seed: int) -> tuple[np.ndarray, ...]:
    """Beta-binomial answers; positives and negatives 100 each, in documents of five."""
    rng = np.random.default_rng(seed)
    document = np.arange(2 * CONTEXTS) // SIZE
    truth = np.arange(2 * CONTEXTS) < CONTEXTS
    p = np.where(truth[::SIZE], tpr, tnr)
    if icc:
        p = rng.beta(p * (1 - icc) / icc, (1 - p) * (1 - icc) / icc, (LATENTS, len(p)))
    right = rng.random((LATENTS, 2 * CONTEXTS)) < np.broadcast_to(p, (LATENTS, len(p.T)))[:, document]
    block = np.broadcast_to(truth, right.shape)
    return block, right == block, np.ones_like(block), np.broadcast_to(document, right.shape)


def covered(interval: Interval, true: float) -> float:
    return float(np.mean((interval.low <= true) & (true <= interval.high)))


@pytest.mark.parametrize("icc", [0.0, 0.3])
@pytest.mark.parametrize(("tpr", "tnr"), [(0.55, 0.75), (0.85, 0.65)])
def test_rates_cover_the_truth(icc: float, tpr: float, tnr: float) -> None:
    truth, prediction, valid, cluster = simulated(icc, tpr, tnr, seed=int(1000 * tpr + icc * 10))
    found = rate_intervals(truth, prediction, valid, cluster)
    true = Interval(np.array(tpr), np.array(tnr), np.array((tpr + tnr) / 2))
    for interval, value in zip(found, true, strict=True):
        assert 0.90 <= covered(interval, float(value)) <= 0.985
    if icc:
        unclustered = rate_intervals(truth, prediction, valid, np.full_like(cluster, -1))
        for interval, value in zip(unclustered, true, strict=True):
            assert covered(interval, float(value)) < 0.88


@pytest.mark.parametrize("icc", [0.0, 0.3])
@pytest.mark.parametrize("area", [0.6, 0.9])
def test_areas_cover_the_truth(icc: float, area: float) -> None:
    rng = np.random.default_rng(int(100 * area + 10 * icc))
    n = 2 * CONTEXTS
    truth = np.broadcast_to(np.arange(n) < CONTEXTS, (LATENTS, n))
    document = np.broadcast_to(np.arange(n) // SIZE, truth.shape)
    shift = np.sqrt(2) * stats.norm.ppf(area)
    shared = rng.standard_normal((LATENTS, n // SIZE))[:, document[0]]
    evidence = shift * truth + np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.standard_normal(truth.shape)
    valid = np.ones_like(truth)
    assert 0.92 <= covered(areas.auroc(truth, evidence, valid, document), area) <= 0.985
    if icc:
        unclustered = areas.auroc(truth, evidence, valid, np.full_like(document, -1))
        assert covered(unclustered, area) < 0.90


def test_accuracy_covers_when_documents_are_hard_or_easy_as_a_whole() -> None:
    rng = np.random.default_rng(5)
    document = np.r_[np.arange(CONTEXTS) // SIZE, np.arange(CONTEXTS) // SIZE]
    truth = np.broadcast_to(np.arange(2 * CONTEXTS) < CONTEXTS, (LATENTS, 2 * CONTEXTS))
    easy = rng.beta(0.75 * 7 / 3, 0.25 * 7 / 3, (LATENTS, CONTEXTS // SIZE))
    prediction = (rng.random(truth.shape) < easy[:, document]) == truth
    cluster = np.broadcast_to(document, truth.shape)
    found = rate_intervals(truth, prediction, np.ones_like(truth), cluster)
    assert covered(found.balanced_accuracy, 0.75) >= 0.90
    apart = intervals.mover([found.tpr, found.tnr], [0.5, 0.5])  # as if TPR and TNR were independent
    assert covered(apart, 0.75) < 0.89


# --- nothing that does not matter matters ----------------------------------------------------------------


@modest
@given(blocks, st.randoms(use_true_random=False))
def test_order_of_columns_does_not_matter(block: Block, random: Any) -> None:
    columns = list(range(block.truth.shape[1]))
    random.shuffle(columns)
    expected, found = everything(block), everything(block.take(np.array(columns)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@modest
@given(blocks, blocks, st.integers(1, 40), st.booleans())
def test_padding_and_other_latents_change_no_digit(block: Block, other: Block, wide: int, nan: bool) -> None:
    expected = everything(block)
    width = max(block.truth.shape[1], other.truth.shape[1]) + wide
    rate_uses = slice(0, len(block.truth))
    both = []
    for mine, theirs in zip(block, other, strict=True):
        fill: Any = {"b": False, "f": np.nan if nan else 3.0, "i": -1}[mine.dtype.kind]
        rows = [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=fill) for a in (mine, theirs)]
        both.append(np.concatenate(rows))
    joined = Block(*both)
    found = everything(joined)
    for name, value in expected.items():
        if "base rate" not in name or "fpr" in name:  # `everything` spreads firing rates over the whole block
            np.testing.assert_array_equal(found[name][rate_uses], value, err_msg=name)


def test_chunks_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    block = random_block(3, latents=50, n=30)
    expected = everything(block)
    monkeypatch.setattr(clusters, "CHUNK", 64)
    for name, value in everything(block).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("latents", [0, 3])
@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("case", ["all padding", "no positives", "no negatives", "one cluster", "no evidence"])
def test_what_cannot_be_computed_is_nan(latents: int, n: int, case: str) -> None:
    block = random_block(9, max(latents, 1), max(n, 1))
    block = Block(*(a[:latents, :n] for a in block))._replace(valid=np.ones((latents, n), bool))
    change: dict[str, Any] = {
        "all padding": {"valid": np.zeros((latents, n), bool)},
        "no positives": {"truth": np.zeros((latents, n), bool)},
        "no negatives": {"truth": np.ones((latents, n), bool)},
        "one cluster": {"cluster": np.zeros((latents, n), int)},
        "no evidence": {"evidence": np.full((latents, n), np.nan)},
    }[case]
    found = everything(block._replace(**change))
    unknown = {
        "all padding": ["tau", "auroc: value", "tpr", "tnr", "f1", "interval of tnr: low"],
        "no positives": ["tau", "auroc: value", "tpr", "f1", "interval of tpr: low", "auroc: low"],
        "no negatives": ["tau", "auroc: value", "tnr", "fpr at base rate: value", "interval of tnr: high"],
        "one cluster": ["auroc: low", "interval of tpr: low", "interval of balanced_accuracy: high"],
        "no evidence": ["tau", "auroc: value", "auroc: high"],
    }[case]
    for name in unknown:
        assert np.isnan(found[name]).all(), name
    assert {len(value) for value in found.values()} == {latents}
    if case != "no evidence":
        assert found["unresolved at base rate"].all()


# --- at the base rate ------------------------------------------------------------------------------------


def at_base_rate(fpr: tuple[float, float], n: int, rate: float, tpr: float = 0.8) -> metrics.AtBaseRate:
    """n positives, n negatives in each of two strata with population shares .1 and .9; no clustering."""
    right = [np.arange(n) < round(tpr * n), *(np.arange(n) < round(f * n) for f in fpr)]
    truth = np.repeat([True, False, False], n)[None]
    stratum = np.repeat([-1, 0, 1], n)[None]
    every = np.ones_like(truth)
    return metrics.prevalence_weighted(
        truth,
        np.concatenate(right)[None],
        every,
        np.full(truth.shape, -1),
        stratum,
        np.array([[0.1, 0.9]]),
        np.array([rate]),
    )


def test_rates_are_weighted_back_to_the_population() -> None:
    found = at_base_rate(fpr=(0.5, 0.1), n=100, rate=0.02)
    fpr = 0.1 * 0.5 + 0.9 * 0.1
    precision = 0.02 * 0.8 / (0.02 * 0.8 + 0.98 * fpr)
    assert found.fpr.value[0] == pytest.approx(fpr)
    assert found.precision.value[0] == pytest.approx(precision)
    assert found.f1[0] == pytest.approx(stats.hmean([precision, 0.8]))
    assert found.fpr.low[0] < fpr < found.fpr.high[0]
    assert found.precision.low[0] < precision < found.precision.high[0]


@modest
@given(blocks, st.integers(0, 2**32))
def test_a_population_of_one_stratum_is_the_sample(block: Block, seed: int) -> None:
    b, latents = block, len(block.truth)
    share, stratum = np.tile([2.0, 0.0], (latents, 1)), np.zeros(b.truth.shape, int)
    found = metrics.prevalence_weighted(
        b.truth, b.prediction, b.valid, b.cluster, stratum, share, np.full(latents, 0.1)
    )
    rates = rate_intervals(b.truth, b.prediction, b.valid, b.cluster)
    for mine, theirs in (
        (found.tpr, rates.tpr),
        (found.fpr, Interval(1 - rates.tnr.value, 1 - rates.tnr.high, 1 - rates.tnr.low)),
        (found.balanced_accuracy, rates.balanced_accuracy),
    ):
        np.testing.assert_allclose(np.array(mine), np.array(theirs), atol=1e-9)
    weighted = areas.auroc(b.truth, b.evidence, b.valid, b.cluster, stratum=stratum, share=share)
    plain = areas.auroc(b.truth, b.evidence, b.valid, b.cluster)
    np.testing.assert_allclose(np.array(weighted), np.array(plain), atol=1e-9)


@modest
@given(blocks, st.integers(0, 2**32))
def test_area_of_the_population_is_the_weighted_one(block: Block, seed: int) -> None:
    rng = np.random.default_rng(seed)
    latents, n = block.truth.shape
    stratum, share = rng.integers(0, 3, (latents, n)), rng.random((latents, 3)) * rng.integers(0, 2, (latents, 3))
    found = areas.auroc(block.truth, block.evidence, block.valid, block.cluster, stratum=stratum, share=share).value
    for i, value in enumerate(found):
        v, t, h = block.valid[i], block.truth[i], stratum[i]
        sizes = np.bincount(h[v & ~t], minlength=3)
        used = share[i] > 0
        if not (v & t).any() or not used.any() or not sizes[used].all():
            assert np.isnan(value)
            continue
        keep = v & (t | used[h])
        weight = np.where(t, 1.0, (share[i] / np.maximum(sizes, 1))[h])[keep]
        assert value == pytest.approx(roc_auc_score(t[keep], block.evidence[i][keep], sample_weight=weight))


def test_few_firings_leave_precision_unresolved() -> None:
    rare, settled, frequent = (
        at_base_rate((0.0, 0.0), n=100, rate=0.001),  # no false positive in 200, and yet precision may be .03
        at_base_rate((0.5, 0.3), n=100, rate=0.001),  # certainly low
        at_base_rate((0.0, 0.0), n=100, rate=0.3),
    )
    assert rare.precision.value[0] == 1.0
    assert rare.precision.low[0] < 0.1
    assert rare.unresolved[0]
    assert not settled.unresolved[0]
    assert settled.precision.high[0] < 0.01
    assert not frequent.unresolved[0]
    blind = at_base_rate((0.1, 0.1), n=100, rate=0.05, tpr=0.0)
    assert blind.precision.value[0] == 0.0 == blind.precision.low[0]
    assert np.isfinite(blind.precision.high[0])


def test_precision_covers_the_truth() -> None:
    rng = np.random.default_rng(4)
    n, rate, tpr, fpr = 100, 0.1, 0.8, (0.3, 0.05)
    truth = np.broadcast_to(np.repeat([True, False, False], n), (LATENTS, 3 * n))
    prediction = rng.random(truth.shape) < np.repeat([tpr, *fpr], n)
    stratum = np.broadcast_to(np.repeat([0, 0, 1], n), truth.shape)
    found = metrics.prevalence_weighted(
        truth,
        prediction,
        np.ones_like(truth),
        np.full(truth.shape, -1),
        stratum,
        np.tile([0.2, 0.8], (LATENTS, 1)),
        np.full(LATENTS, rate),
    )
    true_fpr = 0.2 * fpr[0] + 0.8 * fpr[1]
    assert 0.92 <= covered(found.fpr, true_fpr) <= 0.985
    assert 0.92 <= covered(found.precision, rate * tpr / (rate * tpr + (1 - rate) * true_fpr)) <= 0.985


def test_a_stratum_nobody_sampled_leaves_the_rates_unknown() -> None:
    truth, every = np.array([[True, True, False, False]]), np.ones((1, 4), bool)
    own, stratum, rate = np.full((1, 4), -1), np.zeros((1, 4), int), np.array([0.1])
    known, unknown = (
        metrics.prevalence_weighted(truth, truth, every, own, stratum, np.array([share]), rate)
        for share in ([1.0, 0.0], [0.5, 0.5])
    )
    assert known.fpr.value[0] == 0.0
    assert np.isnan(unknown.fpr.value[0])
    assert np.isnan(unknown.precision.low[0])
    assert unknown.unresolved[0]


# --- chance ----------------------------------------------------------------------------------------------


@modest
@given(st.floats(0.01, 0.9))
def test_always_yes_gets_no_more_than_the_uninformed_value(rate: float) -> None:
    truth = np.arange(1000)[None] < 1000 * rate
    every = np.ones_like(truth)
    share = truth.mean(1)
    yes = metrics.confusion(truth, every, every)
    for metric in ("balanced_accuracy", "f1"):
        chance = metrics.uninformed(metric, share)
        np.testing.assert_allclose(metrics.corrected(getattr(yes, metric), chance), 0.0, atol=1e-12)
    assert metrics.corrected(np.array([1.0]), metrics.uninformed("auprc", share)) == 1.0
    assert np.isnan(metrics.corrected(yes.tpr, metrics.uninformed("tpr", share))).all()


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(InputError, match="balanced_acuracy"):
        metrics.uninformed("balanced_acuracy", np.array([0.1]))


# --- over latents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 6, 40, 41])
def test_median_interval_is_the_bootstraps(n: int) -> None:
    x = np.random.default_rng(n).standard_normal(n)
    found = resampling.median_interval(x, seed=1, resamples=20_000)
    reference = stats.bootstrap((x,), np.median, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2))
    assert found.value == np.median(x)
    assert found.n == n
    # Both are random; their quantiles agree to within a neighbouring pair of values.
    ordered = np.sort(x)
    middles = np.unique((ordered[:, None] + ordered) / 2)
    for mine, theirs in zip(found[1:3], reference.confidence_interval, strict=True):
        between = np.searchsorted(middles, sorted((mine, theirs)))
        assert between[1] - between[0] <= 0.02 * len(middles) + 1
        assert np.min(np.abs(middles - mine)) < 1e-9 or n > 6


def test_distribution_of_resampled_medians_is_exact() -> None:
    # All 4^4 resamples of four values, against the shortcut over order statistics.
    x = np.array([0.0, 1.0, 3.0, 7.0])
    exact = np.median(x[np.stack(np.meshgrid(*[range(4)] * 4)).reshape(4, -1)], axis=0)
    drawn = resampling.resampled_medians(x, np.random.default_rng(0), 100_000)
    values, counts = np.unique(exact, return_counts=True)
    found = [(drawn == v).mean() for v in values]
    np.testing.assert_allclose(found, counts / 256, atol=0.006)


def test_clusters_of_one_value_are_the_plain_bootstrap() -> None:
    x = np.random.default_rng(0).standard_normal(60)
    plain = resampling.median_interval(x, resamples=20_000)
    single = resampling.median_interval(x, np.arange(60), resamples=20_000)
    np.testing.assert_allclose(single[:3], plain[:3], atol=0.06)
    # Ten copies of each value are no new information if their cluster is known, and much if it is not.
    copies, names = np.repeat(x, 10), np.repeat(np.arange(60), 10)
    known, unknown = resampling.median_interval(copies, names), resampling.median_interval(copies)
    assert unknown.high - unknown.low < 0.6 * (known.high - known.low)
    np.testing.assert_allclose(known[:3], plain[:3], atol=0.1)


@modest
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.booleans(), st.randoms(use_true_random=False))
def test_median_interval_ignores_order_and_failures(numbers: list[int], grouped: bool, random: Any) -> None:
    rows = [(float(v), v * 7 % 3) for v in numbers] + [(np.nan, 1)]
    expected, found = (
        resampling.median_interval(
            np.array([v for v, _ in order]), np.array([c for _, c in order]) if grouped else None, resamples=300
        )
        for order in (rows, random.sample(rows, len(rows)))
    )
    np.testing.assert_array_equal(found, expected)
    assert found.n == len(numbers)
    assert np.isnan(found.low) or found.low <= found.value <= found.high


def test_nothing_to_resample_has_no_interval() -> None:
    assert np.isnan(resampling.median_interval(np.array([0.3]))[1:3]).all()
    assert np.isnan(resampling.median_interval(np.arange(9.0), np.zeros(9))[1:3]).all()
    assert resampling.median_interval(np.array([np.nan])).n == 0


def test_gain_counts_failures_as_chance_or_leaves_them_out() -> None:
    a = np.array([0.9, 0.8, np.nan, 0.7, np.nan, 0.9])
    b = np.array([0.6, 0.6, 0.6, np.nan, np.nan, 0.7])
    scored = resampling.paired_median_gain(a, b)
    every = resampling.paired_median_gain(a, b, failures="chance", chance=0.5)
    assert (scored.value, scored.n) == (pytest.approx(0.2), 3)
    assert (every.value, every.n) == (pytest.approx(0.2), 6)  # .3 .2 -.1 .2 0 .2
    assert every.low < 0.1
    assert scored.low <= scored.value <= scored.high
