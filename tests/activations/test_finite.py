"""Activations that are NaN, infinite, zero or constant: errors with a name, or a figure that says why it is missing."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from latentgloss import schema
from latentgloss.activations.finite import check_encodable, check_finite
from latentgloss.activations.masking import norms_of
from latentgloss.activations.quality import Quality
from latentgloss.errors import SaeError, SubjectError
from latentgloss.pipeline.graph import STAGES as PIPELINE
from latentgloss.saes.baselines import neurons, random_topk
from latentgloss.saes.coder import SparseCoder
from latentgloss.saes.selection import Relu
from latentgloss.workspace import Workspace

STAGES = ["tokenized_corpus", "resolved_saes", "activation_cache"]


def change_model(folder, change) -> Workspace:
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return Workspace.open(folder / "latentgloss.toml")


def outcomes(workspace):
    return {o.partition: o for o in tiny.run_all(workspace, STAGES) if o.stage == "activation_cache"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_activation_that_is_not_finite_fails_its_sae_by_name_and_no_other(tmp_path, value):
    """One column of one MLP's output: the SAE at that MLP fails, the SAE at an earlier layer does not."""
    workspace = tiny.tiny_workspace(tmp_path, n_documents=120)
    whole = outcomes(workspace)[tiny.SPARSIFY].version.read(schema.ACTIVATIONS)

    def damage(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][5] = value

    found = outcomes(change_model(tmp_path, damage))
    assert found[tiny.SPARSIFY].status == "computed"
    assert found[tiny.SPARSIFY].version.read(schema.ACTIVATIONS).equals(whole)
    error = found[tiny.SAELENS].error
    assert isinstance(error, SubjectError)
    for part in (tiny.SAELENS, "layers.1.mlp", "of 2048 tokens", "position 0 ", "weights are intact"):
        assert part in str(error)
    assert "float32" not in error.todo, "the model runs in float32 already"


def test_the_error_counts_and_finds_the_first():
    x = torch.ones(6, 4, dtype=torch.bfloat16)
    x[2, 1], x[2, 2], x[4, 0] = torch.nan, torch.inf, torch.nan
    arguments = {"hookpoint": "h.0", "partition": "m/h.0/s", "first": 100, "dtype": "bfloat16"}
    with pytest.raises(SubjectError, match=r"2 of 6 tokens.*2 values NaN, 1 infinite.*position 102") as e:
        check_finite(x, norms_of(x), **arguments)
    assert 'dtype = "float32"' in e.value.todo
    check_finite(x[:2], norms_of(x[:2]), **arguments)


def test_what_an_sae_cannot_encode_is_an_error_and_the_rest_is_not():
    d, n = 8, 16
    sae = random_topk(d, n, 3, 0)
    x = torch.randn(5, d)
    scaled = SparseCoder(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, Relu(), False, input_norm="rescale")
    check_encodable(norms_of(x), scaled, hookpoint="h.0")
    x[3] = 0
    with pytest.raises(SaeError, match=r"h\.0 are zero on 1 of 5 tokens"):
        check_encodable(norms_of(x), scaled, hookpoint="h.0")
    for plain in (sae, neurons(d, 2)):
        check_encodable(norms_of(x), plain, hookpoint="h.0")
    large = SparseCoder(sae.W_enc * 1e35, sae.b_enc, sae.W_dec, sae.b_dec, Relu(), False)
    check_encodable(norms_of(x), large, hookpoint="h.0")
    with pytest.raises(SaeError, match="may exceed float32"):
        check_encodable(norms_of(x * 1e6), large, hookpoint="h.0")


@pytest.mark.parametrize("scale", [0.0, 0.1, 12345.678])
def test_constant_activations_have_no_fvu_and_say_so(scale):
    x = torch.full((700, 8), scale) * torch.linspace(-1, 2, 8)
    coder = random_topk(8, 16, 3, 0)
    quality = Quality()
    quality.add(x, coder, coder.encode_sparse(x), x)
    facts = quality.facts()
    assert facts["sample_fvu"] is None
    assert "same on every token" in facts["sample_fvu_reason"]
    assert facts["sample_l0"] == (3 if scale else 0)
    varied = Quality()
    y = x + torch.randn(700, 8)
    varied.add(y, coder, coder.encode_sparse(y), y)
    assert varied.facts()["sample_fvu"] > 0


def test_a_constant_hookpoint_is_cached(tmp_path):
    """A model whose MLP adds nothing: the activations are zero everywhere, and no latent is active."""
    tiny.tiny_workspace(tmp_path, n_documents=120)
    workspace = change_model(tmp_path, lambda t: t["model.layers.1.mlp.down_proj.weight"].zero_())
    found = outcomes(workspace)[tiny.SAELENS]
    assert found.status == "computed", found.error
    assert found.facts["sample_fvu"] is None
    assert found.facts["dead"] == 64
    json.dumps(found.facts, allow_nan=False)


