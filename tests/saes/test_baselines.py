"""Baselines: weights that follow from a registry entry, and go through the same stages as those of an SAE."""

from __future__ import annotations

import shutil
from dataclasses import replace

import polars as pl
import pytest
import tiny
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.config.entries import SaeSpec
from latentgloss.config.registry import Registry
from latentgloss.errors import SaeError
from latentgloss.saes.baselines import neurons, random_topk
from latentgloss.saes.opening import open_sae, sae_digest
from latentgloss.workspace import Workspace

EXPLAINED = 70
"""Latents of each baseline that are explained and scored; the activations of all are cached."""
RANDOM = f'format = "random_topk"\nd_in = {tiny.D_MODEL}\nn_latents = 300\nk = 6\nseed = 5\ncontrol = true\n'
NEURONS = f'format = "neurons"\nd_in = {tiny.D_MLP}\nk = 8\n'
HOOKPOINT = "layers.1.mlp.down_proj@input"


def declare(root, name, hookpoint, text):
    (root / "registry" / "saes" / f"{name}.toml").write_text(
        f'model = "tiny"\nhookpoint = "{hookpoint}"\nname = "{name}"\n{text}'
        f"latents = {{start = 0, stop = {EXPLAINED}}}\n"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Through every stage, once; who changes something takes a copy."""
    folder = tmp_path_factory.mktemp("baselines")
    tiny.computed_workspace(folder)
    declare(folder, "random", "layers.0", RANDOM)
    declare(folder, "neurons", HOOKPOINT, NEURONS)
    workspace = Workspace.open(folder / "latentgloss.toml")
    assert not [outcome for outcome in tiny.run_all(workspace) if outcome.error]
    return workspace


@pytest.fixture
def workspace(finished, tmp_path):
    shutil.copytree(finished.settings.folder, tmp_path, dirs_exist_ok=True)
    return Workspace.open(tmp_path / "latentgloss.toml")


def spec(**parameters):
    given = {"format": "random_topk", "d_in": 8, "n_latents": 20, "k": 3, "seed": 0, **parameters}
    return SaeSpec(model="m", hookpoint="h", name="n", **{k: v for k, v in given.items() if v is not None})


@given(st.integers(2, 40), st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**40))
def test_random_directions_depend_on_seed_and_latent_alone(d, n, more, seed):
    one, larger = random_topk(d, n, 1, seed), random_topk(d, n + more, 1, seed)
    assert torch.equal(one.W_dec, larger.W_dec[:n])
    assert torch.equal(one.W_enc, one.W_dec.T)
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(n), atol=0.01, rtol=0)
    assert not torch.equal(one.W_dec, random_topk(d, n, 1, seed + 1).W_dec)


def test_random_directions_are_uniform_on_the_sphere():
    cosines = random_topk(64, 1000, 1, 0).W_dec @ random_topk(64, 1000, 1, 1).W_dec.T
    assert cosines.mean().abs() < 0.002
    assert cosines.std() == pytest.approx(64**-0.5, rel=0.02)


def test_random_directions_have_not_changed():
    """Stored results name a digest of the parameters: were other weights made of them, BASELINE_VERSION must rise."""
    expected = torch.tensor([-0.099609375, 0.51171875, -0.8515625])
    assert torch.equal(random_topk(3, 2, 1, 7).W_dec[1], expected)


@given(st.integers(1, 30).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d))), st.integers(0, 99))
def test_neurons_are_the_largest_positive_activations(size, seed):
    d, k = size
    x = torch.randn(7, d, generator=torch.Generator().manual_seed(seed))
    coder = neurons(d, k)
    token, latent, value = coder.encode_sparse(x)
    assert torch.equal(x[token, latent], value)
    dense = torch.zeros_like(x).index_put((token, latent), value)
    threshold = x.topk(k, dim=1).values[:, -1:]
    assert torch.equal(dense, torch.where((x >= threshold) & (x > 0), x, 0.0))
    assert torch.equal(coder.decode_sparse(token, latent, value, x), dense)
    slow = replace(coder, identity=False).encode_sparse(x)
    assert {(t, n) for t, n in zip(*(c.tolist() for c in slow[:2]), strict=True)} == set(
        zip(token.tolist(), latent.tolist(), strict=True)
    )


@pytest.mark.parametrize(("name", "value"), [("d_in", 9), ("n_latents", 21), ("k", 4), ("seed", 1)])
def test_every_parameter_decides_the_digest(name, value):
    assert sae_digest(spec()) == open_sae(spec()).weights_sha256
    assert sae_digest(spec(**{name: value})) != sae_digest(spec())
    assert spec(**{name: value}).declared() != spec().declared()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, "needs seed"),
        ({"source": "path:x"}, "not source"),
        ({"format": "neurons"}, "takes d_in and k, not n_latents, seed"),
        ({"format": "sparsify"}, "needs source"),
        ({"format": "sparsify", "source": "path:x"}, "takes source, not d_in, k, n_latents, seed"),
        ({"k": 0}, "greater than or equal to 1"),
    ],
)
def test_parameters_that_do_not_belong_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        spec(**change)


def test_a_registry_file_says_what_is_missing(tmp_path):
    tiny.tiny_workspace(tmp_path)
    declare(tmp_path, "random", "layers.0", 'format = "random_topk"\nd_in = 64\n')
    (error,) = Registry.open(tmp_path / "registry").problems.values()
    assert "random.toml" in error.found
    assert "format 'random_topk' needs n_latents, k, seed" in error.found
    assert len(error.found) < 300


def test_k_beyond_the_latents_is_refused():
    with pytest.raises(SaeError, match="k = 30"):
        open_sae(spec(k=30))


def test_a_wrong_width_is_found_before_anything_is_cached(workspace):
    declare(workspace.settings.folder, "neurons", HOOKPOINT, NEURONS.replace(str(tiny.D_MLP), "100"))
    config = str(workspace.settings.folder / "latentgloss.toml")
    done = CliRunner().invoke(cli, ["--config", config, "saes", "check"])
    assert done.exit_code == 1
    assert "width 100; those at layers.1.mlp.down_proj@input have width 128" in done.output


def test_baselines_go_through_every_stage_as_saes_do(finished):
    workspace = finished
    partitions = ["tiny/layers.0/random", f"tiny/{HOOKPOINT}/neurons"]
    assert all(state.state == "fresh" for state in workspace.states())
    for partition, k, n in zip(partitions, (6, 8), (300, tiny.D_MLP), strict=True):
        cache = workspace.store.current("activation_cache", partition)
        pairs, latents = cache.read(schema.ACTIVATIONS), cache.read(schema.LATENTS)
        assert latents.height == n
        assert pairs.group_by("position").len()["len"].max() == k
        scores = workspace.store.current("detection_scores", partition).read(schema.SCORES)
        assert scores["latent"].n_unique() == EXPLAINED
        assert (scores["status"] == "ok").any()
    rows = workspace.store.current("score_report", "tiny").read(schema.REPORT)
    for row in rows.filter(pl.col("n_scored") > 0).iter_rows(named=True):
        assert row["corrected"] == pytest.approx((row["median"] - 0.5) / 0.5)
        assert 0 < row["coverage"] <= 1 and row["n_judged"] >= 20
    control = dict(rows.select("partition", "control").unique().iter_rows())
    assert control == {tiny.SPARSIFY: False, tiny.SAELENS: True, partitions[0]: True, partitions[1]: False}


def test_neurons_have_no_neighbours(workspace):
    """All of them are at right angles: whoever a tie puts first is near in nothing."""
    path = workspace.settings.folder / "latentgloss.toml"
    path.write_text(path.read_text().replace("[negatives]\n", '[negatives]\nstrata = ["neighbour", "random"]\n'))
    workspace = Workspace.open(path)
    stages = [stage for stage in tiny.RUNNERS if stage in ("sampled_negatives", "explanations", "detection_scores")]
    assert not [outcome for outcome in tiny.run_all(workspace, stages) if outcome.error]
    for partition, some in ((f"tiny/{HOOKPOINT}/neurons", False), ("tiny/layers.0/random", True)):
        strata = workspace.store.current("sampled_negatives", partition).read(schema.STRATA_SHARES)
        assert bool(strata.filter(stratum="neighbour")["population"].sum()) is some
        scores = workspace.store.current("detection_scores", partition).read(schema.SCORES)
        ok = dict(scores.filter(status="ok").group_by("negatives").len().iter_rows())
        assert bool(ok.get("neighbour")) is some
        assert ok["population"], "a stratum that holds nothing is none of the population"
        reasons = scores.filter(status="unscored", negatives="neighbour")["reason"].unique().to_list()
        assert some or len(reasons) == 1


def test_another_seed_makes_only_that_baseline_stale(workspace):
    declare(workspace.settings.folder, "random", "layers.0", RANDOM.replace("seed = 5", "seed = 6"))
    again = Workspace.open(workspace.settings.folder / "latentgloss.toml")
    states = [s for s in again.states() if s.state != "fresh"]
    assert {s.partition for s in states} == {"tiny/layers.0/random", "tiny"}, "the report reads it"
    (resolved,) = [s for s in states if s.asset == "resolved_saes"]
    assert "external.sae.seed: 5 -> 6" in resolved.because
