"""The speed of caching on a GPU: by batch size and threads, relative to the bare forward pass, and relative to delphi.

What belongs here: the parts `batches`, `caching` and `delphi` of `gpu.py`.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pipeline
from gpu_worlds import CASES, Bench, Peaks, seconds
from vs_delphi import same_pairs
from worker import Worker

HERE = Path(__file__).resolve().parent
BATCHES = {"135m": [4096, 16384, 32768, 65536], "1b": [4096, 16384, 32768, 65536], "tiny": [1024, 4096]}
THREADS = [1, 2, 4, 8]
DELPHI_BATCHES = [8, 32, 128]
"""Batch sizes to try for delphi, in sequences of 256 tokens."""


def batches(bench: Bench) -> dict[str, Any]:
    """Tokens/s of caching by tokens per forward pass, and by threads that sort and write."""
    results: dict[str, Any] = {}
    for name in bench.models:
        workspace, partition = bench.case(name, 0)
        settings = workspace.settings
        pipeline.cached_anew(workspace, partition)  # a warm-up

        def rate(**machine: int) -> int:
            changed = settings.machine.model_copy(update=machine)  # noqa: B023
            workspace.settings = settings.model_copy(update={"machine": changed})  # noqa: B023
            outcome = pipeline.cached_anew(workspace, partition)  # noqa: B023
            return int(outcome.facts["tokens"] / outcome.facts["pass_seconds"])

        results[name] = {
            "case": CASES[name][0],
            "tokens_per_s_by_batch_tokens": {tokens: rate(batch_tokens=tokens) for tokens in BATCHES[name]},
            "tokens_per_s_by_threads": {threads: rate(workers=threads) for threads in THREADS},
        }
        workspace.settings = settings
    return results


def caching(bench: Bench) -> dict[str, Any]:
    """The speed of caching relative to the bare forward pass, where its time goes, and peak memory, for each case."""
    results: dict[str, Any] = {}
    for name in bench.models:
        for number, (hookpoint, n, k) in enumerate(CASES[name]):
            workspace, partition = bench.case(name, number)
            encode = _encode_seconds(workspace, partition)
            with Peaks(bench.device) as peaks:
                found = pipeline.share_of_bare_pass(workspace, partition, 1 if n > 2**16 else bench.pairs)
            bare, passed = 1 / found["bare_tokens_per_s"], 1 / found["caching_tokens_per_s"]
            micro = {"bare": bare, "encode": encode, "pass": passed, "waiting": max(0.0, passed - bare - encode)}
            results[f"{name} {hookpoint} {n}/{k}"] = {
                **found,
                "microseconds_per_token": {key: round(1e6 * value, 3) for key, value in micro.items()},
                **peaks.found,
            }
            print(name, hookpoint, n, k, json.dumps(results[f"{name} {hookpoint} {n}/{k}"]), flush=True)
    return results


def _encode_seconds(workspace: Any, partition: str) -> float:
    """Seconds per token to encode one batch."""
    import numpy as np

    spec = workspace.registry.sae(partition)
    corpus = workspace.corpus(workspace.store.current("resolved_saes", partition))
    subject = workspace.subject("smollm2")
    rows = max(1, pipeline.batch_tokens(workspace) // corpus.sequence_length)
    x = subject.activations(np.asarray(corpus.tokens[:rows]), [spec.hookpoint])[spec.hookpoint]
    x = x.reshape(-1, x.shape[-1])
    coder = workspace.sae(spec).to(subject.device)
    return seconds(lambda: coder.encode_sparse(x), subject.device) / len(x)


def delphi(bench: Bench) -> dict[str, Any]:
    """The speed of caching relative to delphi's with its best batch size, in interleaved repeats."""
    import numpy as np

    results: dict[str, Any] = {}
    for name in bench.models:
        number, n_tokens = {"135m": (0, 2**19), "1b": (1, 2**15), "tiny": (0, 8192)}[name]
        workspace, partition = bench.case(name, number)
        hookpoint, n, k = CASES[name][number]
        corpus = workspace.corpus(workspace.store.current("resolved_saes", partition))
        folder = workspace.settings.folder
        np.save(folder / "tokens.npy", corpus.tokens)
        saes = folder / f"saes-{number}"
        saes.mkdir(exist_ok=True)
        (saes / hookpoint).symlink_to(folder / (f"sae-{n}-{k}" if number else "sae"))
        theirs = {
            "model": str(bench.model(name)),
            "saes": str(saes),
            "hookpoint": hookpoint,
            "device": bench.device,
            "tokens": str(folder / "tokens.npy"),
            "out": str(folder / "delphi"),
        }
        with Worker([sys.executable, str(HERE / "delphi_side.py")], bench.root / "delphi.log", 16) as side:
            rates = {}
            sizes = [batch for batch in DELPHI_BATCHES if 2 * batch * corpus.sequence_length <= n_tokens]
            for batch in (sizes[0], *sizes):  # the first is a warm-up
                done = side.ask("caching", **theirs, n_tokens=n_tokens // 2, batch=batch)
                rates[batch] = round(done["tokens"] / done["seconds"])
            batch = max(rates, key=lambda size: rates[size])
            pipeline.cached_anew(workspace, partition)
            repeats = []
            for _ in range(bench.pairs):
                d = side.ask("caching", **theirs, n_tokens=n_tokens, batch=batch)
                repeats.append((d, pipeline.cached_anew(workspace, partition).facts))
        pairs = [(d["tokens"] / d["seconds"], o["tokens"] / o["pass_seconds"]) for d, o in repeats]
        results[f"{name} {hookpoint} {n}/{k}"] = {
            "ratio": round(statistics.median(o / d for d, o in pairs), 2),
            "ratios": [round(o / d, 2) for d, o in pairs],
            "delphi_tokens_per_s": round(statistics.median(d for d, _ in pairs)),
            "ours_tokens_per_s": round(statistics.median(o for _, o in pairs)),
            "delphi_tokens_per_s_by_batch": rates,
            "tokens": {"delphi": repeats[-1][0]["tokens"], "ours": repeats[-1][1]["tokens"]},
            "same_pairs": same_pairs(workspace, partition, folder / "delphi" / hookpoint, n),
            "delphi_peak_rss_mib": repeats[-1][0]["peak_rss_mib"],
        }
    return results
