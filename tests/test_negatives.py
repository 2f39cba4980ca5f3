from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windows_world import DEAD, LENGTH, MASKED_ONLY, SAE, World, make_workspace, make_world, wide

from latentgloss import schema
from latentgloss.hashing import counter_hash
from latentgloss.negatives import Layout, firing_documents, permuted, sample_block, sample_negatives
from latentgloss.settings import NegativeSettings

if TYPE_CHECKING:
    from pathlib import Path

    from latentgloss.work import Outcome

SEEDS = st.integers(0, 5)
SMALL = {"explain": 20, "select": 6, "test": 12}
BOTH, RANDOM = ("same_document", "random"), ("random",)


@lru_cache
def world_of(seed: int) -> World:
    return make_world(seed)


def sampled(world: World, latents: list[int] | None = None, **changes: object) -> dict[str, pl.DataFrame]:
    options = NegativeSettings.model_validate({**SMALL, **changes})
    cells, windows = world.cells(latents), world.windows
    frames = sample_block(cells, Layout.of(windows), firing_documents(cells, windows, world.corpus), options)
    return {
        "negatives": schema.NEGATIVES.conform(frames["negatives"]),
        "strata": schema.STRATA_SHARES.conform(frames["strata"]),
    }


@lru_cache
def populations(seed: int, strata: tuple[str, ...]) -> dict[tuple[int, str, str], set[int]]:
    """Windows of each (latent, split, stratum), window by window from the definitions."""
    world = world_of(seed)
    splits, usable = world.splits(), world.windows.usable
    documents = [world.documents(w) for w in range(len(splits))]
    found: dict[tuple[int, str, str], set[int]] = {}
    for latent in range(world.activations.shape[1]):
        fires = np.flatnonzero((world.activations[:, latent] > 0) & ~world.masked)
        if not len(fires):
            continue
        where = set(world.corpus.document_of_position(fires).tolist())
        for split in schema.SPLITS:
            for stratum in strata:
                found[latent, split, stratum] = set()
        for w, split in enumerate(splits):
            if usable[w] and world.zero(latent, w):
                same = len(documents[w]) == 1 and documents[w] <= where
                kind = "same_document" if same and "same_document" in strata else "random"
                if kind in strata:
                    found[latent, schema.SPLITS[split], kind].add(w)
    return found


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.sampled_from([BOTH, RANDOM, ("same_document",)]))
def test_samples_and_populations_agree_with_a_loop_over_windows(seed: int, strata: tuple[str, ...]) -> None:
    world, expected = world_of(seed), populations(seed, strata)
    frames = sampled(world, strata=strata)
    shares = {(r["latent"], r["split"], r["stratum"]): r for r in frames["strata"].iter_rows(named=True)}
    assert shares.keys() == expected.keys()  # every latent that fires at all, and no other
    assert {latent for latent, *_ in expected}.isdisjoint({DEAD, MASKED_ONLY})
    samples = dict(frames["negatives"].group_by("latent", "split", "stratum", maintain_order=True))
    everything = populations(seed, RANDOM)
    for (latent, split, stratum), windows in expected.items():
        row = shares[latent, split, stratum]
        silent = len(everything[latent, split, "random"])
        assert row["population"] == len(windows)
        assert row["share"] == (len(windows) / silent if silent else 0.0)
        assert row["sampled"] == min(len(windows), SMALL[split])
        if not row["sampled"]:
            assert (latent, split, stratum) not in samples
            continue
        sample = samples[latent, split, stratum]
        chosen = sample["context"].to_list()
        assert len(set(chosen)) == len(chosen) == row["sampled"]
        assert set(chosen) <= windows  # zero everywhere, of this split, disjoint from the other stratum
        assert sample["order"].to_list() == list(range(len(chosen)))
        for w, document, n in sample.select("context", "document", "n_documents").iter_rows():
            assert n == len(world.documents(w))
            assert document in world.documents(w)
            middle = int(world.corpus.document_of_position(np.array([w * LENGTH + LENGTH // 2]))[0])
            assert document == middle or middle == -1
    texts = world.texts()
    for _, group in frames["negatives"].group_by("latent"):
        assert len({texts[w] for w in group["context"]}) == group.height


@settings(max_examples=5, deadline=None)
@given(SEEDS)
def test_a_sample_as_large_as_the_population_is_the_population(seed: int) -> None:
    frames = sampled(world_of(seed), explain=1000, select=1000, test=1000)
    found = {key: set(group["context"]) for key, group in frames["negatives"].group_by("latent", "split", "stratum")}
    assert found == {key: windows for key, windows in populations(seed, BOTH).items() if windows}


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from(schema.SPLITS))
def test_more_negatives_only_append(seed: int, split: str) -> None:
    small = sampled(world_of(seed))["negatives"]
    large = sampled(world_of(seed), **{split: SMALL[split] + 15})["negatives"]
    assert large.filter((pl.col("split") != split) | (pl.col("order") < SMALL[split])).equals(small)
    assert large.height > small.height


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sets(st.integers(0, 13), min_size=1))
def test_a_latents_rows_do_not_depend_on_the_other_latents(seed: int, latents: set[int]) -> None:
    together, alone = sampled(world_of(seed)), sampled(world_of(seed), sorted(latents))
    for name in together:
        assert together[name].filter(pl.col("latent").is_in(list(latents))).equals(alone[name])


def test_the_seed_decides_the_sample() -> None:
    first, again, other = (sampled(world_of(1), seed=seed)["negatives"] for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_dead_latents_leave_empty_tables() -> None:
    assert all(frame.is_empty() for frame in sampled(world_of(0), [DEAD, MASKED_ONLY]).values())


def materialised(folder: Path, latents: object, **changes: object) -> Outcome:
    tables = {"contexts": {"length": LENGTH}, "negatives": {**SMALL, **changes}}
    workspace = make_workspace(folder, wide(world_of(0)), latents, tables)
    (outcome,) = workspace.materialise("sampled_negatives", [SAE], sample_negatives)
    assert outcome.error is None, outcome.error
    assert outcome.version is not None
    return outcome


def test_the_stage_writes_what_the_functions_return(tmp_path: Path) -> None:
    outcome = materialised(tmp_path, "all")
    for name, table in (("negatives", schema.NEGATIVES), ("strata", schema.STRATA_SHARES)):
        assert sampled(wide(world_of(0)))[name].equals(outcome.version.read(table))  # in two blocks or in one
    strata = outcome.version.read(schema.STRATA_SHARES)
    assert outcome.facts["latents"] == strata["latent"].n_unique() == 24
    assert outcome.facts["negatives"] == dict(strata.group_by("stratum").agg(pl.col("sampled").sum()).iter_rows())
    short = sum(row["sampled"] < SMALL[row["split"]] for row in strata.iter_rows(named=True))
    assert sum(outcome.facts["samples_short"].values()) == short > 0


def test_one_more_latent_computes_only_its_block(tmp_path: Path) -> None:
    first, second = materialised(tmp_path, [4, 5, 261]), materialised(tmp_path, [4, 5, 261, 262])
    assert (first.blocks_computed, second.blocks_computed, second.blocks_reused) == (2, 1, 1)


def test_a_setting_of_one_split_leaves_the_content_of_the_others(tmp_path: Path) -> None:
    before, after = materialised(tmp_path, "all"), materialised(tmp_path, "all", test=15)
    for part in ("explain", "select"):
        assert before.version.content((part,)) == after.version.content((part,))
    assert before.version.content(("test",)) != after.version.content(("test",))


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
