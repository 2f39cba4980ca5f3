"""FVU of a transcoder: against the place that it reconstructs, or no number and a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

from latentgloss import schema
from latentgloss.saes.opening import open_sae
from latentgloss.workspace import Workspace

STAGES = ["tokenized_corpus", "resolved_saes", "activation_cache"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """Transcoders of one MLP, fitted by least squares on their latents, with and without a skip connection."""
    folder = tmp_path_factory.mktemp("transcoders")
    workspace = tiny.tiny_workspace(folder, n_documents=120)
    tiny.run_all(workspace, STAGES[:1])
    tokens = np.asarray(workspace.corpus_of(workspace.store.current("tokenized_corpus", "tiny")).tokens[:64])
    found = workspace.subject("tiny").activations(tokens, ["layers.1.mlp@input", "layers.1.mlp"])
    x, y = (found[name].reshape(-1, tiny.D_MODEL) for name in ("layers.1.mlp@input", "layers.1.mlp"))
    generator = torch.Generator().manual_seed(0)
    encoder = torch.nn.functional.normalize(torch.randn(96, tiny.D_MODEL, generator=generator), dim=1)
    for name, skip in (("plain", False), ("skip", True), ("output", False)):
        W_skip = torch.randn(tiny.D_MODEL, tiny.D_MODEL, generator=generator) * 0.1
        pre = x @ encoder.T
        top = pre.topk(8, dim=1)
        active = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        wanted = y - x @ W_skip.T if skip else y
        decoder = torch.linalg.lstsq(active, wanted - wanted.mean(0)).solution
        tensors = {
            "encoder.weight": encoder,
            "encoder.bias": torch.zeros(96),
            "W_dec": decoder,
            "b_dec": wanted.mean(0),
        }
        config = {"d_in": tiny.D_MODEL, "num_latents": 96, "k": 8, "activation": "topk"}
        config |= {"transcode": True, "skip_connection": skip}
        place = folder / "saes" / name
        place.mkdir()
        save_file(
            {k: v.contiguous() for k, v in (tensors | ({"W_skip": W_skip} if skip else {})).items()},
            place / "sae.safetensors",
        )
        (place / "cfg.json").write_text(json.dumps(config))
        hookpoint = "layers.1.mlp" if name == "output" else "layers.1.mlp@input"
        trusted = "trust_registry = true\n" if name == "output" else ""  # its files say that it reads an input
        tiny.register(folder, f"tiny/{hookpoint}/{name}", "sparsify", extra=trusted)
    workspace = Workspace.open(folder / "latentgloss.toml")
    for outcome in tiny.run_all(workspace, STAGES):
        assert outcome.error is None
    return workspace


@pytest.mark.parametrize("name", ["plain", "skip"])
def test_a_transcoder_is_compared_with_its_module_s_output(workspace, name):
    version = workspace.store.current("activation_cache", f"tiny/layers.1.mlp@input/{name}")
    facts = version.manifest.facts
    n = facts["sample_tokens"]
    tokens = np.asarray(workspace.corpus(workspace.store.current("resolved_saes", version.manifest.partition)).tokens)
    found = workspace.subject("tiny").activations(tokens, ["layers.1.mlp@input", "layers.1.mlp"])
    x, y = (found[name].reshape(-1, tiny.D_MODEL)[:n].double() for name in ("layers.1.mlp@input", "layers.1.mlp"))
    coder = open_sae(workspace.registry.sae(version.manifest.partition))
    pre = x @ coder.W_enc.double() + coder.b_enc
    top = pre.topk(8, dim=1)
    made = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) @ coder.W_dec.double() + coder.b_dec
    made = made if coder.W_skip is None else made + x @ coder.W_skip.double().T
    keep = y.norm(dim=1) <= 10 * y.norm(dim=1).median()
    expected = (y - made)[keep].square().sum() / (y[keep] - y[keep].mean(0)).square().sum()
    assert facts["sample_fvu"] == pytest.approx(float(expected), abs=2e-4)
    assert name == "skip" or facts["sample_fvu"] < 0.9, "fitted, so better than the mean"
    against_input = (x - made)[keep].square().sum() / (x[keep] - x[keep].mean(0)).square().sum()
    assert abs(float(against_input) - facts["sample_fvu"]) > 0.05


def test_without_a_known_place_there_is_a_reason_and_no_number(workspace):
    facts = workspace.store.current("activation_cache", "tiny/layers.1.mlp/output").manifest.facts
    assert facts["sample_fvu"] is None
    assert "not known" in facts["sample_fvu_reason"]
    assert facts["sample_l0"] > 0


def test_what_an_sae_reads_does_not_depend_on_what_is_measured(workspace, tmp_path):
    """The pairs of an SAE, computed alone, are those computed beside transcoders whose outputs were measured."""
    alone = tiny.tiny_workspace(tmp_path, n_documents=120)
    tiny.run_all(alone, STAGES)
    for partition in tiny.SAES:
        a, b = (w.store.current("activation_cache", partition).read(schema.ACTIVATIONS) for w in (alone, workspace))
        assert a.equals(b)
