"""Compares latentgloss with delphi (`eai-delphi`, EleutherAI) in caching activations and sampling contexts.

    python benchmarks/vs_delphi.py                     everything, 15 minutes on two cores; `--quick`: a trial
    python benchmarks/vs_delphi.py --hookpoints        contexts only (`--context-tokens`: caching only)

Both sides run on one machine with the same converted SmolLM2-135M in bfloat16, the same random TopK SAE (4,096 latents,
k = 32, bfloat16, sparsify's layout), the same tokens and the same number of threads. Each side is a process in its own
environment. delphi's environment is made in `.bench/` at the first run, with pinned versions and the same torch and
transformers as ours. Repeats are interleaved, and the figures are medians. How delphi is called is in `delphi_side.py`.

- **Caching** is the time from tokens in memory to a cache on disk, without loading: for delphi `LatentCache.run` and
  `save_splits`, for us the pass of `activation_cache`, which also writes the shards. Statistics of latents, which both
  can compute afterwards, are left out. delphi's batch size is the fastest of those tried; ours is the default.
- **Contexts** are sampled from the same activations on both sides: ours at layer 0, written for delphi with its own
  `save_splits`. For delphi this is iterating over `LatentDataset` for all latents of its first split (of five), with
  default settings (40 examples to show, 50 to test, 50 that do not activate), including opening it. For us it is
  `sampled_contexts` and `sampled_negatives` of all latents, including opening the cache and writing blocks to disk:
  once with as many contexts as delphi, once with our defaults, which are several times more. Each repeat is a new
  process, and all files are read once beforehand.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout instead of an installed package

from latentgloss.machine.memory import keep_freed_memory

keep_freed_memory()  # before anything else, as in definitions.py

import world  # noqa: E402
from environments import DELPHI  # noqa: E402
from worker import Worker, serve  # noqa: E402

HERE = Path(__file__).resolve().parent
LATENTS, K = 4096, 32
SPLIT = 819
"""Number of latents in the first of the five files that delphi writes."""
SAME_SIZE = """
[contexts]
explain = 40
select = 0
test = 50
[negatives]
strata = ["random"]
explain = 1
select = 0
test = 50
"""
"""Settings with as many contexts as delphi samples by default; `explain = 1` is the minimum."""


# -- our side: `python vs_delphi.py _ours` -------------------------------------------------------------------------


def _prepare(folder: str, hookpoint: str, n_tokens: int, text: bool = False, caching: bool = False) -> dict[str, Any]:
    """Makes a workspace up to `resolved_saes` (or `activation_cache`), and the files that delphi needs from it."""
    import numpy as np

    from latentgloss import schema
    from latentgloss.activations.stages import cache_activations
    from latentgloss.corpus.stages import tokenize_corpus
    from latentgloss.models.files import ready_folder
    from latentgloss.saes.stages import resolve_saes

    root, partition = Path(folder), f"smollm2/{hookpoint}/bench"
    workspace = world.workspace(root, hookpoint=hookpoint, n=LATENTS, k=K, tokens=n_tokens, text=text)
    world.materialise(workspace, "tokenized_corpus", "smollm2", tokenize_corpus)
    world.materialise(workspace, "resolved_saes", partition, resolve_saes)
    corpus = workspace.corpus(workspace.store.current("resolved_saes", partition))
    np.save(root / "tokens.npy", corpus.tokens)
    (root / "saes").mkdir()
    (root / "saes" / hookpoint).symlink_to(root / "sae")
    if caching:
        version = world.materialise(workspace, "activation_cache", partition, cache_activations).version
        pairs = version.read(schema.ACTIVATIONS)
        np.savez(root / "pairs.npz", **{name: pairs[name].to_numpy() for name in ("latent", "position", "activation")})
    model = ready_folder(workspace.registry.model("smollm2"), workspace.model_cache)
    return {"tokens": int(corpus.tokens.size), "model": str(model)}


def _cache(folder: str, hookpoint: str) -> dict[str, Any]:
    """Runs the stage `activation_cache` after deleting its earlier results."""
    from latentgloss.activations.stages import cache_activations

    workspace, partition = _workspace(folder), f"smollm2/{hookpoint}/bench"
    shutil.rmtree(workspace.settings.store_root / "activation_cache", ignore_errors=True)
    workspace.store._versions.clear()
    outcome = world.materialise(workspace, "activation_cache", partition, cache_activations)
    files = outcome.version.manifest.files
    pairs = {name: f for name, f in files.items() if name.startswith("activations/")}
    return {
        "seconds": outcome.facts["pass_seconds"],
        "stage_seconds": outcome.seconds,
        "tokens": outcome.facts["tokens"],
        "pairs": sum(f["rows"] for f in pairs.values()),
        "bytes": sum(f["bytes"] for f in pairs.values()),
        "bytes_with_statistics": sum(f["bytes"] for f in files.values()),
    }


def _contexts(folder: str, hookpoint: str, settings: str) -> dict[str, Any]:
    """Runs the stages `sampled_contexts` and `sampled_negatives` for all latents."""
    from latentgloss import schema
    from latentgloss.contexts.stages import sample_contexts, sample_negatives
    from latentgloss.workspace import Workspace

    path = Path(folder) / "latentgloss.toml"
    path.write_text(settings)
    workspace, partition = Workspace.open(path), f"smollm2/{hookpoint}/bench"
    for stage in (
        "sampled_contexts",
        "sampled_negatives",
    ):  # else the second repeat would reuse the results of the first
        shutil.rmtree(workspace.settings.store_root / stage, ignore_errors=True)
    sampled = world.materialise(workspace, "sampled_contexts", partition, sample_contexts)
    negative = world.materialise(workspace, "sampled_negatives", partition, sample_negatives)
    rows = sampled.version.read(schema.ELIGIBILITY)
    return {
        "seconds": sampled.seconds + negative.seconds,
        "contexts_seconds": sampled.seconds,
        "negatives_seconds": negative.seconds,
        "latents": rows.height,
        "records": int((rows["status"] == "eligible").sum()),
    }


_OPEN: dict[str, Any] = {}


def _workspace(folder: str) -> Any:
    from latentgloss.workspace import Workspace

    if folder not in _OPEN:
        _OPEN[folder] = Workspace.open(Path(folder) / "latentgloss.toml")
    return _OPEN[folder]


# -- the comparison ------------------------------------------------------------------------------------------------


class Sides:
    """Starts worker processes of both sides."""

    def __init__(self, log: Path, threads: int) -> None:
        self.log, self.threads = log, threads
        self._delphi = DELPHI.made()

    def ours(self) -> Worker:
        """A process in our environment."""
        return Worker([sys.executable, __file__, "_ours"], self.log / "ours.log", self.threads)

    def delphi(self) -> Worker:
        """A process in delphi's environment."""
        return Worker([str(self._delphi), str(HERE / "delphi_side.py")], self.log / "delphi.log", self.threads)


