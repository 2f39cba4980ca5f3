"""Encoding against a dense reference written down plainly, both layouts, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import REGISTRY, model_cache
from safetensors.torch import save_file
from torch import Tensor

from latentgloss.config.entries import BASELINES
from latentgloss.config.registry import Registry
from latentgloss.errors import SaeError
from latentgloss.saes import coder as coder_module
from latentgloss.saes import selection
from latentgloss.saes.coder import SparseCoder
from latentgloss.saes.opening import FILES, READERS, open_sae, read_sae, sae_file_digest
from latentgloss.saes.selection import Activation, GroupMax, JumpRelu, Relu, TopK

D, N = 12, 24


def dense(coder: SparseCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """(latents [tokens, n], reconstruction), in float64 and without any shortcut."""
    x = x.double()
    scale: Tensor | float = 1.0
    shift: Tensor | float = 0.0
    z = x
    if coder.input_norm == "layer_norm":
        shift, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        z = (x - shift) / (scale + 1e-5)
    elif coder.input_norm == "rescale":
        scale = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        z = x / scale
    if coder.subtract_b_dec:
        z = z - coder.b_dec
    pre = z @ coder.W_enc.double() + coder.b_enc
    f = torch.zeros_like(pre)
    for row, out in zip(pre, f, strict=True):
        match coder.activation:
            case TopK(k):
                chosen = row.argsort(descending=True)[:k]
            case GroupMax(k):
                size = len(row) // k
                chosen = torch.stack([g * size + row[g * size : (g + 1) * size].argmax() for g in range(k)])
            case JumpRelu(threshold):
                chosen = (row > threshold).nonzero()[:, 0]
            case Relu():
                chosen = torch.arange(len(row))
        out[chosen] = row[chosen].clamp_min(0)
    decoded = (f @ coder.W_dec.double() + coder.b_dec) * scale + shift
    if coder.W_skip is not None:
        decoded = decoded + x @ coder.W_skip.double().T
    return f, decoded


def scatter(coder: SparseCoder, tokens: int, triples: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    token, latent, value = triples
    out = torch.zeros(tokens, coder.n_latents, dtype=torch.float64)
    out[token, latent] = value.double()
    return out


def random_coder(seed: int, activation: str, **options: Any) -> SparseCoder:
    g = torch.Generator().manual_seed(seed)
    kinds: dict[str, Activation] = {
        "topk": TopK(5),
        "groupmax": GroupMax(6),
        "relu": Relu(),
        "jumprelu": JumpRelu(torch.rand(N, generator=g) * 2),
    }
    tensors = [torch.randn(*shape, generator=g) for shape in ((D, N), (N,), (N, D), (D,))]
    skip = torch.randn(D, D, generator=g) if options.pop("skip", False) else None
    return SparseCoder(*tensors, kinds[activation], W_skip=skip, **options)


def assert_same(coder: SparseCoder, x: Tensor) -> None:
    triples = coder.encode_sparse(x)
    f, decoded = dense(coder, x)
    torch.testing.assert_close(scatter(coder, len(x), triples), f, atol=1e-5 * (1 + float(f.max())), rtol=1e-4)
    precision = 1e-5 * (1 + float(decoded.abs().max()))  # sums of large terms that cancel keep the terms' rounding
    torch.testing.assert_close(coder.decode_sparse(*triples, x).double(), decoded, atol=precision, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    activation=st.sampled_from(["topk", "groupmax", "relu", "jumprelu"]),
    subtract=st.booleans(),
    norm=st.sampled_from(["none", "layer_norm", "rescale"]),
    skip=st.booleans(),
)
def test_sparse_equals_dense(seed: int, tokens: int, activation: str, subtract: bool, norm: str, skip: bool) -> None:
    coder = random_coder(seed, activation, subtract_b_dec=subtract, input_norm=norm, skip=skip)
    x = torch.randn(tokens, D, generator=torch.Generator().manual_seed(seed + 1)) * 3
    assert_same(coder, x)


@given(st.integers(0, 2**31), st.integers(1, 8), st.sampled_from([1, 4, 16]), st.integers(0, 3))
def test_the_largest_of_groups_hold_the_largest(seed: int, k: int, group: int, decimals: int) -> None:
    """Few decimals: many are equal. 72 and 520 latents: too few for groups, and as many as they take."""
    for n in (72, 520):
        pre = torch.randn(7, n, generator=torch.Generator().manual_seed(seed)).round(decimals=decimals)
        value, latent = selection.top(pre, k, group)
        assert torch.equal(value.sort(1).values, pre.topk(k, dim=1).values.sort(1).values)
        assert torch.equal(pre.gather(1, latent), value)
        assert all(len(set(row)) == k for row in latent.tolist())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), activation=st.sampled_from(["topk", "groupmax", "relu", "jumprelu"]))
def test_chunks_change_nothing_and_triples_are_positive_and_ordered(seed: int, activation: str) -> None:
    coder = random_coder(seed, activation, subtract_b_dec=True)
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(seed))
    whole = coder.encode_sparse(x)
    before = coder_module._CHUNK["cpu"]
    try:
        coder_module._CHUNK["cpu"] = 1  # 16 tokens at a time
        parts = coder.encode_sparse(x)
    finally:
        coder_module._CHUNK["cpu"] = before
    torch.testing.assert_close(scatter(coder, 50, whole), scatter(coder, 50, parts), atol=1e-5, rtol=1e-5)
    for token, latent, value in (whole, parts):
        assert (value > 0).all()
        assert (token.diff() >= 0).all()
        assert token.dtype == latent.dtype == torch.int64
        assert value.dtype == torch.float32
        assert len(set(zip(token.tolist(), latent.tolist(), strict=True))) == len(token)


def test_no_tokens_give_no_triples() -> None:
    token, latent, value = random_coder(0, "topk", subtract_b_dec=True).encode_sparse(torch.zeros(0, D))
    assert len(token) == len(latent) == len(value) == 0


def test_tokens_without_active_latents_decode_to_the_bias() -> None:
    coder = random_coder(0, "jumprelu", subtract_b_dec=False)
    coder = SparseCoder(coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec, JumpRelu(torch.full((N,), 1e6)), False)
    triples = coder.encode_sparse(torch.randn(7, D))
    assert len(triples[0]) == 0
    assert torch.equal(coder.decode_sparse(*triples, torch.randn(7, D)), coder.b_dec.expand(7, D))


def test_bfloat16_products_are_exact_for_bfloat16_values(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(512, 64, generator=g).bfloat16(),
        "encoder.bias": torch.randn(512, generator=g).bfloat16(),
        "W_dec": torch.randn(512, 64, generator=g).bfloat16(),
        "b_dec": torch.randn(64, generator=g).bfloat16() * 10,
    }
    write(tmp_path, "sparsify", {"d_in": 64, "num_latents": 512, "k": 16}, tensors)
    coder = read_sae("sparsify", tmp_path)
    assert coder.bfloat16_weights
    before = torch.backends.mkldnn.matmul.fp32_precision
    assert_same(coder, (torch.randn(300, 64, generator=g) * 50).bfloat16())
    assert torch.backends.mkldnn.matmul.fp32_precision == before


# --- formats --------------------------------------------------------------------------------------


def write(folder: Path, format: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    cfg, weights = FILES[format]
    (folder / cfg).write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / weights)


def saelens(coder: SparseCoder, **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {"W_enc": coder.W_enc, "b_enc": coder.b_enc, "W_dec": coder.W_dec, "b_dec": coder.b_dec}
    kind = {
        "d_in": D,
        "d_sae": N,
        "apply_b_dec_to_input": coder.subtract_b_dec,
        "normalize_activations": "none",
    }
    match coder.activation:
        case TopK(k):
            kind |= {"architecture": "topk", "k": k}
        case JumpRelu(threshold):
            kind |= {"architecture": "jumprelu"}
            tensors["threshold"] = threshold
        case _:
            kind |= {"architecture": "standard"}
    return kind | config, tensors


def sparsify(coder: SparseCoder, **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {"encoder.weight": coder.W_enc.T, "encoder.bias": coder.b_enc}
    tensors |= {"W_dec": coder.W_dec, "b_dec": coder.b_dec}
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip
    kind = {
        "d_in": D,
        "num_latents": N,
        "k": coder.activation.k if isinstance(coder.activation, TopK | GroupMax) else 1,
        "activation": "groupmax" if isinstance(coder.activation, GroupMax) else "topk",
        "transcode": not coder.subtract_b_dec,
        "skip_connection": coder.W_skip is not None,
    }
    return kind | config, tensors


def assert_equal(a: SparseCoder, b: SparseCoder) -> None:
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
    assert (a.subtract_b_dec, a.input_norm) == (b.subtract_b_dec, b.input_norm)
    assert type(a.activation) is type(b.activation)


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
@pytest.mark.parametrize("subtract", [True, False])
def test_saelens_round_trip(tmp_path: Path, activation: str, subtract: bool) -> None:
    coder = random_coder(1, activation, subtract_b_dec=subtract)
    write(tmp_path, "saelens", *saelens(coder))
    read = read_sae("saelens", tmp_path)
    assert_equal(read, coder)
    assert_same(read, torch.randn(20, D))
    assert read.weights_sha256 == sae_file_digest("saelens", tmp_path)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_sparsify_round_trip(tmp_path: Path, activation: str, transcode: bool, skip: bool) -> None:
    coder = random_coder(2, activation, subtract_b_dec=not transcode, skip=skip)
    write(tmp_path, "sparsify", *sparsify(coder))
    read = read_sae("sparsify", tmp_path)
    assert_equal(read, coder)
    assert (read.W_skip is not None) == skip
    assert_same(read, torch.randn(20, D))


def test_sparsify_without_num_latents_uses_the_expansion_factor(tmp_path: Path) -> None:
    coder = random_coder(3, "topk", subtract_b_dec=True)
    write(tmp_path, "sparsify", *sparsify(coder, num_latents=0, expansion_factor=N // D))
    assert read_sae("sparsify", tmp_path).n_latents == N


def test_both_layouts_of_one_sae_encode_alike(tmp_path: Path) -> None:
    coder = random_coder(4, "topk", subtract_b_dec=True)
    write(tmp_path / "a", "saelens", *saelens(coder))
    write(tmp_path / "b", "sparsify", *sparsify(coder))
    x = torch.randn(30, D)
    a, b = read_sae("saelens", tmp_path / "a"), read_sae("sparsify", tmp_path / "b")
    torch.testing.assert_close(scatter(a, 30, a.encode_sparse(x)), scatter(b, 30, b.encode_sparse(x)))


def test_saelens_before_release_6(tmp_path: Path) -> None:
    coder = random_coder(5, "topk", subtract_b_dec=True)
    config, tensors = saelens(coder)
    del config["k"], config["architecture"]
    flat = config | {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "hook_name": "blocks.9.hook_resid",
    }
    write(tmp_path, "saelens", flat, tensors)
    assert read_sae("saelens", tmp_path).activation == TopK(5)


@pytest.mark.parametrize(
    "where",
    [
        {"architecture": "topk", "activation_fn_kwargs": {"k": 8}},
        {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8.0}},
        {"architecture": "standard", "activation_fn": "topk", "activation_fn_kwargs": {"k": 8}},
        {"architecture": "topk", "k": 8, "activation_fn_kwargs": {"k": 8}},
        {"architecture": "topk", "k": 8, "activation_fn_kwargs": None},
        {"architecture": "standard", "activation_fn_str": "topk", "k": 8},
    ],
)
def test_saelens_k_in_either_place(tmp_path: Path, where: dict[str, Any]) -> None:
    config, tensors = saelens(random_coder(5, "topk", subtract_b_dec=True))
    del config["k"]
    write(tmp_path, "saelens", config | where, tensors)
    assert read_sae("saelens", tmp_path).activation == TopK(8)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"activation_fn_kwargs": {}}, "there is no k"),
        ({"k": 5, "activation_fn_kwargs": {"k": 8}}, "k is 5, but activation_fn_kwargs.k is 8"),
        ({"activation_fn_kwargs": {"k": -1}}, "k is -1"),
    ],
)
def test_saelens_k_that_is_nowhere_or_twice(tmp_path: Path, where: dict[str, Any], says: str) -> None:
    config, tensors = saelens(random_coder(5, "topk", subtract_b_dec=True))
    del config["k"]
    write(tmp_path, "saelens", config | where, tensors)
    with pytest.raises(SaeError, match=says) as e:
        read_sae("saelens", tmp_path)
    assert "download" not in e.value.todo or "-1" in says


@pytest.mark.parametrize("format", sorted(READERS))
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_quantised_weights_are_refused_by_name(tmp_path: Path, format: str, dtype: torch.dtype) -> None:
    make = saelens if format == "saelens" else sparsify
    config, tensors = make(random_coder(9, "topk", subtract_b_dec=True))
    name = "W_enc" if format == "saelens" else "encoder.weight"
    write(tmp_path, format, config, tensors | {name: tensors[name].to(dtype)})
    with pytest.raises(SaeError, match=f"{name} is stored as {str(dtype)[6:]}") as e:
        read_sae(format, tmp_path)
    assert str(tmp_path) in str(e.value)
    write(tmp_path, format, config, tensors | {"beside": torch.zeros(3).to(dtype)})
    assert read_sae(format, tmp_path).n_latents == N, "a tensor that is not needed is no reason"


def test_saelens_decoder_norm_decides_the_top_k(tmp_path: Path) -> None:
    coder = random_coder(6, "topk", subtract_b_dec=True)
    write(tmp_path, "saelens", *saelens(coder, rescale_acts_by_decoder_norm=True))
    x = torch.randn(20, D)
    read = read_sae("saelens", tmp_path)
    norm = coder.W_dec.norm(dim=1)
    pre = ((x - coder.b_dec) @ coder.W_enc + coder.b_enc) * norm
    kept = torch.zeros_like(pre).scatter(1, (top := pre.topk(5)).indices, top.values.relu())
    triples = read.encode_sparse(x)
    torch.testing.assert_close(scatter(read, 20, triples), kept.double(), atol=1e-4, rtol=1e-4)
    expected = (kept / norm) @ coder.W_dec + coder.b_dec
    torch.testing.assert_close(read.decode_sparse(*triples, x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "stored"), [("none", "none"), ("layer_norm", "layer_norm"), ("constant_norm_rescale", "rescale")]
)
def test_saelens_run_time_normalisation(tmp_path: Path, name: str, stored: str) -> None:
    write(
        tmp_path,
        "saelens",
        *saelens(random_coder(7, "relu", subtract_b_dec=True), normalize_activations=name),
    )
    read = read_sae("saelens", tmp_path)
    assert read.input_norm == stored
    assert_same(read, torch.randn(20, D))


@pytest.mark.parametrize(
    ("format", "change", "names"),
    [
        ("saelens", {"architecture": "gated"}, "gated"),
        ("saelens", {"architecture": "skip_transcoder"}, "skip_transcoder"),
        (
            "saelens",
            {"normalize_activations": "expected_average_only_in"},
            "fold_activation_norm_scaling_factor",
        ),
        ("saelens", {"normalize_activations": "other"}, "other"),
        ("saelens", {"reshape_activations": "hook_z"}, "hook_z"),
        ("saelens", {"d_in": 0}, "d_in"),
        ("saelens", {"d_sae": N + 1}, "W_enc has shape"),
        ("saelens", {"k": N + 1}, "number of latents"),
        ("sparsify", {"activation": "tanh"}, "tanh"),
        ("sparsify", {"signed": True}, "signed"),
        ("sparsify", {"d_in": D + 1}, "encoder.weight has shape"),
        ("sparsify", {"k": None}, "k is None"),
        ("sparsify", {"skip_connection": True}, "W_skip"),
        ("sparsify", {"activation": "groupmax", "k": 5}, "divisor"),
    ],
)
def test_refusals_name_the_folder_and_the_reason(
    tmp_path: Path, format: str, change: dict[str, Any], names: str
) -> None:
    make = saelens if format == "saelens" else sparsify
    write(tmp_path, format, *make(random_coder(8, "topk", subtract_b_dec=True), **change))
    with pytest.raises(SaeError) as e:
        read_sae(format, tmp_path)
    assert names in str(e.value)
    assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize("format", sorted(READERS))
def test_damaged_files(tmp_path: Path, format: str) -> None:
    make = saelens if format == "saelens" else sparsify
    config, tensors = make(random_coder(9, "topk", subtract_b_dec=True))
    cfg, weights = (tmp_path / name for name in FILES[format])

    def fails(with_: str) -> None:
        with pytest.raises(SaeError, match=with_):
            read_sae(format, tmp_path)

    fails("cannot be read")
    write(tmp_path, format, config, tensors)
    intact = weights.read_bytes()
    weights.write_bytes(intact[: len(intact) // 2])
    fails("not a readable safetensors file")
    weights.write_bytes(b"\x80\x04pickled")
    fails("not a readable safetensors file")
    write(tmp_path, format, config, {k: v for k, v in tensors.items() if k != "W_dec"})
    fails("no tensor 'W_dec'")
    write(tmp_path, format, config, tensors | {"b_dec": torch.full((D,), torch.nan)})
    fails("NaN")
    weights.write_bytes(intact)
    cfg.write_text("{")
    fails("not valid JSON")
    cfg.write_text("[]")
    fails("JSON object")
    weights.unlink()
    fails(weights.name)


def test_digest_follows_content_and_nothing_else(tmp_path: Path) -> None:
    config, tensors = sparsify(random_coder(10, "topk", subtract_b_dec=True))
    write(tmp_path / "a", "sparsify", config, tensors)
    write(tmp_path / "b", "sparsify", config, tensors)
    (tmp_path / "b" / "notes.txt").write_text("not part of it")
    assert sae_file_digest("sparsify", tmp_path / "a") == sae_file_digest("sparsify", tmp_path / "b")
    write(tmp_path / "b", "sparsify", config | {"k": 4}, tensors)
    assert sae_file_digest("sparsify", tmp_path / "a") != sae_file_digest("sparsify", tmp_path / "b")


def test_unknown_format_and_wrong_width() -> None:
    with pytest.raises(SaeError, match="did you mean 'saelens'"):
        read_sae("sae_lens", Path())
    coder = random_coder(11, "topk", subtract_b_dec=True)
    with pytest.raises(SaeError, match=r"width 12; those at layers\.9 have width 576"):
        coder.check_width(576, "layers.9")
    with pytest.raises(SaeError, match="width"):
        coder.encode_sparse(torch.zeros(2, D + 1))


def test_a_transcoder_has_no_b_dec_to_take_off() -> None:
    with pytest.raises(SaeError, match="transcoder"):
        SparseCoder(torch.zeros(D, N), torch.zeros(N), torch.zeros(N, D + 1), torch.zeros(D + 1), Relu(), True)


# --- the demo ---------------------------------------------------------------------------------------


def test_the_demo_s_saes_are_read_and_small() -> None:
    registry = Registry.open(REGISTRY)
    assert not registry.problems
    trained = [sae for sae in registry.saes.values() if sae.format not in BASELINES]
    assert {sae.format for sae in trained} == {"saelens", "sparsify"}
    for sae in trained:
        coder = open_sae(sae)
        assert (coder.d_in, coder.n_latents, coder.activation) == (576, 2048, TopK(32))
        assert coder.subtract_b_dec
        assert coder.bfloat16_weights
        torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(2048), atol=0.01, rtol=0)
        assert sum(f.stat().st_size for f in sae.path.iterdir()) < 5_000_000


@pytest.mark.demo
@pytest.mark.parametrize("model", ["smollm2", "smollm2-rerandomised"])
def test_the_demo_s_saes_reconstruct_the_model_they_were_trained_on(model: str) -> None:
    from pydoc_data.topics import topics

    from latentgloss.models.subject import load_subject

    registry = Registry.open(REGISTRY)
    saes = [sae for sae in registry.saes_of(model) if sae.format not in BASELINES]
    subject = load_subject(registry.model(model), model_cache(), device="cpu")
    text = "\n".join(topics[name] for name in sorted(topics)[:12])
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"][: 8 * 255]
    tokens = np.insert(np.array(ids).reshape(8, 255), 0, subject.tokenizer.bos_token_id, axis=1)
    caught = subject.activations(tokens, [sae.hookpoint for sae in saes])
    for sae in saes:
        coder = open_sae(sae)
        x = caught[sae.hookpoint][:, 1:].flatten(0, 1)
        norms = x.float().norm(dim=1)
        x = x[norms <= registry.model(model).mask.sink_norm * norms.median()]
        triples = coder.encode_sparse(x)
        error = x.float() - coder.decode_sparse(*triples, x)
        fvu = float(error.square().sum() / (x.float() - x.float().mean(0)).square().sum())
        assert sae.fvu is not None
        assert fvu < 1.5 * sae.fvu
        assert len(triples[0]) / len(x) == pytest.approx(32, abs=0.5)
