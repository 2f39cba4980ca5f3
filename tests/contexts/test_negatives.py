from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windows_world import DEAD, LENGTH, MASKED_ONLY, SAE, HashVectors, World, make_workspace, make_world, wide

from latentgloss import schema
from latentgloss.config.settings import NegativeSettings
from latentgloss.contexts import hard_negatives
from latentgloss.contexts.hard_negatives import NOBODY, POSITIVES, Firing, Neighbourhoods, nearest_latents
from latentgloss.contexts.layout import Layout, firing_documents
from latentgloss.contexts.negatives import Strata, sample_block
from latentgloss.contexts.stages import sample_negatives
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from latentgloss.pipeline.stage_run import Outcome

SEEDS = st.integers(0, 5)
SMALL = {"explain": 20, "select": 6, "test": 12}
BOTH, RANDOM, ALL = ("same_document", "random"), ("random",), schema.STRATA


@lru_cache
def world_of(seed: int) -> World:
    return make_world(seed)


def sampled(world: World, latents: list[int] | None = None, **changes: object) -> dict[str, pl.DataFrame]:
    options = NegativeSettings.model_validate({**SMALL, **changes})
    cells, windows = world.cells(latents), world.windows
    layout = Layout.of(windows)
    neighbours, firing, nearest = None, None, None
    if "neighbour" in options.strata:
        neighbours = world.neighbours[:, :10]
        wanted = np.unique(neighbours[cells.latents]).astype(np.uint32)
        firing = Firing.of(world.source, np.array_split(wanted, 3), options.seed, Path())
    if "similar" in options.strata:
        nearest = Neighbourhoods(layout, HashVectors(world))
    listed = Strata(options, world.corpus, layout, neighbours, firing, nearest).listed(cells)
    frames = sample_block(cells, layout, firing_documents(cells, windows, world.corpus), options, listed)
    return {
        "negatives": schema.NEGATIVES.conform(frames["negatives"]),
        "strata": schema.STRATA_SHARES.conform(frames["strata"]),
    }


def test_directions_at_right_angles_are_no_neighbours() -> None:
    ids, cosines = [[1, 2, 0], [2, 0], [], list(range(12))], [[0.5, 0.1, 0.0], [0.0, -0.1], [], [0.9] * 12]
    found = nearest_latents(pl.DataFrame({"neighbours": ids, "neighbour_cosines": cosines}))
    assert [[n for n in row if n != NOBODY] for row in found.tolist()] == [[1, 2], [], [], list(range(10))]


def random_order(seed: int, latent: int, window: int) -> tuple[int, int]:
    return int(counter_hash(seed, np.array([latent]), np.array([window]))[0]) >> 16, window


@lru_cache
def deciles(seed: int, latent: int, split: int) -> dict[int, int]:
    """Decile of every window of a split in which a latent fires."""
    world = world_of(seed)
    taken, splits = world.windows.usable, world.splits()
    peaks = {w: world.peak(latent, w) for w in range(len(splits)) if taken[w] and splits[w] == split}
    mine = sorted((w for w in peaks if peaks[w] > 0), key=lambda w: (peaks[w], random_order(0, latent, w)))
    return {w: math.ceil(10 * r / len(mine)) if len(mine) >= 10 else 0 for r, w in enumerate(mine, start=1)}


@lru_cache
def nearby(seed: int, latent: int, split: int, nearest: int) -> set[int]:
    """Stratum `similar`, from the definition."""
    world = world_of(seed)
    fires = [w for w in deciles(seed, latent, split) if len(world.documents(w)) == 1]
    positives = sorted(fires, key=lambda w: random_order(0, latent, w))[:POSITIVES]
    if not positives:
        return set()
    vectors, splits = HashVectors(world), world.splits()
    mean = vectors.get(np.array(positives)).astype(np.float64).sum(axis=0)
    silent = [w for w in np.flatnonzero(world.windows.usable) if splits[w] == split and world.zero(latent, w)]
    cosines = [
        float((v * (mean / np.sqrt((mean * mean).sum()))).sum()) for v in vectors.get(np.array(silent, dtype=int))
    ]
    ties = [int(counter_hash(0, np.array([latent]), np.array([w]))[0]) for w in silent]
    return {w for _, _, w in sorted(zip((-c for c in cosines), ties, silent, strict=True))[:nearest]}


