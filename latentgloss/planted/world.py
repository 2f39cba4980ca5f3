"""A workspace of planted truth: corpus, model, SAE, registry and settings, on which the real stages run.

What belongs here: `planted_workspace`, which writes it. The stages treat it like any other workspace; only the model's
forward pass uses the rules.
"""

from __future__ import annotations

import json
from pathlib import Path

from latentgloss.planted.text import documents
from latentgloss.workspace import Workspace

MODEL, SAE = "planted", "planted/layers.1/rules"
"""Partitions of the model and of its SAE."""
DOCUMENTS = 1600
"""About 325,000 tokens; every eligible latent then has more than a hundred test windows."""

MACHINE = """\
[machine]
device = "cpu"
threads = 1
workers = 1
batch_tokens = 65536
model_cache = "cache"
"""
"""The table `[machine]` of the settings."""


def planted_workspace(folder: Path, settings: str = "", n_documents: int = DOCUMENTS) -> Workspace:
    """Writes everything that a run needs below `folder` and opens the workspace. Computes nothing.

    `settings`: text of latentgloss.toml without its table `[machine]`. A process that opens a workspace written by
    another process must call `model.register` first.
    """
    from latentgloss.planted import model

    model.register()
    lines = (json.dumps({"text": text}) + "\n" for text in documents(n_documents))
    _write(folder / "corpus.jsonl", "".join(lines))
    model.write_model(folder / "model")
    model.write_sae(folder / "saes" / "rules")
    _write(
        folder / "registry" / "models" / "planted.toml",
        f'name = "{MODEL}"\nsource = "path:../../model"\ndtype = "float32"\n\n'
        '[corpus]\nsource = "path:../../corpus.jsonl"\n',
    )
    declare(folder, SAE)
    _write(folder / "latentgloss.toml", f"{settings}\n{MACHINE}")
    return Workspace.open(folder / "latentgloss.toml")


def declare(folder: Path, partition: str, *, weights: str = "rules", extra: str = "") -> None:
    """Adds an SAE to the registry of a planted workspace. Its weights are in `saes/<weights>`.

    `extra`: further lines of the registry entry.
    """
    model, hookpoint, name = partition.split("/")
    _write(
        folder / "registry" / "saes" / f"{hookpoint}.{name}.toml",
        f'model = "{model}"\nhookpoint = "{hookpoint}"\nname = "{name}"\nformat = "saelens"\n'
        f'source = "path:../../saes/{weights}"\n{extra}',
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
