"""Activations: statistics against brute force, rounding, sinks, and what the pass does when an SAE fails."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentgloss import schema
from latentgloss.activations import forward_pass, latents
from latentgloss.activations.latents import latent_statistics
from latentgloss.activations.pairs import round_to_bfloat16
from latentgloss.machine.background import BackgroundWorkers
from latentgloss.pipeline.graph import STAGES

UP_TO_CONTEXTS = ["tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts"]


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(0, 2.0**100, width=32)))
def test_rounding_to_bfloat16_is_that_of_torch(values):
    import torch

    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    assert np.array_equal(round_to_bfloat16(values), expected)


@st.composite
def activity(draw):
    """(latent, position, activation) rows of 4 latents on 12 positions, tokens and a mask."""
    dense = draw(hnp.arrays(np.float32, (4, 12), elements=st.sampled_from([0, 0, 0.5, 1, 2.5])))
    tokens = draw(hnp.arrays(np.uint32, 12, elements=st.integers(0, 3)))
    masked = np.flatnonzero(draw(hnp.arrays(bool, 12))).astype(np.uint32)
    return dense, tokens, masked


@given(activity())
def test_statistics_of_latents_are_those_of_a_loop(given_):
    dense, tokens, masked = given_
    latent, position = np.nonzero(dense)
    pairs = pl.DataFrame(
        {
            "latent": (latent + 256).astype(np.uint32),
            "position": position.astype(np.uint32),
            "activation": dense[latent, position],
        }
    )
    shuffled = pairs.sample(fraction=1, shuffle=True, seed=1)
    n = 12 - len(masked)
    found = latent_statistics(pairs, 256, 260, tokens, masked, n)
    assert found.equals(latent_statistics(shuffled, 256, 260, tokens, masked, n))
    unmasked = np.setdiff1d(np.arange(12), masked)
    for row in found.iter_rows(named=True):
        values = np.sort(dense[row["latent"] - 256, unmasked])
        active = values[values > 0]
        assert row["count"] == len(active)
        assert row["density"] == pytest.approx(len(active) / max(n, 1))
        assert row["max"] == (active.max() if len(active) else 0)
        assert row["mean"] == pytest.approx(active.mean() if len(active) else 0)
        assert sum(row["histogram"]) == len(active)
        assert len(row["quantiles"]) == (11 if len(active) else 0)
        if len(active):
            assert row["quantiles"][0] == active.min()
            assert row["quantiles"][-1] == active.max()
        where = unmasked[dense[row["latent"] - 256, unmasked] > 0]
        share = np.unique(tokens[where], return_counts=True)[1] / max(len(where), 1)
        assert row["token_entropy"] == pytest.approx(-(share * np.log(share)).sum() if len(where) else 0)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return tiny.computed_workspace(tmp_path_factory.mktemp("cached"))


@pytest.mark.parametrize("partition", tiny.SAES)
def test_the_cache_holds_what_a_dense_pass_gives(cached, partition):
    """Every active pair and nothing else, sorted by (latent, position), rounded to bfloat16."""
    import torch

    sae = cached.registry.sae(partition)
    coder = cached.sae(sae)
    corpus = cached.corpus(cached.store.current("resolved_saes", partition))
    x = cached.subject("tiny").activations(np.asarray(corpus.tokens), [sae.hookpoint])[sae.hookpoint]
    token, latent, value = coder.encode_sparse(x.reshape(-1, x.shape[-1]))
    expected = np.zeros((corpus.tokens.size, coder.n_latents), dtype=np.float32)
    expected[token.numpy(), latent.numpy()] = value.to(torch.bfloat16).float().numpy()
    frame = cached.store.current("activation_cache", partition).read(schema.ACTIVATIONS)
    assert frame.equals(frame.sort("latent", "position"))
    dense = np.zeros_like(expected)
    dense[frame["position"].to_numpy(), frame["latent"].to_numpy()] = frame["activation"].to_numpy()
    assert ((dense > 0) == (expected > 0)).mean() > 0.9999  # ties at the k-th place may fall either way
    assert np.allclose(dense, expected, rtol=0.01, atol=1e-3)


def test_what_the_host_sorts_and_writes_beside_the_pass_is_the_same(tmp_path, monkeypatch):
    """In threads, as it is done where a GPU computes, and shards of several batches."""
    monkeypatch.setattr(forward_pass, "SHARD", 4096)
    found = []
    for device in ("cpu", "cuda"):
        for module in (forward_pass, latents):
            monkeypatch.setattr(
                module, "BackgroundWorkers", lambda _, threads, device=device: BackgroundWorkers(device, 3)
            )
        folder = tmp_path / device
        folder.mkdir()
        workspace = tiny.tiny_workspace(folder)
        outcomes = tiny.run_all(workspace, ["tokenized_corpus", "resolved_saes", "activation_cache"])
        assert not [o.error for o in outcomes if o.error]
        versions = [workspace.store.current("activation_cache", partition).manifest for partition in tiny.SAES]
        assert all("shard-000003" in version.blocks for version in versions)
        found.append([(version.data_version, version.parts) for version in versions])
    assert found[0] == found[1]


def test_a_full_disk_beside_the_pass_is_one_failure_too(tmp_path, monkeypatch):
    workspace = tiny.tiny_workspace(tmp_path)
    tiny.run_all(workspace, ["tokenized_corpus", "resolved_saes"])
    write = pq.write_table

    def full(data, path, *args, **kwargs):
        if "words" in str(path):
            raise OSError(28, "No space left on device")
        return write(data, path, *args, **kwargs)

    for module in (forward_pass, latents):
        monkeypatch.setattr(module, "BackgroundWorkers", lambda _, threads: BackgroundWorkers("cuda", 3))
    with monkeypatch.context() as patch:
        patch.setattr("latentgloss.store.blocks.pq.write_table", full)
        stage = STAGES["activation_cache"]
        outcomes = list(workspace.materialise(stage.name, tiny.SAES, tiny.runner(stage.name)))
    assert {o.partition: o.status for o in outcomes} == {tiny.SPARSIFY: "failed", tiny.SAELENS: "computed"}


def test_bos_separators_and_first_positions_are_masked(cached):
    version = cached.store.current("activation_cache", tiny.SPARSIFY)
    masked = version.read(schema.MASKED)
    corpus = cached.corpus(cached.store.current("resolved_saes", tiny.SPARSIFY))
    tokens = np.asarray(corpus.tokens).reshape(-1)
    special = np.flatnonzero(np.isin(tokens, [0, 1, 2]))
    assert set(special) <= set(masked["position"].to_list())
    assert not masked["position"].is_duplicated().any()


def test_a_width_that_does_not_fit_fails_alone(tmp_path):
    workspace = tiny.tiny_workspace(tmp_path)
    tiny.write_saelens(tmp_path / "saes" / "mixed", d_in=32)
    workspace = type(workspace).open(tmp_path / "latentgloss.toml")
    outcomes = {(o.stage, o.partition): o for o in tiny.run_all(workspace, UP_TO_CONTEXTS)}
    failed = outcomes["activation_cache", tiny.SAELENS]
    assert failed.status == "failed"
    assert "width 32" in str(failed.error)
    assert "width 64" in str(failed.error)
    assert outcomes["sampled_contexts", tiny.SPARSIFY].status == "computed"


def test_a_missing_hookpoint_fails_alone_and_names_those_there_are(tmp_path):
    workspace = tiny.tiny_workspace(tmp_path)
    path = tmp_path / "registry" / "saes" / "mixed.toml"
    path.write_text(path.read_text().replace("layers.1.mlp", "layers.7.mlp"))
    workspace = type(workspace).open(tmp_path / "latentgloss.toml")
    outcomes = {o.partition: o for o in tiny.run_all(workspace, UP_TO_CONTEXTS[:-1]) if o.stage == "activation_cache"}
    failed = outcomes["tiny/layers.7.mlp/mixed"]
    assert failed.status == "failed"
    assert "layers.7.mlp" in str(failed.error)
    assert "layers.2.mlp" in str(failed.error)
    assert outcomes[tiny.SPARSIFY].status == "computed"


def test_a_full_disk_is_one_failure_and_nothing_is_half_written(tmp_path, monkeypatch):
    workspace = tiny.tiny_workspace(tmp_path)
    tiny.run_all(workspace, ["tokenized_corpus", "resolved_saes"])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("latentgloss.store.blocks.pq.write_table", full)
        stage = STAGES["activation_cache"]
        outcomes = list(workspace.materialise(stage.name, [tiny.SPARSIFY], tiny.runner(stage.name)))
    assert [o.status for o in outcomes] == ["failed"]
    assert "disk is full" in str(outcomes[0].error)
    assert not list((tmp_path / "data" / "activation_cache").rglob("*.parquet"))
    states = {(s.asset, s.partition): s for s in workspace.states()}
    assert states["activation_cache", tiny.SPARSIFY].state == "failed"
    (again,) = workspace.materialise(stage.name, [tiny.SPARSIFY], tiny.runner(stage.name))
    assert again.status == "computed"
