"""Reader of sparsify folders: `cfg.json` and `sae.safetensors`.

Tensors on disk, in any float dtype: encoder.weight [n, d], encoder.bias [n], W_dec [n, d], b_dec [d], and, with a skip
connection, W_skip [d, d] (outputs in rows, inputs in columns). `num_latents` = 0 means d * `expansion_factor`. b_dec is
subtracted from the input unless `transcode` is true.

Source: the code of sparsify (github.com/EleutherAI/sparsify).
"""

from __future__ import annotations

from pathlib import Path

import torch

from latentgloss.errors import SaeError
from latentgloss.saes.coder import SparseCoder
from latentgloss.saes.readers.config import read_config
from latentgloss.saes.readers.files import positive_int, read_tensors, take
from latentgloss.saes.selection import Activation, GroupMax, TopK


def read(folder: Path) -> SparseCoder:
    """The SAE or transcoder in a folder, on the CPU.

    Raises SaeError for damaged files, for activations other than `topk` and `groupmax`, and for signed latents (old
    checkpoints).
    """
    cfg_path, path = folder / "cfg.json", folder / "sae.safetensors"
    config = read_config(cfg_path)
    d = positive_int(config, "d_in", cfg_path)
    if config.get("num_latents"):
        n = positive_int(config, "num_latents", cfg_path)
    else:
        n = d * positive_int(config, "expansion_factor", cfg_path)
    k = positive_int(config, "k", cfg_path)
    kinds: dict[str, Activation] = {"topk": TopK(k), "groupmax": GroupMax(k)}
    name = config.get("activation", "topk")
    if name not in kinds:
        raise SaeError(f"{cfg_path}: activation {name!r}", expected="topk or groupmax")
    if config.get("signed"):
        raise SaeError(f"{cfg_path}: latents may be negative (signed)", expected="latents that are zero or positive")
    tensors = read_tensors(path)
    return SparseCoder(
        take(tensors, "encoder.weight", (n, d), path).T.contiguous(),
        take(tensors, "encoder.bias", (n,), path),
        take(tensors, "W_dec", (n, d), path),
        take(tensors, "b_dec", (d,), path),
        kinds[name],
        subtract_b_dec=not config.get("transcode", False),
        transcoder=bool(config.get("transcode", False)),
        W_skip=take(tensors, "W_skip", (d, d), path) if config.get("skip_connection") else None,
        bfloat16_weights=tensors["encoder.weight"].dtype == torch.bfloat16,
    )