@lru_cache
def populations(seed: int, strata: tuple[str, ...], nearest: int = 200) -> dict[tuple[int, str, str], set[int]]:
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
        near = [nearby(seed, latent, s, nearest) if "similar" in strata else set() for s in range(3)]
        for split in schema.SPLITS:
            for stratum in strata:
                found[latent, split, stratum] = set()
        for w, split in enumerate(splits):
            if usable[w] and len(documents[w]) == 1 and world.zero(latent, w):
                fits = {
                    "similar": w in near[split],
                    "neighbour": any(world.peak(other, w) > 0 for other in world.neighbours[latent, :10]),
                    "same_document": documents[w] <= where,
                    "random": True,
                }
                kind = next((name for name in schema.STRATA if name in strata and fits[name]), None)
                if kind is not None:
                    found[latent, schema.SPLITS[split], kind].add(w)
    return found


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.sampled_from([BOTH, RANDOM, ("same_document",), ALL, ("neighbour", "random"), ("similar",)]))
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
        for w, document in sample.select("context", "document").iter_rows():
            assert {document} == world.documents(w)
    texts = world.texts()
    for _, group in frames["negatives"].group_by("latent"):
        assert len({texts[w] for w in group["context"]}) == group.height


@settings(max_examples=5, deadline=None)
@given(SEEDS, st.sampled_from([BOTH, ALL]), st.sampled_from([3, 40, 1000]))
def test_a_sample_as_large_as_the_population_is_the_population(
    seed: int, strata: tuple[str, ...], nearest: int
) -> None:
    frames = sampled(world_of(seed), explain=1000, select=1000, test=1000, strata=strata, nearest=nearest)
    found = {key: set(group["context"]) for key, group in frames["negatives"].group_by("latent", "split", "stratum")}
    assert found == {key: windows for key, windows in populations(seed, strata, nearest).items() if windows}


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from(schema.SPLITS), st.sampled_from([BOTH, ALL]))
def test_more_negatives_only_append(seed: int, split: str, strata: tuple[str, ...]) -> None:
    small = sampled(world_of(seed), strata=strata)["negatives"]
    large = sampled(world_of(seed), **{"strata": strata, split: SMALL[split] + 15})["negatives"]
    assert large.filter((pl.col("split") != split) | (pl.col("order") < SMALL[split])).equals(small)
    assert large.height > small.height


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sets(st.integers(0, 13), min_size=1), st.sampled_from([BOTH, ALL]), st.sampled_from([1, 500, 2**24]))
def test_a_latents_rows_do_not_depend_on_the_other_latents(
    seed: int, latents: set[int], strata: tuple[str, ...], at_once: int
) -> None:
    """Nor on how many are compared with all windows at once."""
    together = sampled(world_of(seed), strata=strata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_negatives, "_SIMILARITIES", at_once)
        patch.setattr(hard_negatives, "_ROWS", 1 + at_once % 7)
        alone = sampled(world_of(seed), sorted(latents), strata=strata)
    for name in together:
        assert together[name].filter(pl.col("latent").is_in(list(latents))).equals(alone[name])


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.integers(1, 60))
def test_neighbours_fire_in_their_stratum_and_their_deciles_take_turns(seed: int, size: int) -> None:
    world = world_of(seed)
    frames = sampled(world, strata=("neighbour", "random"), explain=size, select=size, test=size)
    drawn = frames["negatives"].filter(stratum="neighbour")
    assert drawn.height > 20
    everything = populations(seed, ("neighbour", "random"))
    for (latent, split), rows in drawn.group_by("latent", "split"):

        def decile(w: int, latent: int = latent, split: str = split) -> int:
            known = (deciles(seed, int(other), schema.SPLITS.index(split)) for other in world.neighbours[latent, :10])
            return next(found[w] for found in known if w in found)

        available = Counter(decile(w) for w in everything[latent, split, "neighbour"])
        taken = Counter(decile(w) for w in rows["context"])
        most = max(taken.values())
        assert all(taken[d] >= min(available[d], most - 1) for d in available)


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from(schema.SPLITS))
def test_what_is_similar_in_a_split_depends_on_that_split_alone(seed: int, split: str) -> None:
    world, number = world_of(seed), schema.SPLITS.index(split)
    before = sampled(world, strata=("similar",), nearest=10)["negatives"].filter(split=split)
    other = np.repeat(np.array(world.splits()) != number, LENGTH)
    activations = world.activations.copy()
    activations[other] = np.roll(activations[other], 16 * 7, axis=0)
    changed = World(world.corpus, world.masked, activations)
    after = sampled(changed, strata=("similar",), nearest=10)["negatives"].filter(split=split)
    known = set(before["latent"]) & set(after["latent"])
    assert len(known) > 5
    both = (frame.filter(pl.col("latent").is_in(known)) for frame in (before, after))
    assert next(both).equals(next(both))


