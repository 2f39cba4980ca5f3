"""The speed of embedding on a GPU, and whether a text's vector depends on its batch.

What belongs here: the part `embedding` of `gpu.py`.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import embedding
from gpu_worlds import Bench


def embeddings(bench: Bench) -> dict[str, Any]:
    """Texts/s in float32 and bfloat16, and whether a text's vector has the same bits in any batch."""
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
    """A folder with MiniLM's configuration and tokenizer (the package's, or those in `--minilm`) and random weights."""
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
