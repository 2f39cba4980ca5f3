"""Measures the precision of the first five hits of `latentgloss search`, judged on test contexts.

    python benchmarks/search.py                  queries of demo/queries.toml on the store of the settings file

It searches all explanations, then only those of `pattern`, then only those of `token_table`. Each is a separate result.

A *hit* is a latent; only its first explanation among the search results counts. It is *relevant* if the query's regular
expression matches the text around its strongest token (from five tokens before to five after) in at least half of its
ten strongest test contexts (or of all, if it has five to nine). Neither explanations nor the search see test contexts.
The *base rate* is the share of relevant latents among all eligible latents of the same SAEs: the expected precision of
five random latents.

The result has, for each search mode, the mean precision at five, the mean base rate, and the mean of their paired
difference, each with a 95 % interval from resampling queries (hits of one query are not independent, and each query has
one base rate). The *ceiling* is the precision of a perfect search, which is below 1 because some queries have fewer
than five relevant latents. Control SAEs are left out.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import world

if TYPE_CHECKING:
    import numpy as np

    from latentgloss.workspace import Workspace

AT, TOP, FEWEST, AROUND, HALF = 5, 10, 5, 5, 0.5
MODES = ("vector", "hybrid", "text")
SEARCHED = ("all", "pattern", "token_table")
QUERIES = world.ROOT / "demo" / "queries.toml"

Texts = dict[tuple[str, int], list[str]]
"""For each (partition, latent), the texts around its strongest token in its strongest test contexts."""


def strongest_texts(workspace: Workspace) -> Texts:
    """The texts of every eligible latent of every SAE that is not a control and has a search index."""
    import numpy as np
    import polars as pl

    from latentgloss import schema
    from latentgloss.models.tokenizer import load_tokenizer

    found: Texts = {}
    length = workspace.settings.contexts.length
    for model in workspace.store.partitions("search_index"):
        tokenizer = load_tokenizer(workspace.registry.model(model), workspace.model_cache)
        version = workspace.store.current("search_index", model)
        assert version is not None
        for partition in version.json("index.json")["rows"]:
            resolved = workspace.store.current("resolved_saes", partition)
            sampled = workspace.store.current("sampled_contexts", partition)
            if workspace.registry.sae(partition).control or resolved is None or sampled is None:
                continue
            rows = (
                sampled.scan(schema.CONTEXTS)
                .filter(pl.col("split") == "test")
                .sort("latent", "max_activation", "context", descending=[False, True, False])
                .group_by("latent", maintain_order=True)
                .head(TOP)
                .with_columns(at=pl.col("offsets").list.get(pl.col("activations").list.arg_max()))
                .collect()
            )
            tokens = workspace.corpus(resolved).contexts(rows["context"].to_numpy(), length)
            at = rows["at"].to_numpy().astype(np.int64)
            near = [row[max(0, a - AROUND) : a + AROUND + 1].tolist() for row, a in zip(tokens, at, strict=True)]
            texts = tokenizer.batch_decode(near, clean_up_tokenization_spaces=False)
            for latent, text in zip(rows["latent"].to_list(), texts, strict=True):
                found.setdefault((partition, latent), []).append(text)
    return {key: texts for key, texts in found.items() if len(texts) >= FEWEST}


def relevant(texts: list[str], pattern: re.Pattern[str]) -> bool:
    """Whether the pattern matches at least half of the texts."""
    return sum(pattern.search(text) is not None for text in texts) >= HALF * len(texts)


def hits(workspace: Workspace, text: str, mode: Any, explainer: str | None, judged: Texts) -> list[tuple[str, int]]:
    """The first five latents with texts among the search results, best first."""
    from latentgloss.workspace.search import open_index

    index, embedder = open_index(workspace)
    vector = None if mode == "text" else embedder.queries([text])[0]
    filters = {"explainer": explainer} if explainer else {}
    found = index.search(text, vector, mode=mode, limit=200, filters=filters)
    latents = dict.fromkeys((hit.partition, hit.latent) for hit in found)
    return [key for key in latents if key in judged][:AT]


def interval(values: np.ndarray) -> dict[str, float]:
    """The mean over queries and its percentile bootstrap interval (95 %)."""
    import numpy as np
    from scipy import stats

    found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return {"mean": round(float(values.mean()), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def main() -> None:
    """Measures the explainers that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings file; default: the nearest one upward")
    parser.add_argument(
        "--explainer", action="append", help=f"explainer to search, or all; default: {', '.join(SEARCHED)}"
    )
    arguments = parser.parse_args()

    from latentgloss.workspace import Workspace

    workspace = Workspace.open(arguments.config)
    judged = strongest_texts(workspace)
    for explainer in arguments.explainer or SEARCHED:
        measure(workspace, explainer, judged)


def measure(workspace: Workspace, explainer: str, judged: Texts) -> None:
    """Searches the explanations of one explainer (or `all`) and records how often the first hits are relevant."""
    import numpy as np

    queries = [(q["text"], re.compile(q["pattern"])) for q in tomllib.loads(QUERIES.read_text())["query"]]
    right_ones = np.array([sum(relevant(texts, pattern) for texts in judged.values()) for _, pattern in queries])
    base = right_ones / len(judged)
    per_query: list[dict[str, Any]] = [
        {"query": text, "relevant_latents": int(n)} for (text, _), n in zip(queries, right_ones, strict=True)
    ]
    modes = {}
    for mode in MODES:
        precision = []
        for (text, pattern), row in zip(queries, per_query, strict=True):
            found = hits(workspace, text, mode, None if explainer == "all" else explainer, judged)
            right = sum(relevant(judged[key], pattern) for key in found)
            row[mode] = f"{right} of {len(found)}"
            precision.append(right / AT)  # missing hits count as irrelevant
        values = np.array(precision)
        modes[mode] = {"precision_at_5": interval(values), "above_base_rate": interval(values - base)}
    world.record(
        f"search-{explainer}",
        {
            "embedder": workspace.settings.search.embedder,
            "explainer": explainer,
            "saes": sorted({partition for partition, _ in judged}),
            "latents_judged": len(judged),
            "queries": len(queries),
            "relevant_if": f"pattern within {AROUND} tokens of the strongest, in >= {HALF} of {TOP} test contexts",
            "base_rate": interval(base),
            "ceiling": interval(np.minimum(right_ones, AT) / AT),
            "modes": modes,
            "per_query": per_query,
        },
    )


if __name__ == "__main__":
    main()
