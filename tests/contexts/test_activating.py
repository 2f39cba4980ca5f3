from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windows_world import DEAD, DENSE, LENGTH, LOCAL, MASKED_ONLY, RARE, SAE, World, make_workspace, make_world, wide

from latentgloss import schema
from latentgloss.config.entries import LatentRange, LatentSample, SaeSpec
from latentgloss.config.settings import ContextSettings
from latentgloss.contexts.activating import draw, sample_block
from latentgloss.contexts.latent_sample import latents_in_turn, selected_latents
from latentgloss.contexts.population import Population
from latentgloss.contexts.stages import sample_contexts
from latentgloss.contexts.windows import Windows
from latentgloss.errors import CorpusError, InputError, SettingsError
from latentgloss.machine import sorting
from latentgloss.schema import GRAM
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from pathlib import Path

    from latentgloss.pipeline.stage_run import Outcome

SEEDS = st.integers(0, 5)
SAMPLERS = ["quantile", "top", "random", "mixed", "importance"]
SMALL = {"length": LENGTH, "min_explain": 8, "min_test": 12, "min_test_documents": 5}


@lru_cache
def world_of(seed: int) -> World:
    return make_world(seed)


def sampled(world: World, latents: list[int] | None = None, **changes: object) -> dict[str, pl.DataFrame]:
    options = ContextSettings.model_validate({**SMALL, **changes})
    frames = sample_block(world.cells(latents), world.windows, options)
    return {
        "eligibility": schema.ELIGIBILITY.conform(frames["eligibility"]),
        "contexts": schema.CONTEXTS.conform(frames["contexts"]),
    }


def usable(world: World) -> list[int]:
    """Windows of the population, by the definition: of one document, not shared, one of each text (whichever it is)."""
    texts, windows = world.texts(), world.windows
    taken = [w for w in range(len(texts)) if windows.usable[w]]
    assert all(not world.shared(w) and len(world.documents(w)) == 1 for w in taken)
    unshared = {texts[w] for w in range(len(texts)) if not world.shared(w) and len(world.documents(w)) == 1}
    assert sorted(texts[w] for w in taken) == sorted(unshared)
    return taken


@settings(max_examples=6, deadline=None)
@given(SEEDS)
def test_population_and_deciles_agree_with_a_loop_over_windows(seed: int) -> None:
    world = world_of(seed)
    splits, taken = world.splits(), usable(world)
    cells = world.cells()
    frame = Population.of(cells, world.windows, seed=3).frame()
    found = {
        (row, int(cells.window[cell])): (decile, maximum)
        for row, cell, decile, maximum in frame.select("row", "cell", "decile", "maximum").iter_rows()
    }
    expected = {}
    for latent in range(len(cells.latents)):
        for split in range(3):
            peaks = {w: world.peak(latent, w) for w in taken if splits[w] == split}
            mine = [w for w in peaks if peaks[w] > 0]
            tie = {w: int(counter_hash(3, np.array([latent]), np.array([w]))[0]) for w in mine}
            mine.sort(key=lambda w: (peaks[w], tie[w]))
            for rank, w in enumerate(mine, start=1):
                decile = math.ceil(10 * rank / len(mine)) if len(mine) >= 10 else 0
                expected[latent, w] = (decile, peaks[w])
    assert found == expected


@settings(max_examples=6, deadline=None)
@given(SEEDS)
def test_eligibility_has_a_row_for_every_latent_with_the_number_that_decided(seed: int) -> None:
    world = world_of(seed)
    splits, taken = world.splits(), usable(world)
    all_windows = range(len(splits))
    table = sampled(world)["eligibility"]
    assert table["latent"].to_list() == list(range(world.activations.shape[1]))
    for row in table.iter_rows(named=True):
        latent = row["latent"]
        active = [w for w in all_windows if world.peak(latent, w) > 0]
        kept = [w for w in taken if world.peak(latent, w) > 0]
        counts = [sum(splits[w] == s for w in kept) for s in range(3)]
        assert [row[f"n_{s}"] for s in schema.SPLITS] == counts
        several = [w for w in active if len(world.documents(w)) != 1]
        shared = [w for w in active if world.shared(w) and w not in several]
        assert row["n_dropped_several"] == len(several)
        assert row["n_dropped_shared"] == len(shared)
        assert row["n_dropped_identical"] == len(active) - len(kept) - len(several) - len(shared)
        n_test = sum(splits[w] == 2 for w in taken)
        assert row["firing_rate"] == counts[2] / n_test
        silent = sum(splits[w] == 2 and world.zero(latent, w) for w in taken)
        documents = set().union(*(world.documents(w) for w in kept if splits[w] == 2))
        assert row["n_test_documents"] == len(documents)
        status, number = (
            ("dead", 0)
            if not active
            else ("rare", counts[0])
            if counts[0] < 8
            else ("rare", counts[2])
            if counts[2] < 12
            else ("dense", silent)
            if silent < 12
            else ("one_document", len(documents))
            if len(documents) < 5
            else ("eligible", None)
        )
        assert row["status"] == status
        assert (row["reason"] == "") == (status == "eligible")
        assert number is None or str(number) in row["reason"].split()


