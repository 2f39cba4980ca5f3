"""Measures time, peak memory and bytes on disk of contexts and negatives of every latent of a wide SAE.

    python benchmarks/contexts_scale.py                   131,072 latents, 10M tokens, 32 active per token
    python benchmarks/contexts_scale.py --scale 0.05      a twentieth of the tokens

Activations are made up and written directly in the cache's layout, which is not timed. Firing rates fall off as
(rank + 30)^-1.2: at full size, a third of the latents fire less than 200 times, and the most frequent one fires on a
quarter of the tokens. Latents fire independently, which is the worst case for the encoding of positions and for the
number of windows. Each stage runs in a separate process, so that its peak memory is its own.

`--folder` keeps the made-up world and uses it again; `--share` selects only a part of the latents.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent))

import world

from latentgloss import schema
from latentgloss.activations.forward_pass import SHARD
from latentgloss.activations.pairs import round_to_bfloat16
from latentgloss.store.digests import frame_sha256, json_sha256
from latentgloss.workspace import Workspace

SAE = "m/layers.0/s"
K, SEQUENCE, VOCABULARY, DOCUMENT = 32, 512, 49_152, 400
OFFSET, EXPONENT = 30, 1.2
STAGES = ("sampled_contexts", "sampled_negatives")


def make(folder: Path, n_latents: int, n_tokens: int, share: float, settings: str) -> Workspace:
    """Writes the world: a registry, a corpus of random tokens, and activations. Existing parts are used again."""
    for name in ("models", "saes"):
        (folder / "registry" / name).mkdir(parents=True, exist_ok=True)
    (folder / "registry/models/m.toml").write_text('name = "m"\nsource = "path:m"\n')
    (folder / "registry/saes/s.toml").write_text(
        'model = "m"\nhookpoint = "layers.0"\nname = "s"\nformat = "sparsify"\nsource = "path:s"\n'
    )
    (folder / "latentgloss.toml").write_text(settings)
    workspace = Workspace.open(folder / "latentgloss.toml")
    n_sequences = n_tokens // SEQUENCE
    identity = {"latents": n_latents, "sequences": n_sequences}
    pin = _corpus(workspace, identity, n_sequences)
    asked: Any = "all" if share >= 1 else {"start": 0, "stop": int(n_latents * share)}
    with workspace.store.draft("resolved_saes", SAE, {**identity, "asked": asked}) as draft:
        with draft.file("resolved.json") as path:
            path.write_text(json.dumps({"corpus": pin, "n_latents": n_latents, "latents": asked}))
        draft.part("cache", json_sha256(identity))
        draft.part("latents", json_sha256(asked))
        draft.commit(inputs=[], run_id="", facts={})
    _cache(workspace, identity, n_latents, n_sequences)
    return workspace


def _corpus(workspace: Workspace, identity: dict[str, int], n_sequences: int) -> dict[str, str]:
    store = workspace.store
    with store.draft("tokenized_corpus", "m", identity) as draft:
        found = store.version("tokenized_corpus", "m", draft.fingerprint)
        if found is not None:
            store.point(found)
            return found.pin
        rng = np.random.default_rng(0)
        tokens = np.minimum(rng.pareto(0.7, (n_sequences, SEQUENCE)) * 20, VOCABULARY - 2).astype(np.uint32) + 1
        tokens[:, 0] = 0
        with draft.file("tokens.npy") as path, path.open("wb") as f:
            np.save(f, tokens)
        with draft.file("shared_13grams.npy") as path, path.open("wb") as f:
            np.save(f, np.zeros(tokens.shape, dtype=bool))
        # A document ends at the end of its split's stream, and a span ends with its sequence.
        split = np.sort(rng.choice(3, n_sequences, p=[0.4, 0.1, 0.5])).astype(np.uint8)
        ends = np.cumsum(rng.geometric(1 / DOCUMENT, 2 * tokens.size // DOCUMENT))
        at = np.arange(tokens.size)
        document = np.searchsorted(ends, at, side="right") * 3 + np.repeat(split, SEQUENCE)
        opens = np.flatnonzero((np.diff(document, prepend=-1) != 0) | (at % SEQUENCE == 0))
        stop = np.append(opens[1:], tokens.size)
        start = opens + (opens % SEQUENCE == 0)
        spans = pl.DataFrame(
            {"document": document[opens], "start": start, "end": stop}, schema=schema.SPANS.schema, strict=False
        ).filter(pl.col("end") > pl.col("start"))
        sequences = pl.DataFrame(
            {"sequence": np.arange(n_sequences, dtype=np.uint32), "split": np.array(schema.SPLITS)[split]}
        )
        for name, frame in (("spans", spans), ("sequences", sequences)):
            with draft.file(f"{name}.parquet") as path:
                frame.write_parquet(path)
        draft.part("corpus", frame_sha256(spans))
        return draft.commit(inputs=[], run_id="", facts={}).pin


def _cache(workspace: Workspace, identity: dict[str, int], n_latents: int, n_sequences: int) -> None:
    store = workspace.store
    with store.draft("activation_cache", SAE, identity) as draft:
        found = store.version("activation_cache", SAE, draft.fingerprint)
        if found is not None:
            store.point(found)
            return
        weight = (np.arange(n_latents) + OFFSET) ** -EXPONENT
        weight = weight[np.random.default_rng(1).permutation(n_latents)]
        upto = np.cumsum(weight / weight.sum())
        per_shard = SHARD // SEQUENCE
        for number, first in enumerate(range(0, n_sequences, per_shard)):
            stop = min(first + per_shard, n_sequences)
            n, offset = (stop - first) * SEQUENCE, first * SEQUENCE
            rng = np.random.default_rng([2, number])
            # 5 % more are drawn, because equal pairs of latent and position merge.
            drawn = np.searchsorted(upto[:-1], rng.random(n * K * 21 // 20, dtype=np.float32))
            key = np.unique(drawn.astype(np.uint64) << np.uint64(32) | rng.integers(0, n, len(drawn), dtype=np.uint64))
            latent = (key >> np.uint64(32)).astype(np.uint32)
            scale = 1 + latent % 7  # latents fire with different strengths
            value = (0.3 + rng.standard_gamma(1.5, len(key), dtype=np.float32)) * scale.astype(np.float32)
            pairs = pl.DataFrame(
                {
                    "latent": latent,
                    "position": key.astype(np.uint32) + np.uint32(offset),
                    "activation": round_to_bfloat16(value),
                }
            )
            masked = pl.DataFrame({"position": np.arange(offset, offset + n, SEQUENCE, dtype=np.uint32)})
            frames = {"activations": pairs, "masked": masked.with_columns(why=pl.lit("special"))}
            draft.put(f"shard-{number:06d}", {"shard": number}, (schema.ACTIVATIONS, schema.MASKED), frames)
        rng = np.random.default_rng(3)
        empty: dict[str, Any] = {c.name: [] for c in schema.LATENTS.columns if isinstance(c.dtype, pl.List)}
        for low in range(0, n_latents, schema.BLOCK):
            block = np.arange(low, min(low + schema.BLOCK, n_latents))
            near = (block[:, None] + rng.integers(1, n_latents, (len(block), 10))) % n_latents
            numbers = {c.name: 0 for c in schema.LATENTS.columns if c.name not in empty}
            frame = pl.DataFrame(
                [
                    {**numbers, **empty, "latent": i, "neighbours": row, "neighbour_cosines": [0.5] * len(row)}
                    for i, row in zip(block, near, strict=True)
                ],
                schema=schema.LATENTS.schema,
            )
            draft.put(f"{low // schema.BLOCK:06d}", {"latents": low}, (schema.LATENTS,), {"latents": frame})
        draft.commit(inputs=[], run_id="", facts={})


def run(folder: Path, stage: str) -> dict[str, Any]:
    """Runs one stage in this process and returns its time, peak memory and bytes."""
    from latentgloss.contexts.stages import sample_contexts, sample_negatives

    workspace = Workspace.open(folder / "latentgloss.toml")
    workspace.store.files.remove(f"{stage}/{SAE}")
    runner = dict(zip(STAGES, (sample_contexts, sample_negatives), strict=True))[stage]
    began, cpu = time.perf_counter(), time.process_time()
    outcome = world.materialise(workspace, stage, SAE, runner)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "bytes": sum(f["bytes"] for f in outcome.version.manifest.files.values()),
        "data_version": outcome.version.manifest.data_version[:16],
        "facts": {k: v for k, v in outcome.facts.items() if not k.startswith("windows_")},
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of each stage, in a process each, with the size of the world."""
    settings = arguments.settings.replace(";", "\n")
    tokens = int(arguments.tokens * arguments.scale)
    workspace = make(folder, arguments.latents, tokens, arguments.share, settings)
    files = workspace.store.current("activation_cache", SAE).manifest.files  # type: ignore[union-attr]
    shards = [f for name, f in files.items() if name.startswith("activations/")]
    pairs = sum(f["rows"] for f in shards)
    asked = max(1, int(arguments.latents * min(arguments.share, 1)))
    result: dict[str, Any] = {
        "latents": arguments.latents,
        "latents_asked": asked,
        "tokens": tokens,
        "active_pairs": pairs,
        "bytes_per_active_pair": round(sum(f["bytes"] for f in shards) / pairs, 3),
        "settings": arguments.settings,
    }
    for stage in arguments.stages:
        command = [sys.executable, __file__, "--run", stage, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result[stage] = json.loads(done.stdout.splitlines()[-1])
        result[stage]["ms_per_latent"] = round(1000 * result[stage]["seconds"] / asked, 3)
    return result


def main() -> None:
    """Measures the stages that the command line names, and records the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens")
    parser.add_argument("--share", type=float, default=1.0, help="share of the latents that are selected")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--settings", default="", help="lines of latentgloss.toml, separated by ';'")
    parser.add_argument("--folder", type=Path, help="where to keep the world; default: a temporary folder")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--run", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(arguments.folder, arguments.run)))
        return
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        result = measure(arguments.folder.resolve(), arguments)
    else:
        with tempfile.TemporaryDirectory() as name:
            result = measure(Path(name), arguments)
    if arguments.no_record:
        print(json.dumps(result, indent=1))
    else:
        world.record("contexts-scale", result)


if __name__ == "__main__":
    main()