def prepared(sides: Sides, folder: Path, hookpoint: str, n_tokens: int, **options: bool) -> dict[str, Any]:
    """Runs `_prepare` in a separate process, so that it adds to no measured peak memory."""
    with sides.ours() as ours:
        return ours.ask("_prepare", folder=str(folder), hookpoint=hookpoint, n_tokens=n_tokens, **options)


def tuned(sides: Sides, folder: Path, arguments: argparse.Namespace) -> tuple[int, dict[int, int]]:
    """The batch size with which delphi caches fastest, and the tokens/s of each batch size that was tried."""
    hookpoint = arguments.hookpoints[0]
    made = prepared(sides, folder, hookpoint, arguments.tokens)
    with sides.delphi() as delphi:
        rates = {}
        for batch in (max(arguments.batches), *arguments.batches):  # the first is a warm-up
            done = delphi.ask("caching", **_for_delphi(folder, hookpoint, made), n_tokens=arguments.tuning, batch=batch)
            rates[batch] = round(done["tokens"] / done["seconds"])
    return max(rates, key=lambda batch: rates[batch]), rates


def _for_delphi(folder: Path, hookpoint: str, made: dict[str, Any]) -> dict[str, Any]:
    files = {"saes": str(folder / "saes"), "tokens": str(folder / "tokens.npy"), "out": str(folder / "delphi")}
    return {"model": made["model"], "hookpoint": hookpoint, **files}


