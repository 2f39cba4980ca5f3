"""Benchmarks of the pipeline, each in one process or in separate subprocesses.

    python benchmarks/pipeline.py caching    tokens/s of caching, relative to the bare forward pass up to the hookpoint
    python benchmarks/pipeline.py memory     peak memory of caching at 100k and at 1M tokens
    python benchmarks/pipeline.py contexts   milliseconds per latent to sample contexts at 1M tokens
    python benchmarks/pipeline.py imports    seconds to import `definitions`, and which heavy modules that loads

Results go to `benchmarks/results/<date>-<name>.json`. Because timings on a shared machine vary, shares are medians of
interleaved pairs.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import world

K = 32
LATENTS = 4096


def caching(arguments: argparse.Namespace) -> None:
    """Time of the model alone up to the hookpoint and of the whole stage, in interleaved pairs on the same tokens."""
    results = {}
    for hookpoint in arguments.hookpoints:
        with tempfile.TemporaryDirectory() as name:
            results[hookpoint] = _caching(Path(name), hookpoint, arguments.tokens, arguments.pairs)
    world.record("caching", {"latents": LATENTS, "k": K, "tokens": arguments.tokens, "hookpoints": results})


def _caching(folder: Path, hookpoint: str, tokens: int, pairs: int) -> dict[str, Any]:
    from latentgloss.corpus.stages import tokenize_corpus
    from latentgloss.saes.stages import resolve_saes

    workspace = world.workspace(folder, hookpoint=hookpoint, n=LATENTS, k=K, tokens=tokens)
    partition = f"smollm2/{hookpoint}/bench"
    world.materialise(workspace, "tokenized_corpus", "smollm2", tokenize_corpus)
    world.materialise(workspace, "resolved_saes", partition, resolve_saes)
    return share_of_bare_pass(workspace, partition, pairs)


def share_of_bare_pass(workspace: Any, partition: str, pairs: int) -> dict[str, Any]:
    """Speed of the model alone and of the stage, in interleaved pairs with equal batches, after a warm-up pair."""
    import numpy as np

    corpus = workspace.corpus(workspace.store.current("resolved_saes", partition))
    subject, hookpoint = workspace.subject("smollm2"), workspace.registry.sae(partition).hookpoint
    batch = max(1, batch_tokens(workspace) // corpus.sequence_length)
    shares, bare_rates, rates, stage_seconds = [], [], [], []
    for number in range(pairs + 1):
        start = time.perf_counter()
        for first in range(0, len(corpus.tokens), batch):
            subject.activations(np.asarray(corpus.tokens[first : first + batch]), [hookpoint])
        synchronise(subject.device)
        bare = time.perf_counter() - start
        outcome = cached_anew(workspace, partition)
        passed = outcome.facts["pass_seconds"]
        if number:
            shares.append(bare / passed)
            bare_rates.append(corpus.tokens.size / bare)
            rates.append(corpus.tokens.size / passed)
            stage_seconds.append(outcome.seconds)
    version = workspace.store.current("activation_cache", partition)
    files = {k: v for k, v in version.manifest.files.items() if k.startswith("activations/")}
    pairs_on_disk = sum(f["rows"] for f in files.values())
    return {
        "share_of_bare_pass": round(statistics.median(shares), 3),
        "shares": [round(s, 3) for s in shares],
        "bare_tokens_per_s": round(statistics.median(bare_rates)),
        "caching_tokens_per_s": round(statistics.median(rates)),
        "stage_tokens_per_s": round(corpus.tokens.size / statistics.median(stage_seconds)),
        "bytes_per_active_latent": round(sum(f["bytes"] for f in files.values()) / pairs_on_disk, 3),
        "active_pairs": pairs_on_disk,
    }


def cached_anew(workspace: Any, partition: str) -> Any:
    """Outcome of `activation_cache`, run after deleting its earlier results."""
    from latentgloss.activations.stages import cache_activations

    shutil.rmtree(workspace.settings.store_root / "activation_cache", ignore_errors=True)
    workspace.store._versions.clear()
    return world.materialise(workspace, "activation_cache", partition, cache_activations)


def batch_tokens(workspace: Any) -> int:
    """Tokens per forward pass in the stage."""
    from latentgloss.activations.forward_pass import batch_tokens

    return batch_tokens(workspace.settings.machine, workspace.subject("smollm2").device.type)


def synchronise(device: Any) -> None:
    """Waits until a GPU has finished its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(arguments: argparse.Namespace) -> None:
    """Peak resident memory of a process that caches, by number of tokens; at layer 0, to keep the pass short."""
    peaks = {}
    for tokens in arguments.tokens_list:
        command = [sys.executable, __file__, "_memory", "--tokens", str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[tokens] = json.loads(done.stdout.splitlines()[-1])
    first, last = (peaks[t]["peak_mib"] for t in (arguments.tokens_list[0], arguments.tokens_list[-1]))
    world.record("memory", {"latents": LATENTS, "k": K, "peaks": peaks, "ratio": round(last / first, 3)})


def _memory(arguments: argparse.Namespace) -> None:
    from latentgloss.activations.stages import cache_activations
    from latentgloss.corpus.stages import tokenize_corpus
    from latentgloss.saes.stages import resolve_saes

    with tempfile.TemporaryDirectory() as name:
        workspace = world.workspace(
            Path(name), hookpoint="layers.0", n=LATENTS, k=K, tokens=arguments.tokens, text=True
        )
        world.materialise(workspace, "tokenized_corpus", "smollm2", tokenize_corpus)
        world.materialise(workspace, "resolved_saes", "smollm2/layers.0/bench", resolve_saes)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        world.materialise(workspace, "activation_cache", "smollm2/layers.0/bench", cache_activations)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_mib": round(peak / 1024), "before_caching_mib": round(before / 1024)}))


def contexts(arguments: argparse.Namespace) -> None:
    """Time to sample contexts and negatives of all latents of an SAE over 1M tokens."""
    from latentgloss import schema
    from latentgloss.activations.stages import cache_activations
    from latentgloss.contexts.stages import sample_contexts, sample_negatives
    from latentgloss.corpus.stages import tokenize_corpus
    from latentgloss.saes.stages import resolve_saes

    with tempfile.TemporaryDirectory() as name:
        workspace = world.workspace(
            Path(name), hookpoint="layers.0", n=LATENTS, k=K, tokens=arguments.tokens, text=True
        )
        partition = "smollm2/layers.0/bench"
        world.materialise(workspace, "tokenized_corpus", "smollm2", tokenize_corpus)
        world.materialise(workspace, "resolved_saes", partition, resolve_saes)
        cached = world.materialise(workspace, "activation_cache", partition, cache_activations)
        sampled = world.materialise(workspace, "sampled_contexts", partition, sample_contexts)
        negative = world.materialise(workspace, "sampled_negatives", partition, sample_negatives)
        rows = sampled.version.read(schema.ELIGIBILITY)
    result = {
        "tokens": arguments.tokens,
        "latents": LATENTS,
        "k": K,
        "eligible": int((rows["status"] == "eligible").sum()),
        "caching_seconds": cached.seconds,
        "contexts_ms_per_latent": round(1000 * sampled.seconds / LATENTS, 3),
        "negatives_ms_per_latent": round(1000 * negative.seconds / LATENTS, 3),
    }
    world.record("contexts", result)


def imports(arguments: argparse.Namespace) -> None:
    """Time to import Dagster's code location, in a fresh process each time."""
    code = (
        "import time; t = time.perf_counter(); import definitions; s = time.perf_counter() - t\n"
        "import sys, json; heavy = ['torch', 'transformers', 'lancedb', 'vllm']\n"
        "print(json.dumps({'seconds': s, 'loaded': [m for m in heavy if m in sys.modules]}))"
    )
    runs = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], cwd=world.ROOT, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = [run["seconds"] for run in runs]
    world.record(
        "imports",
        {
            "median_seconds": round(statistics.median(seconds), 2),
            "max_seconds": round(max(seconds), 2),
            "heavy_modules_loaded": runs[-1]["loaded"],
        },
    )


def main() -> None:
    """Runs the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for action in (caching, memory, _memory, contexts, imports):
        command = commands.add_parser(action.__name__, help=action.__doc__)
        command.set_defaults(action=action)
        command.add_argument("--tokens", type=int, default=65_536 if action is caching else 1_000_000)
        command.add_argument("--pairs", type=int, default=5)
        command.add_argument("--hookpoints", nargs="+", default=["layers.9", "layers.29"])
        command.add_argument("--tokens-list", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