def test_zero_decoder_rows_are_named_and_nobody_s_neighbours(tmp_path):
    """SAELens' topk with scaling by decoder norms, over two blocks of latents of which few rows are zero in each."""
    workspace = tiny.tiny_workspace(tmp_path, n_documents=120)
    folder, n, zero = tmp_path / "saes" / "mixed", 264, [3, 7, 50, 255, 256, 263]
    tiny.write_saelens(folder, n_latents=n)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"rescale_acts_by_decoder_norm": True}))
    tensors = load_file(folder / "sae_weights.safetensors")
    decoder = torch.randn(n, tiny.D_MODEL, generator=torch.Generator().manual_seed(2))
    decoder[zero] = 0
    save_file(tensors | {"W_dec": decoder}, folder / "sae_weights.safetensors")
    version = outcomes(workspace)[tiny.SAELENS].version
    assert version.manifest.facts["zero_decoder_rows"] == {"count": len(zero), "latents": zero}
    assert version.manifest.facts["sample_fvu"] > 0
    rows = version.read(schema.LATENTS)
    unit = torch.nn.functional.normalize(decoder.double(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    cosine[:, zero] = -2
    for row in rows.iter_rows(named=True):
        if row["latent"] in zero:
            assert (row["count"], row["neighbours"], row["top_outputs"]) == (0, [], [])
            continue
        expected = cosine[row["latent"]].topk(10)
        assert row["neighbours"][:10] == expected.indices.tolist()
        assert row["neighbour_cosines"][:10] == pytest.approx(expected.values.tolist(), abs=1e-5)
        assert len(row["top_outputs"]) == 10


def test_of_few_sound_latents_each_has_the_others():
    """Fewer than ten: no list is filled up with latents that have no direction."""
    from latentgloss.activations.latents import _FromDecoder

    decoder = torch.zeros(30, 8)
    sound = [2, 11, 29]
    decoder[sound] = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    neighbours, cosines = _FromDecoder(decoder, None)._neighbours(0, 30)
    for latent, found, values in zip(range(30), neighbours.to_list(), cosines.to_list(), strict=True):
        assert sorted(found) == [other for other in sound if latent in sound and other != latent]
        assert values == sorted(values, reverse=True)
        assert all(-1 <= value <= 1 for value in values)


@pytest.mark.parametrize(
    ("change", "lens"),
    [({}, {}), ({"model_type": "olmo"}, {"lens": 2}), ({"model_type": "gemma3", "text_config": {}}, {"lens": 2})],
)
def test_only_caches_of_models_whose_lens_has_changed_are_stale(tmp_path, change, lens):
    workspace = tiny.tiny_workspace(tmp_path, n_documents=60)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    stage = PIPELINE["activation_cache"]
    assert workspace.external(stage, tiny.SPARSIFY) == lens


@pytest.mark.parametrize(
    ("config", "zero", "stale"),
    [
        ({"rescale_acts_by_decoder_norm": True}, [3], True),
        ({"rescale_acts_by_decoder_norm": True}, [], False),
        ({"rescale_acts_by_decoder_norm": False}, [3], False),
        ({}, [3, 5], False),
    ],
)
def test_only_caches_whose_neighbours_were_nan_are_stale(tmp_path, config, zero, stale):
    """Of an SAE with scaling by decoder norms and a zero row: its latents are made again, its shards are reused."""
    from latentgloss.workspace import recipes

    workspace = tiny.tiny_workspace(tmp_path, n_documents=60)
    folder = tmp_path / "saes" / "mixed"
    (folder / "cfg.json").write_text(json.dumps(json.loads((folder / "cfg.json").read_text()) | config))
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"][zero] = 0
    save_file(tensors, folder / "sae_weights.safetensors")
    before = {**recipes.EXTERNAL, "activation_cache": lambda resources, partition: {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "EXTERNAL", before)
        assert outcomes(workspace)[tiny.SAELENS].status == "computed"
    workspace = Workspace.open(tmp_path / "latentgloss.toml")
    states = {s.partition: s for s in workspace.states() if s.asset == "activation_cache"}
    assert states[tiny.SPARSIFY].state == "fresh"
    assert states[tiny.SAELENS].state == ("stale" if stale else "fresh")
    if stale:
        assert "zero_rows" in states[tiny.SAELENS].because
        made = outcomes(workspace)[tiny.SAELENS]
        assert (made.status, made.blocks_reused, made.blocks_computed) == ("computed", 1, 1)