def test_the_world_has_latents_of_every_status() -> None:
    status = dict(sampled(world_of(0))["eligibility"].select("latent", "status").iter_rows())
    assert status[DEAD] == status[MASKED_ONLY] == "dead"  # a masked position never makes a window activating
    assert status[DENSE] == "dense"
    assert (status[LOCAL], status[RARE]) == ("one_document", "rare")
    assert list(status.values()).count("eligible") == len(status) - 5


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from(SAMPLERS))
def test_a_sample_leaks_nothing_and_repeats_nothing(seed: int, sampler: str) -> None:
    world = world_of(seed)
    texts, splits = world.texts(), world.splits()
    frames = sampled(world, sampler=sampler)
    contexts = frames["contexts"]
    eligible = frames["eligibility"].filter(status="eligible")["latent"]
    assert contexts.height
    assert set(contexts["latent"]) == set(eligible)
    shown = contexts.filter(split="explain")["context"].unique().to_list()
    grams = {texts[w][i : i + GRAM] for w in shown for i in range(LENGTH - GRAM + 1)}
    for row in contexts.iter_rows(named=True):
        w = row["context"]
        assert schema.SPLITS[splits[w]] == row["split"]
        if row["split"] != "explain":
            assert not any(texts[w][i : i + GRAM] in grams for i in range(LENGTH - GRAM + 1))
        window = world.activations[w * LENGTH : (w + 1) * LENGTH, row["latent"]]
        assert row["offsets"] == np.flatnonzero(window).tolist()  # masked ones included
        assert row["activations"] == window[window > 0].tolist()
        assert row["max_activation"] == world.peak(row["latent"], w) > 0
        assert {row["document"]} == world.documents(w)
    for _, group in contexts.group_by("latent"):
        assert len({texts[w] for w in group["context"]}) == group.height
    for _, group in contexts.group_by("latent", "split", maintain_order=True):
        assert group["order"].to_list() == list(range(group.height))
    per_document = contexts.filter(split="test").group_by("latent", "document").len()["len"]
    assert per_document.max() <= 2


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from(SAMPLERS), st.integers(40, 60), st.integers(10, 30))
def test_more_contexts_only_append(seed: int, sampler: str, explain: int, test: int) -> None:
    world = world_of(seed)
    small = sampled(world, sampler=sampler, explain=explain, select=5, test=test)["contexts"]
    for split, size in (("explain", explain), ("select", 5), ("test", test)):
        large = sampled(world, **{"sampler": sampler, "explain": explain, "select": 5, "test": test, split: size + 7})
        for other in schema.SPLITS:
            first = large["contexts"].filter(
                pl.col("split") == other, pl.col("order") < (size if other == split else 10**6)
            )
            assert first.equals(small.filter(split=other))


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sets(st.integers(0, 13), min_size=1), st.sampled_from(SAMPLERS))
def test_a_latents_rows_do_not_depend_on_the_other_latents(seed: int, latents: set[int], sampler: str) -> None:
    world = world_of(seed)
    together, alone = sampled(world, sampler=sampler), sampled(world, sorted(latents), sampler=sampler)
    for name in together:
        assert together[name].filter(pl.col("latent").is_in(list(latents))).equals(alone[name])


def test_the_seed_decides_the_sample() -> None:
    world = world_of(1)
    chosen = [sampled(world, seed=seed, test=10)["contexts"] for seed in (0, 0, 1)]
    assert chosen[0].equals(chosen[1])
    assert not chosen[0].equals(chosen[2])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 60))
