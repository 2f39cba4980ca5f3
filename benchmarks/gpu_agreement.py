"""Whether a cache made on a GPU is the same data version as one made on the CPU, again, or in another process.

What belongs here: the part `agreement` of `gpu.py`, and the other process, which is this file run as a script.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import world
from gpu_worlds import CASES, MODELS, Bench
from worker import Worker, serve


def agreement(bench: Bench) -> dict[str, Any]:
    """Whether caches made on the CPU, on the GPU, and by another process are equal, in float32 and in bfloat16."""
    results: dict[str, Any] = {}
    name, (hookpoint, n, k) = ("tiny", CASES["tiny"][0]) if bench.quick else ("135m", CASES["135m"][0])
    with Worker([sys.executable, __file__], bench.root / "worker.log", 8) as worker:
        for dtype in ("float32", "bfloat16"):
            made = {
                "model": f"path:{bench.model(name)}",
                "d": MODELS[name]["hidden_size"],
                "dtype": dtype,
                "hookpoint": hookpoint,
                "n": n,
                "k": k,
                "text": str(bench.text.resolve()),
                "tokens": 12_288 if bench.quick else 16_384,
            }
            folders = {run: bench.root / f"{run}-{dtype}" for run in ("cpu", "first", "second", "other process")}
            parts = {
                run: version(str(folders[run]), "cpu" if run == "cpu" else bench.device, **made)["parts"]
                for run in ("cpu", "first", "second")
            }
            other = worker.ask("version", folder=str(folders["other process"]), device=bench.device, **made)
            results[dtype] = {
                "same_data_version_twice": parts["first"] == parts["second"],
                "same_data_version_in_another_process": parts["first"] == other["parts"],
                "same_data_version_as_cpu": parts["first"] == parts["cpu"],
                **difference(folders["cpu"] / "pairs.npz", folders["first"] / "pairs.npz", n),
            }
    return results


def version(folder: str, device: str, text: str, **made: Any) -> dict[str, Any]:
    """Caches activations in a new workspace. Returns the parts of the data version and writes the pairs to a file."""
    import numpy as np

    from latentgloss import schema
    from latentgloss.activations.stages import cache_activations
    from latentgloss.corpus.stages import tokenize_corpus
    from latentgloss.saes.stages import resolve_saes

    settings = f'[machine]\ndevice = "{device}"\nmodel_cache = "cache"\n[activations]\nprecision = "float32"\n'
    workspace = world.workspace(Path(folder), text=Path(text), settings=settings, **made)
    partition = f"smollm2/{made['hookpoint']}/bench"
    world.materialise(workspace, "tokenized_corpus", "smollm2", tokenize_corpus)
    world.materialise(workspace, "resolved_saes", partition, resolve_saes)
    version = world.materialise(workspace, "activation_cache", partition, cache_activations).version
    pairs = version.read(schema.ACTIVATIONS)
    np.savez(Path(folder) / "pairs.npz", **{column: pairs[column].to_numpy() for column in pairs.columns})
    return {"parts": version.manifest.parts}


def difference(one: Path, other: Path, n_latents: int) -> dict[str, Any]:
    """How the pairs of two caches differ.

    For pairs that only one cache has, it gives the distance of their activation above the token's smallest one.
    """
    import numpy as np

    found = []
    for path in (one, other):
        pairs = np.load(path)
        key = pairs["position"].astype(np.int64) * n_latents + pairs["latent"]
        order = np.argsort(key)
        found.append((key[order], pairs["activation"][order].astype(np.float64)))
    (keys, values), (others, other_values) = found
    _, here, there = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
    relative = np.abs(values[here] / other_values[there] - 1)
    least = np.full(int(max(keys.max(), others.max())) // n_latents + 1, np.inf)
    np.minimum.at(least, keys // n_latents, values)
    alone = np.setdiff1d(np.arange(len(keys)), here)
    above = values[alone] / least[keys[alone] // n_latents] - 1
    return {
        "pairs": len(keys),
        "share_in_common": round(len(here) / len(keys), 6),
        "largest_relative_difference": float(f"{relative.max():.3g}"),
        "median_relative_difference": float(f"{np.median(relative):.3g}"),
        "only_in_one_above_the_last_place": {
            "median": float(f"{np.median(above):.3g}") if len(above) else 0.0,
            "largest": float(f"{above.max():.3g}") if len(above) else 0.0,
        },
    }


if __name__ == "__main__":
    serve({"version": version})