def test_the_seed_decides_the_sample() -> None:
    first, again, other = (sampled(world_of(1), seed=seed)["negatives"] for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_dead_latents_leave_empty_tables() -> None:
    assert all(frame.is_empty() for frame in sampled(world_of(0), [DEAD, MASKED_ONLY]).values())


def materialised(folder: Path, latents: object, workers: int = 2, **changes: object) -> Outcome:
    tables = {"contexts": {"length": LENGTH}, "negatives": {**SMALL, **changes}, "machine": {"workers": workers}}
    world = wide(world_of(0))
    workspace = make_workspace(folder, world, latents, tables)
    workspace.negatives_embedder = lambda: {"name": "hash"}
    workspace.negative_vectors = lambda resolved: HashVectors(world)
    (outcome,) = workspace.materialise("sampled_negatives", [SAE], sample_negatives)
    assert outcome.error is None, outcome.error
    assert outcome.version is not None
    return outcome


@pytest.mark.parametrize("strata", [("neighbour", "random"), ALL])
def test_the_stage_finds_neighbours_in_other_blocks(tmp_path: Path, strata: tuple[str, ...]) -> None:
    outcome = materialised(tmp_path, [2, 4, 5, 261, 262], strata=strata)
    expected = sampled(wide(world_of(0)), [2, 4, 5, 261, 262], strata=strata)
    assert expected["negatives"].equals(outcome.version.read(schema.NEGATIVES))
    assert expected["strata"].equals(outcome.version.read(schema.STRATA_SHARES))
    assert outcome.facts.get("embedder") == ({"name": "hash"} if "similar" in strata else None)
    alone = materialised(tmp_path / "alone", [2, 4, 5, 261, 262], workers=1, strata=strata)
    assert alone.version.manifest.data_version == outcome.version.manifest.data_version
    again = materialised(tmp_path, [2, 4, 5, 261, 262, 263], strata=strata)
    assert (again.blocks_computed, again.blocks_reused) == (1, 1)
    assert list(tmp_path.rglob("tmp*")) == []


def test_what_decides_a_stratum_is_in_its_recipe_only_where_it_is_asked_for(tmp_path: Path) -> None:
    recipes = {}
    for strata in (BOTH, ("neighbour", "random"), ("similar", "random")):
        recipe = materialised(tmp_path, [4], strata=strata).version.manifest.recipe
        cache = recipe["inputs"]["activation_cache"]
        recipes[strata[0]] = ("embedder" in recipe["external"], cache)
    assert [embedder for embedder, _ in recipes.values()] == [False, False, True]
    assert recipes["same_document"][1] == recipes["similar"][1] != recipes["neighbour"][1]


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