def test_any_prefix_of_a_quantile_sample_is_spread_over_the_deciles(seed: int, n: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    population = pl.DataFrame(
        {
            "cell": np.arange(n),
            "row": np.zeros(n, dtype=np.int64),
            "document": rng.integers(0, 20, n),
            "maximum": rng.random(n),
            "decile": rng.integers(1, 11, n),
        }
    )
    sample = draw(population, "quantile", size)
    assert sample.height == min(n, size)
    available, taken = (dict(f["decile"].value_counts().iter_rows()) for f in (population, sample))
    most = max(taken.values())
    assert all(taken.get(d, 0) >= min(available[d], most - 1) for d in available)
    strongest = draw(population, "top", size)
    assert strongest["maximum"].to_list() == sorted(population["maximum"], reverse=True)[:size]
    capped = draw(population, "random", size, per_document=2)
    limit = population.group_by("document").len().select(pl.col("len").clip(upper_bound=2).sum()).item()
    assert capped.height == min(limit, size)
    assert capped["document"].value_counts()["count"].max() <= 2


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.sampled_from(SAMPLERS), st.integers(10, 40), st.sampled_from([-20, 0, 10]))
def test_samples_do_not_depend_on_how_few_windows_are_looked_at(seed: int, sampler: str, test: int, spare: int) -> None:
    """Fewer than suffice: the rest is looked at for the latents that need it."""
    changes = {"sampler": sampler, "explain": 40, "select": test, "test": test}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "SPARE", 10**9)
        whole = sampled(world_of(seed), **changes)["contexts"]
        patch.setattr(sorting, "SPARE", spare)
        assert sampled(world_of(seed), **changes)["contexts"].equals(whole)


def one_latent(maximum: np.ndarray, weight: np.ndarray, decile: np.ndarray | None = None) -> pl.DataFrame:
    n = len(maximum)
    return pl.DataFrame(
        {
            "cell": np.arange(n),
            "row": np.zeros(n, dtype=np.int64),
            "document": np.arange(n),
            "maximum": maximum,
            "weight": weight,
            "decile": decile if decile is not None else np.arange(n) * 10 // n + 1,
        }
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 100))
def test_a_mixed_sample_takes_turns_between_the_strongest_and_the_deciles(seed: int, n: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    population = one_latent(rng.random(n), rng.random(n), rng.integers(1, 11, n))
    strongest, spread = (draw(population, sampler, n)["cell"].to_list() for sampler in ("top", "quantile"))
    turns = [cell for pair in zip(strongest, spread, strict=True) for cell in pair]
    assert draw(population, "mixed", size)["cell"].to_list() == list(dict.fromkeys(turns))[:size]


def test_an_importance_sample_is_drawn_in_proportion_to_the_maximum() -> None:
    """Of three windows: the first, and of the others the second, as often as their maxima say."""
    maximum, rounds = np.array([1.0, 2.0, 5.0]), 20_000
    cells = np.arange(3)[None, :], np.arange(rounds)[:, None]
    uniform = (counter_hash(3, *cells) >> np.uint64(16)).astype(np.float64) + 0.5
    weight = -np.log(uniform * 2.0**-48) / maximum
    frames = [one_latent(maximum, w).with_columns(row=pl.lit(i, pl.Int64)) for i, w in enumerate(weight)]
    drawn = draw(pl.concat(frames), "importance", 2)["cell"].to_numpy().reshape(rounds, 2)
    for first, second in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        share = maximum[first] / 8 * maximum[second] / (8 - maximum[first])
        found = (drawn == (first, second)).all(axis=1).mean()
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / rounds)


def test_weights_of_importance_are_uniform_keys_over_the_maximum() -> None:
    world = world_of(2)
    frame = Population.of(world.cells(), world.windows, seed=3).frame()
    uniform = np.sort(np.exp(-frame["weight"].to_numpy() * frame["maximum"].to_numpy()))
    assert len(uniform) > 500
    assert np.abs(uniform - (np.arange(len(uniform)) + 0.5) / len(uniform)).max() < 1.63 / math.sqrt(len(uniform))


def test_the_order_of_hashes_is_uniform_over_contexts() -> None:
    latents, n = 5000, 12
    hashes = counter_hash(0, np.arange(latents)[:, None], np.arange(n))
    for chosen in (hashes.argmin(axis=1), hashes.argmax(axis=1)):
        counts = np.bincount(chosen, minlength=n)
        assert ((counts - latents / n) ** 2 / (latents / n)).sum() < 31.3  # chi-square, 11 d.f., p = .001


def materialised(folder: Path, latents: object, **changes: object) -> Outcome:
    workspace = make_workspace(folder, wide(world_of(0)), latents, {"contexts": {**SMALL, **changes}})
    (outcome,) = workspace.materialise("sampled_contexts", [SAE], sample_contexts)
    assert outcome.error is None, outcome.error
    assert outcome.version is not None
    return outcome


