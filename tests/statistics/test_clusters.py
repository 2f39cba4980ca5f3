"""Documents and prompts as clusters at once: what prompts may change, and what they may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentgloss.lineage.score_checks import score_checks
from latentgloss.scores import score_rows
from latentgloss.statistics import areas, intervals, metrics
from latentgloss.statistics.clusters import combined
from latentgloss.statistics.intervals import Interval
from latentgloss.statistics.rates import rate_intervals

modest = settings(max_examples=60, deadline=None)
Arrays = dict[str, np.ndarray]


def random_block(seed: int, latents: int, n: int) -> Arrays:
    """Ties, missing judgements, documents and prompts that mix classes, some judgements alone."""
    rng = np.random.default_rng(seed)
    shape = (latents, n)
    truth = rng.random(shape) < rng.random((latents, 1))
    return {
        "truth": truth,
        "evidence": (rng.integers(0, 6, shape) + truth * rng.integers(0, 3, (latents, 1))) / 4,
        "prediction": rng.random(shape) < np.where(truth, 0.7, 0.2),
        "valid": rng.random(shape) < 0.9,
        "cluster": rng.integers(-1, max(1, n // 2), shape),
        "stratum": rng.integers(0, 2, shape),
        "prompt": rng.integers(-1, max(1, n // 4), shape),
    }


blocks = st.builds(random_block, st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 40))


def everything(block: Arrays, prompt: np.ndarray | None) -> Arrays:
    """Every end of every interval."""
    b = {name: block[name] for name in ("truth", "valid", "cluster")}
    share, rate = np.tile([0.3, 0.7], (len(b["truth"]), 1)), np.full(len(b["truth"]), 0.1)
    population: dict[str, Any] = {"stratum": block["stratum"], "share": share, "prompt": prompt}
    said, evidence = block["prediction"], block["evidence"]
    at_base_rate = metrics.prevalence_weighted(**b, **population, prediction=said, firing_rate=rate)
    found = {
        **rate_intervals(**b, prediction=said, prompt=prompt)._asdict(),
        "auroc": areas.auroc(**b, evidence=evidence, prompt=prompt),
        "auroc of the population": areas.auroc(**b, evidence=evidence, **population),
        **{f"population {name}": value for name, value in at_base_rate._asdict().items()},
    }
    return {
        f"{name} {end}": column
        for name, value in found.items()
        if isinstance(value, Interval)
        for end, column in value._asdict().items()
    }


def assert_close(found: Arrays, expected: Arrays) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@modest
@given(blocks, st.booleans())
def test_judged_alone_is_as_without_prompts_to_the_last_digit(block: Arrays, numbered: bool) -> None:
    alone = np.full(block["truth"].shape, -1)
    if numbered:  # prompts that hold one judgement
        alone = np.random.default_rng(0).permuted(np.arange(alone.size).reshape(alone.shape), axis=1)
    found = everything(block, alone)
    for name, value in everything(block, None).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@modest
@given(blocks)
def test_prompts_that_are_the_documents_add_nothing(block: Arrays) -> None:
    assert_close(everything(block, block["cluster"]), everything(block, None))


@modest
@given(blocks, st.integers(0, 2**32))
def test_names_of_prompts_and_order_do_not_matter(block: Arrays, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = rng.permutation(2**58 + np.arange(block["truth"].shape[1] + 1))
    renamed = np.where(block["prompt"] < 0, -1, names[block["prompt"]])
    expected = everything(block, block["prompt"])
    assert_close(everything(block, renamed), expected)
    columns = rng.permutation(block["truth"].shape[1])
    moved = {name: values[:, columns] for name, values in block.items()}
    assert_close(everything(moved, moved["prompt"]), expected)


@modest
@given(blocks, blocks, st.integers(0, 20), st.booleans())
def test_other_latents_and_padding_change_no_digit(block: Arrays, other: Arrays, wide: int, alone: bool) -> None:
    """Nor does it matter to a latent that was judged alone that another was not."""
    prompt = None if alone else block["prompt"]
    expected = everything(block, prompt)
    block = {**block, "prompt": np.full(block["truth"].shape, -1)} if alone else block
    width = max(block["truth"].shape[1], other["truth"].shape[1]) + wide
    joined = {
        name: np.concatenate([np.pad(a[name], ((0, 0), (0, width - a[name].shape[1]))) for a in (block, other)])
        for name in block
    }
    found = everything(joined, joined["prompt"])
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name][: len(value)], value, err_msg=name)


def test_area_has_the_variances_of_documents_and_prompts_less_that_of_both() -> None:
    rng = np.random.default_rng(3)
    n = 120
    truth, document, prompt = np.arange(n) < n // 2, rng.permutation(n) // 2, rng.permutation(n) // 5
    evidence = truth + rng.standard_normal(n) + rng.standard_normal(n)[prompt] * np.where(truth, 1, -1)
    order = (evidence[truth][:, None] > evidence[~truth]).astype(float)
    area, moves = order.mean(), np.empty(n)
    moves[truth], moves[~truth] = order.mean(1) - area, order.mean(0) - area
    moves /= n / 2

    def variance(cluster: np.ndarray) -> float:
        names = np.unique(cluster)
        of = [np.array([moves[(cluster == c) & cls].sum() for c in names]) for cls in (truth, ~truth)]
        k = [len(np.unique(cluster[cls])) for cls in (truth, ~truth)]
        own = sum(m / (m - 1) * np.sum(a**2) for m, a in zip(k, of, strict=True))
        return float(own + 2 * len(names) / (len(names) - 1) * np.sum(of[0] * of[1]))

    v = [variance(cluster) for cluster in (document, prompt, document * n + prompt)]
    fewest = min(len(np.unique(prompt[cls])) for cls in (truth, ~truth))
    assert v[1] > 1.2 * v[2]
    half = stats.t.ppf(0.975, fewest - 1) * np.sqrt(v[0] + v[1] - v[2]) / (area * (1 - area))
    expected = stats.logistic.cdf(stats.logistic.ppf(area) + half * np.array([-1, 1]))
    found = areas.auroc(truth[None], evidence[None], np.ones((1, n), bool), document[None], prompt=prompt[None])
    np.testing.assert_allclose([found.low[0], found.high[0]], expected)


def test_prompts_that_hold_whole_documents_decide_alone() -> None:
    block = random_block(5, latents=20, n=60)
    document = np.tile(np.arange(60) // 2, (20, 1))
    found, alone = ({**block, "cluster": c} for c in (document, document // 2))
    both = everything(found, document // 2)
    one = everything(alone, None)
    for name in ("auroc low", "auroc high", "auroc of the population low"):
        np.testing.assert_allclose(both[name], one[name], err_msg=name)


def test_answers_that_all_agree_are_as_many_as_the_larger_clusters() -> None:
    every, rng = np.ones((1, 50), bool), np.random.default_rng(0)
    document, prompt = (rng.permutation(50)[None] // size for size in (2, 5))
    found = rate_intervals(every, every, every, document, prompt=prompt).tpr
    expected = intervals.wilson(np.ones(1), np.array([10]))  # ten prompts, and nothing smaller beside them
    np.testing.assert_allclose(np.array(found), np.array(expected))


def test_a_variance_is_never_less_than_the_smaller_one_way() -> None:
    assert combined([np.array([1.0, 1.0]), np.array([0.5, 2.0]), np.array([1.4, 0.9])]).tolist() == [0.5, 2.1]


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auroc"])
def test_scores_and_their_verification_count_prompts(metric: str) -> None:
    rng = np.random.default_rng(1)
    n = 80
    truth = np.arange(n) < n // 2
    prompt = rng.permutation(n) // 5
    evidence = truth + rng.standard_normal(n) + 2 * rng.standard_normal(n)[prompt] * np.where(truth, 1, -1)
    answered = pl.DataFrame(
        {
            "latent": 7,
            "arm": "random",
            "split": "test",
            "truth": truth,
            "evidence": evidence.astype(np.float32),
            "prediction": evidence > 0.5,
            "document": np.arange(n) // 2,
            "decile": truth.astype(np.uint8),
            "prompt": prompt,
        },
        schema_overrides={"latent": pl.UInt32, "prompt": pl.Int64, "document": pl.UInt32},
    )
    key = {"explainer": "llm", "scorer": "detection", "judge": "m", "embedder": "", "profile": "default"}

    def scored(rows: pl.DataFrame) -> pl.DataFrame:
        return score_rows.scores_of_arm(rows, pl.Series([7], dtype=pl.UInt32), "random", metric, key)

    lost = answered.with_columns(prompt=pl.lit(None, dtype=pl.Int64))
    together, alone = scored(answered), scored(lost)
    assert together["score"].item() == alone["score"].item()
    width, narrow = ((row["ci_high"] - row["ci_low"]).item() for row in (together, alone))
    assert width > 1.2 * narrow
    for rows, holds in ((answered, True), (lost, False)):
        table = rows.rename({"arm": "negatives"}).with_columns(judge=pl.lit("m"), embedder=pl.lit(""))
        (check,) = score_checks(together, table, None, None)
        assert check.ok is holds, str(check)