def caching(sides: Sides, folder: Path, hookpoint: str, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Speed, size and memory of caching, from interleaved repeats of both sides on the same tokens."""
    made = prepared(sides, folder, hookpoint, arguments.tokens)
    with sides.ours() as ours, sides.delphi() as delphi:
        theirs = _for_delphi(folder, hookpoint, made)
        delphi.ask("caching", **theirs, n_tokens=batch * 256, batch=batch)  # a warm-up of both
        ours.ask("_cache", folder=str(folder), hookpoint=hookpoint)
        pairs = []
        for _ in range(arguments.repeats):
            d = delphi.ask("caching", **theirs, n_tokens=made["tokens"], batch=batch)
            o = ours.ask("_cache", folder=str(folder), hookpoint=hookpoint)
            pairs.append((d, o))
    d, o = pairs[-1]
    rates = [(d["tokens"] / d["seconds"], o["tokens"] / o["seconds"]) for d, o in pairs]
    return {
        "ratio": round(statistics.median(o / d for d, o in rates), 2),
        "ratios": [round(o / d, 2) for d, o in rates],
        "delphi_tokens_per_s": round(statistics.median(d for d, _ in rates)),
        "ours_tokens_per_s": round(statistics.median(o for _, o in rates)),
        "delphi_tokens_per_s_without_saving": round(
            statistics.median(d["tokens"] / d["run_seconds"] for d, _ in pairs)
        ),
        "ours_tokens_per_s_with_statistics": round(
            statistics.median(o["tokens"] / o["stage_seconds"] for _, o in pairs)
        ),
        "tokens": {"delphi": d["tokens"], "ours": o["tokens"]},
        "active_pairs": {"delphi": d["pairs"], "ours": o["pairs"]},
        "same_pairs": same_pairs(
            _workspace(str(folder)), f"smollm2/{hookpoint}/bench", folder / "delphi" / hookpoint, LATENTS
        ),
        "delphi_bytes_per_active_latent": round(d["bytes"] / d["pairs"], 2),
        "ours_bytes_per_active_latent": round(o["bytes"] / o["pairs"], 2),
        "ours_bytes_per_active_latent_with_statistics": round(o["bytes_with_statistics"] / o["pairs"], 2),
        "peak_rss_mib": {"delphi": d["peak_rss_mib"], "ours": o["peak_rss_mib"]},
    }


def same_pairs(workspace: Any, partition: str, saved: Path, n_latents: int) -> float:
    """Share of delphi's active (latent, position) pairs that ours include, which shows that both did the same work.

    It is below 1 because delphi compares pre-activations in bfloat16, where the k-th and the next are often equal.
    """
    import numpy as np
    from safetensors.numpy import load_file

    from latentgloss import schema

    pairs = workspace.store.current("activation_cache", partition).read(schema.ACTIVATIONS)
    ours = pairs["position"].to_numpy().astype(np.int64) * n_latents + pairs["latent"].to_numpy()
    theirs = []
    for path in saved.glob("*.safetensors"):
        data = load_file(path)
        row, place, latent = data["locations"].astype(np.int64).T
        theirs.append((row * data["tokens"].shape[1] + place) * n_latents + latent + int(path.stem.split("_")[0]))
    found = np.concatenate(theirs)
    return round(float(np.isin(found, ours).mean()), 4)


def _into_memory(folder: Path) -> None:
    """Reads the files of both sides, so that neither has an advantage from files that the system still caches."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def contexts(sides: Sides, folder: Path, n_tokens: int, repeat: int) -> dict[str, Any]:
    """Time and memory of sampling on both sides, from the same activations, in separate processes."""
    hookpoint = "layers.0"  # the cheapest layer to cache; for sampling, only the firing rates matter
    made = prepared(sides, folder, hookpoint, n_tokens, text=True, caching=True)
    saved = {"out": str(folder / "delphi"), "model": made["model"]}
    with sides.delphi() as delphi:
        size = delphi.ask(
            "write",
            hookpoint=hookpoint,
            tokens=str(folder / "tokens.npy"),
            pairs=str(folder / "pairs.npz"),
            width=LATENTS,
            **saved,
        )
    repeats = []
    for _ in range(repeat):
        _into_memory(folder)
        with sides.delphi() as delphi:
            theirs = delphi.ask(
                "contexts", folder=saved["out"], hookpoint=hookpoint, model=made["model"], latents=SPLIT
            )
            theirs["seconds"] += theirs["open_seconds"]  # because our times include opening files
        _into_memory(folder)
        with sides.ours() as ours:
            same = ours.ask("_contexts", folder=str(folder), hookpoint=hookpoint, settings=SAME_SIZE)
        repeats.append((theirs, same))
    with sides.ours() as ours:
        default = ours.ask("_contexts", folder=str(folder), hookpoint=hookpoint, settings="")
    theirs, same = (sorted(side, key=lambda r: r["seconds"])[len(side) // 2] for side in zip(*repeats, strict=True))
    ratios = [t["seconds"] / t["records"] * s["records"] / s["seconds"] for t, s in repeats]
    results = {"delphi": theirs, "ours_same_size": same, "ours_default": default}
    milliseconds = {name: round(1000 * r["seconds"] / r["latents"], 3) for name, r in results.items()}
    # Both sides skip latents that fire too rarely, by rules of their own. Leaving them out gives the fairer figure.
    kept = {name: round(1000 * r["seconds"] / r["records"], 3) for name, r in results.items()}
    return {
        "tokens": made["tokens"],
        "active_pairs": size["pairs"],
        "ms_per_latent": milliseconds,
        "ms_per_latent_with_contexts": kept,
        "ratio_same_size": round(statistics.median(ratios), 1),
        "ratios_same_size": [round(ratio, 1) for ratio in ratios],
        "ratio_default": round(kept["delphi"] / kept["ours_default"], 1),
        "latents_with_contexts": {name: f"{r['records']} of {r['latents']}" for name, r in results.items()},
        "of_which_delphi_opens_seconds": round(theirs["open_seconds"], 2),
        "delphi_bytes_per_active_latent": round(size["bytes"] / size["pairs"], 2),
        "peak_rss_mib": {"delphi": theirs["peak_rss_mib"], "ours": default["peak_rss_mib"]},
    }


def main() -> None:
    """Runs the comparisons that the command line selects, and records them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens cached per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hookpoints", nargs="*", default=["layers.9", "layers.29"])
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="batch sizes to try for delphi"
    )
    parser.add_argument("--tuning", type=int, default=8192, help="tokens per batch size that is tried")
    parser.add_argument("--context-tokens", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--context-repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a trial of a minute or two; records nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.repeats, arguments.tuning = 8192, 1, 4096
        arguments.batches, arguments.context_tokens, arguments.context_repeats = [4, 16], [50_000], 1
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sides = Sides(root, arguments.threads)
        about = {
            "delphi": [*DELPHI.alone, *DELPHI.packages[:2]],
            "latents": LATENTS,
            "k": K,
            "threads": arguments.threads,
        }
        if arguments.hookpoints:
            batch, rates = tuned(sides, root / "tuning", arguments)
            print(f"delphi's batch size: {batch} of {rates} tokens/s", file=sys.stderr)
            at: dict[str, Any] = {}
            for hookpoint in arguments.hookpoints:
                at[hookpoint] = caching(sides, root / hookpoint, hookpoint, batch, arguments)
                print(f"{hookpoint}: {at[hookpoint]}", file=sys.stderr)
            tuning = {"batch": batch, "tokens_per_s_by_batch": rates}
            if not arguments.quick:
                world.record("vs-delphi-caching", {**about, **tuning, "at": at})
        if arguments.context_tokens:
            of: dict[int, Any] = {}
            for n_tokens in arguments.context_tokens:
                of[n_tokens] = contexts(sides, root / f"contexts-{n_tokens}", n_tokens, arguments.context_repeats)
                print(f"{n_tokens}: {of[n_tokens]}", file=sys.stderr)
            if not arguments.quick:
                world.record("vs-delphi-contexts", {**about, "tokens": of})


if __name__ == "__main__":
    if sys.argv[1:] == ["_ours"]:
        serve({function.__name__: function for function in (_prepare, _cache, _contexts)})
    else:
        main()