def test_the_stage_has_a_row_for_every_latent_and_says_how_many(tmp_path: Path) -> None:
    outcome = materialised(tmp_path, "all")
    table = outcome.version.read(schema.ELIGIBILITY)
    assert table["latent"].to_list() == list(range(300))
    statuses = dict(table["status"].value_counts().iter_rows())
    assert {name: outcome.facts[name] for name in statuses} == statuses
    assert sum(statuses.values()) == outcome.facts["latents"] == 300
    contexts = outcome.version.read(schema.CONTEXTS)
    assert outcome.facts["contexts"] == dict(contexts["split"].value_counts().iter_rows())
    by_the_functions = sampled(wide(world_of(0)))
    assert by_the_functions["contexts"].equals(contexts)  # in two blocks or in one
    assert by_the_functions["eligibility"].equals(table)
    windows = outcome.facts["windows_usable"]
    assert sum(windows.values()) == len(usable(world_of(0)))


def test_one_more_latent_computes_only_its_block(tmp_path: Path) -> None:
    first = materialised(tmp_path, [4, 5, 261])
    second = materialised(tmp_path, [4, 5, 261, 262])
    assert (first.blocks_computed, second.blocks_computed, second.blocks_reused) == (2, 1, 1)
    again = materialised(tmp_path, [4, 5, 261, 262])
    assert (again.status, again.version.key) == ("reused", second.version.key)
    old, new = (o.version.read(schema.CONTEXTS) for o in (first, second))
    assert new.filter(pl.col("latent") != 262).equals(old)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"test": 25}, ("explain", "select")),
        ({"explain": 50}, ("select", "test")),
        ({"sampler": "top"}, ("select", "test")),
    ],
)
def test_a_setting_of_one_split_leaves_the_content_of_the_others(
    tmp_path: Path, changes: dict[str, object], same: tuple[str, ...]
) -> None:
    before, after = materialised(tmp_path, "all", test=20), materialised(tmp_path, "all", **{"test": 20, **changes})
    assert before.version.key != after.version.key
    (other,) = set(schema.SPLITS) - set(same)
    for part in ("eligibility", *same):
        assert before.version.content((part,)) == after.version.content((part,))
    assert before.version.content((other,)) != after.version.content((other,))


def test_a_selection_the_sae_does_not_have_fails_its_partition_only(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, world_of(0), [99], {"contexts": SMALL})
    (outcome,) = workspace.materialise("sampled_contexts", [SAE], sample_contexts)
    assert isinstance(outcome.error, InputError)


def test_latents_that_never_fire_have_rows_and_no_contexts() -> None:
    frames = sampled(world_of(0), [DEAD])
    assert frames["contexts"].is_empty()
    assert frames["eligibility"].select("latent", "status", "reason").rows() == [
        (DEAD, "dead", "active on 0 unmasked tokens")
    ]


def spec(latents: object) -> SaeSpec:
    return SaeSpec.model_validate(
        {
            "model": "m",
            "hookpoint": "layers.0",
            "name": "s",
            "format": "sparsify",
            "source": "path:x",
            "latents": latents,
        }
    )


def test_selected_latents() -> None:
    assert selected_latents(spec("all"), 4).tolist() == [0, 1, 2, 3]
    assert selected_latents(spec({"start": 1, "stop": 3}), 4).tolist() == [1, 2]
    assert selected_latents(spec([3, 0, 3]), 4).tolist() == [0, 3]
    small, large = (set(selected_latents(spec({"sample": n, "seed": 5}), 100).tolist()) for n in (10, 30))
    assert len(small) == 10
    assert small < large
    small, large = (latents_in_turn(spec({"sample": n, "seed": 5}), 100).tolist() for n in (10, 30))
    assert large[:10] == small
    assert latents_in_turn(spec([3, 0, 3]), 4).tolist() == [3, 0]
    assert latents_in_turn(spec("all"), 50)[:20].tolist() == latents_in_turn(spec({"sample": 20}), 50).tolist()
    small = set(small)
    assert small != set(selected_latents(spec({"sample": 10, "seed": 6}), 100).tolist())


@pytest.mark.parametrize(
    "latents", [[4], [-1], [], LatentRange(start=2, stop=5), LatentRange(start=3, stop=3), LatentSample(sample=5)]
)
def test_latents_out_of_range_are_refused(latents: object) -> None:
    with pytest.raises(InputError, match=r"m/layers.0/s selects .*Expected: .*[34]"):
        selected_latents(spec(latents), 4)


def test_windows_that_do_not_fit_are_refused() -> None:
    corpus = world_of(0).corpus
    with pytest.raises(SettingsError, match=r"contexts.length = 8\..*at least 13"):
        Windows.of(corpus, 8)
    with pytest.raises(CorpusError, match="24 tokens do not divide sequences of 64"):
        Windows.of(corpus, 24)
