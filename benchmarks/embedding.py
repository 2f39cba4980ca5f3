"""Measures the cost of the embedding score per latent: embedding each distinct context once, or each latent's anew.

    python benchmarks/embedding.py work          texts to embed for 2,000 latents, and the time, both ways
    python benchmarks/embedding.py precision     texts/s in float32 and in bfloat16, and how far cosines differ

`work` reads the store of the settings file (the demo's): the positive and negative test contexts of latents, as the
score uses them. The time for embedding each distinct context once is measured as in use: vectors are computed and
written to an empty table (for a sample, then scaled by count), and read back for each latent. The time for embedding
each latent's contexts anew is computed from their number at the same texts per second, because it would take too long.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import world

if TYPE_CHECKING:
    import numpy as np

    from latentgloss.config.entries import EmbedderSpec
    from latentgloss.workspace import Workspace

SAMPLE = 1024


def run(arguments: argparse.Namespace) -> None:
    """Records texts and time per latent, both ways."""
    import numpy as np

    from latentgloss.embeddings.lance import LanceTables
    from latentgloss.workspace import Workspace

    workspace = Workspace.open(arguments.config)
    name = workspace.settings.embedding.embedders[0]
    partition = arguments.partition
    resolved = workspace.store.current("resolved_saes", partition)
    assert resolved is not None, f"{partition} has not been materialised"
    corpus = workspace.corpus(resolved)
    asked = test_contexts(workspace, partition, arguments.latents)
    anew = sum(len(contexts) for contexts in asked)
    every = np.unique(np.concatenate(asked))
    with tempfile.TemporaryDirectory() as folder:
        workspace.lance = LanceTables(Path(folder))
        vectors = workspace.context_vectors(workspace.registry.sae(partition).model, corpus, name)
        distinct = vectors.distinct(every)
        vectors.embedder.documents(["warm up"])
        sample = np.random.default_rng(0).choice(every, min(SAMPLE, len(every)), replace=False)
        began = time.perf_counter()
        made = vectors.ensure(sample)
        per_text = (time.perf_counter() - began) / made
        # Reading is timed on a table of the real size with the real keys; the vectors' values do not matter.
        filled = vectors._keys(every)
        missing = vectors.table.missing(filled)
        random = np.random.default_rng(1).standard_normal((len(missing), vectors.table.dimension or 0))
        vectors.table.add(missing, random.astype(np.float32))
        began = time.perf_counter()
        for first in range(0, len(asked), 256):  # one block of latents at a time, as in the score
            vectors.get(np.unique(np.concatenate(asked[first : first + 256])))
        reading = time.perf_counter() - began
    once_s = distinct * per_text + reading
    world.record(
        "embedding-work",
        {
            "partition": partition,
            "embedder": name,
            "dtype": workspace.registry.embedder(name).dtype,
            "latents": len(asked),
            "texts_anew": anew,
            "texts_once": distinct,
            "share_of_texts": round(distinct / anew, 4),
            "texts_per_s": round(1 / per_text, 1),
            "sample_embedded": made,
            "seconds_reading": round(reading, 2),
            "ms_per_latent_once": round(1000 * once_s / len(asked), 2),
            "ms_per_latent_anew": round(1000 * anew * per_text / len(asked), 2),
            "share_of_time": round(once_s / (anew * per_text), 4),
        },
    )


def test_contexts(workspace: Workspace, partition: str, latents: int) -> list[np.ndarray]:
    """The test contexts, activating and not, each once, of each of the first `latents` latents that have any."""
    import polars as pl

    from latentgloss import schema

    frames = []
    for stage, table in (("sampled_contexts", schema.CONTEXTS), ("sampled_negatives", schema.NEGATIVES)):
        version = workspace.store.current(stage, partition)
        assert version is not None
        frames.append(version.scan(table).filter(pl.col("split") == "test").select("latent", "context").collect())
    both = frames[0].group_by("latent").agg("context").join(frames[1].group_by("latent").agg("context"), on="latent")
    merged = both.sort("latent").head(latents).select(pl.col("context").list.concat("context_right").list.unique())
    return [row.to_numpy() for row in merged.to_series()]


def precision(arguments: argparse.Namespace) -> None:
    """Records speed and accuracy of MiniLM in float32 and in bfloat16."""
    from latentgloss.config.entries import MINILM
    from latentgloss.corpus.sources import iter_documents

    words = " ".join(document.text for document in iter_documents("python-docs")).split()
    kinds = {"windows": texts(words, 384, 16), "sentences": texts(words, 96, 100)}
    results = precisions(MINILM, kinds, arguments.device, arguments.rounds)
    world.record("embedding-precision", {"rounds": arguments.rounds, "results": results})


def texts(words: list[str], n: int, length: int) -> list[str]:
    """`n` pieces of text, each of `length` consecutive words."""
    import numpy as np

    draw = np.random.default_rng(length)
    return [" ".join(words[i : i + length]) for i in draw.integers(0, len(words) - length, n)]


def precisions(spec: EmbedderSpec, kinds: dict[str, list[str]], device: str, rounds: int) -> dict[str, Any]:
    """Speed (median of interleaved rounds) and differences of cosines, for each kind of texts."""
    import statistics

    import numpy as np

    from latentgloss.models.embedder import SentenceEmbedder

    with tempfile.TemporaryDirectory() as cache:
        embedders = {
            dtype: SentenceEmbedder(spec.model_copy(update={"dtype": dtype}), Path(cache), device=device)
            for dtype in ("float32", "bfloat16")
        }
        results: dict[str, Any] = {}
        for kind, given in kinds.items():
            seconds: dict[str, list[float]] = {dtype: [] for dtype in embedders}
            vectors = {}
            for number in range(rounds + 1):
                for dtype, embedder in embedders.items():
                    began = time.perf_counter()
                    vectors[dtype] = embedder.documents(given)
                    if number:  # the first round is a warm-up
                        seconds[dtype].append(time.perf_counter() - began)
            exact, low = vectors["float32"], vectors["bfloat16"]
            some = slice(0, 1024)
            cosines = np.abs(low[some] @ low[some].T - exact[some] @ exact[some].T)
            results[kind] = {
                "texts": len(given),
                "tokens_mean": round(float(np.mean(embedders["float32"].n_tokens(given))), 1),
                **{f"texts_per_s_{d}": round(len(given) / statistics.median(s), 1) for d, s in seconds.items()},
                "largest_difference_of_cosines": round(float(cosines.max()), 5),
                "mean_difference_of_cosines": round(float(cosines.mean()), 6),
                "largest_distance_to_itself": round(float((1 - (low * exact).sum(1)).max()), 7),
            }
    return results


def main() -> None:
    """Runs the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("work")
    command.add_argument("--config", type=Path, help="settings file; default: the nearest one upward")
    command.add_argument("--partition", default="smollm2/layers.9/topk2048")
    command.add_argument("--latents", type=int, default=2000)
    command.set_defaults(run=run)
    command = commands.add_parser("precision")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--device", default="cpu")
    command.set_defaults(run=precision)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
