"""delphi's side of `vs_delphi.py`, which runs in delphi's own environment, without any of our packages.

Everything is done by delphi's classes, called as in its `__main__` (`load_artifacts`, `populate_cache`,
`process_cache`): `load_hooks_sparse_coders`, `LatentCache.run`, `save_splits`, `save_config`, and `LatentDataset`,
which applies its constructor and its sampler. The device and the tokens are given by the caller; nothing is downloaded.
Settings are delphi's defaults, except for the batch size, which is tuned.
"""

from __future__ import annotations

import os
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from delphi.config import CacheConfig, ConstructorConfig, RunConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from delphi.sparse_coders import load_hooks_sparse_coders
from transformers import AutoModel, AutoTokenizer
from worker import serve


@cache
def _artifacts(model: str, saes: str, hookpoint: str, device: str) -> tuple[Any, Any, bool]:
    """The base model (without an LM head) and SAEs wrapped by torch.compile, loaded as `load_artifacts` does."""
    loaded = AutoModel.from_pretrained(model, dtype=torch.bfloat16).to(device)
    config = RunConfig(CacheConfig(), ConstructorConfig(), SamplerConfig(), model, saes, hookpoints=[hookpoint])
    encoders, transcode = load_hooks_sparse_coders(loaded, config, compile=True)
    for encode in encoders.values():
        encode.keywords["sae"].to(device)  # delphi leaves SAEs from local files on the CPU
    return loaded, encoders, transcode


def caching(
    model: str, saes: str, hookpoint: str, tokens: str, n_tokens: int, batch: int, out: str, device: str = "cpu"
) -> dict[str, Any]:
    """Runs the model over the tokens and writes the splits, as `populate_cache` does. Returns counts and times."""
    loaded, encode, transcode = _artifacts(model, saes, hookpoint, device)
    array = torch.from_numpy(np.load(tokens).astype(np.int64))
    shutil.rmtree(out, ignore_errors=True)
    cached = LatentCache(loaded, encode, batch_size=batch, transcode=transcode)
    start = time.perf_counter()
    cached.run(n_tokens, array)
    ran = time.perf_counter()
    cached.save_splits(n_splits=CacheConfig().n_splits, save_dir=Path(out))
    saved = time.perf_counter()
    cached.save_config(save_dir=Path(out), cfg=CacheConfig(cache_ctx_len=array.shape[1]), model_name=model)
    return {
        "tokens": cached.cache.tokens[hookpoint].numel(),
        "pairs": len(cached.cache.latent_locations[hookpoint]),
        "run_seconds": ran - start,
        "seconds": saved - start,
        "bytes": sum(path.stat().st_size for path in Path(out).rglob("*.safetensors")),
    }


def write(hookpoint: str, tokens: str, pairs: str, width: int, model: str, out: str) -> dict[str, Any]:
    """Writes given activations with delphi's own `save_splits`, so that both sides sample from the same activations."""
    array, found = np.load(tokens).astype(np.int64), np.load(pairs)
    length = array.shape[1]
    position = found["position"].astype(np.int64)
    columns = (position // length, position % length, found["latent"].astype(np.int64))
    cached = LatentCache(None, {}, batch_size=1)  # it runs no model
    cached.width = width
    cached.cache.latent_locations[hookpoint] = torch.from_numpy(np.stack(columns, axis=1))
    cached.cache.latent_activations[hookpoint] = torch.from_numpy(found["activation"])
    cached.cache.tokens[hookpoint] = torch.from_numpy(array)
    cached.save_splits(n_splits=CacheConfig().n_splits, save_dir=Path(out))
    cached.save_config(save_dir=Path(out), cfg=CacheConfig(cache_ctx_len=length), model_name=model)
    size = sum(path.stat().st_size for path in Path(out).rglob("*.safetensors"))
    return {"bytes": size, "pairs": len(position)}


def contexts(folder: str, hookpoint: str, model: str, latents: int) -> dict[str, Any]:
    """Makes the records of the first latents as `process_cache` does: examples, non-activating examples, samples."""
    start = time.perf_counter()
    dataset = LatentDataset(
        raw_dir=folder,
        sampler_cfg=SamplerConfig(),
        constructor_cfg=ConstructorConfig(),
        modules=[hookpoint],
        latents={hookpoint: torch.arange(latents)},
        tokenizer=AutoTokenizer.from_pretrained(model),
    )
    opened = time.perf_counter()
    records = sum(1 for _ in dataset)
    done = time.perf_counter()
    return {"open_seconds": opened - start, "seconds": done - opened, "latents": latents, "records": records}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serve({"caching": caching, "write": write, "contexts": contexts})
