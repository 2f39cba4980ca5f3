"""Reader of SAELens folders: `cfg.json` and `sae_weights.safetensors`, as release 6 and earlier releases write them.

Tensors on disk, in any float dtype: W_enc [d, n], W_dec [n, d], b_enc [n], b_dec [d]; `jumprelu` adds threshold [n].
SAEs trained with BatchTopK or as Matryoshka SAEs are saved as `jumprelu`. b_dec is subtracted from the input if
`apply_b_dec_to_input` is true or absent. `rescale_acts_by_decoder_norm` is folded into the weights.

Source: the code of SAELens (github.com/decoderesearch/SAELens).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from latentgloss.errors import SaeError
from latentgloss.saes.coder import SparseCoder, has_direction
from latentgloss.saes.readers.config import read_config
from latentgloss.saes.readers.files import positive_int, read_tensors, take
from latentgloss.saes.selection import Activation, JumpRelu, Relu, TopK

_INPUT_NORMS: dict[str, Literal["none", "layer_norm", "rescale"]] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "rescale",
}


def read(folder: Path) -> SparseCoder:
    """The SAE in a folder, on the CPU.

    Raises SaeError for damaged files, and for architectures and options that `SparseCoder` cannot compute.
    """
    cfg_path, path = folder / "cfg.json", folder / "sae_weights.safetensors"
    config = read_config(cfg_path)
    architecture, k = _architecture(config, cfg_path)
    input_norm = _input_norm(config, cfg_path)
    if config.get("reshape_activations", "none") != "none" or str(_hook(config)).endswith("hook_z"):
        raise SaeError(
            f"{cfg_path}: the SAE reads the outputs of attention heads before they are joined (hook_z)",
            expected="an SAE over one activation vector per token",
            todo="remove it from the registry",
        )
    d, n = positive_int(config, "d_in", cfg_path), positive_int(config, "d_sae", cfg_path)
    tensors = read_tensors(path)
    if "scaling_factor" in tensors and not torch.all(tensors["scaling_factor"] == 1):
        raise SaeError(
            f"{path}: `scaling_factor` differs from 1 (a finetuned SAE)", expected="the factor folded into W_dec"
        )
    W_enc, W_dec = take(tensors, "W_enc", (d, n), path), take(tensors, "W_dec", (n, d), path)
    b_enc, b_dec = take(tensors, "b_enc", (n,), path), take(tensors, "b_dec", (d,), path)
    stored = tensors["W_enc"].dtype
    if config.get("rescale_acts_by_decoder_norm"):
        # Latents compete for the top k after scaling by their decoder norms, and are scaled back for decoding.
        # A decoder row of zeros stays one; its latent's pre-activation is 0, so it is never active.
        norm = W_dec.norm(dim=1)
        scale = torch.where(has_direction(W_dec), norm, 1.0)
        W_enc, b_enc, W_dec, stored = W_enc * norm, b_enc * norm, W_dec / scale[:, None], torch.float32
    return SparseCoder(
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        _activation(architecture, k, tensors, n, path),
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        input_norm=input_norm,
        bfloat16_weights=stored == torch.bfloat16,
    )


def _architecture(config: dict[str, Any], path: Path) -> tuple[str, int]:
    """(architecture, k), with k = 0 unless the architecture is `topk`. Raises SaeError for unsupported ones.

    Before release 6, TopK was an activation function of the architecture `standard`.
    """
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if architecture not in ("standard", "topk", "jumprelu") or activation not in ("relu", "topk"):
        raise SaeError(
            f"{path}: architecture {architecture!r} with activation {activation!r}",
            expected="standard, topk or jumprelu (BatchTopK and Matryoshka SAEs are saved as jumprelu)",
            todo="remove it from the registry until this kind is supported",
        )
    if architecture == "topk" or (architecture == "standard" and activation == "topk"):
        return "topk", _k(config, path)
    return architecture, 0


def _k(config: dict[str, Any], path: Path) -> int:
    """The number of active latents: `k`, or `activation_fn_kwargs.k` before release 6. Raises SaeError."""
    arguments = config.get("activation_fn_kwargs")
    places = [place for place in (config, arguments) if isinstance(place, dict) and place.get("k") is not None]
    if not places:
        raise SaeError(
            f"{path}: the architecture is topk, but there is no k",
            expected="k, or activation_fn_kwargs with k in it",
            todo="add the k with which the SAE was trained",
        )
    found = {positive_int(place, "k", path) for place in places}
    if len(found) > 1:
        raise SaeError(
            f"{path}: k is {places[0]['k']}, but activation_fn_kwargs.k is {places[1]['k']}",
            expected="one k",
            todo="keep the k with which the SAE was trained",
        )
    return found.pop()


def _activation(architecture: str, k: int, tensors: dict[str, Tensor], n: int, path: Path) -> Activation:
    """The activation function of an architecture, with its parameters."""
    match architecture:
        case "topk":
            return TopK(k)
        case "jumprelu":
            return JumpRelu(take(tensors, "threshold", (n,), path))
        case _:
            return Relu()


def _input_norm(config: dict[str, Any], path: Path) -> Literal["none", "layer_norm", "rescale"]:
    """The normalisation of the input. Raises SaeError for an unsupported one."""
    name = str(config.get("normalize_activations") or "none")
    if name == "expected_average_only_in":
        # When SAELens folds the factor into the weights, it writes "none". So it was not folded in, and it is lost.
        raise SaeError(
            f"{path}: activations were scaled in training by a factor that is in neither file",
            expected="the factor folded into the weights, and normalize_activations 'none'",
            todo="load the SAE with SAELens, call fold_activation_norm_scaling_factor(factor), and save it again",
        )
    if name not in _INPUT_NORMS:
        raise SaeError(f"{path}: normalize_activations {name!r}", expected=f"one of {sorted(_INPUT_NORMS)}")
    return _INPUT_NORMS[name]


def _hook(config: dict[str, Any]) -> str | None:
    """Name of the hook that the SAE reads, where the configuration has one."""
    metadata = config.get("metadata")
    named = metadata.get("hook_name") if isinstance(metadata, dict) else None
    return named or config.get("hook_name")
