"""Measures the scores of explanations that are true, too general, too specific, or another latent's.

    python benchmarks/planted.py                the table of docs/methods.md, Planted truth, as Markdown

The planted corpus goes through the real stages, and a perfect judge answers from the meaning of an explanation's text.
Values are means over the latents of a kind. Simulation is not a stage yet. Its column is Pearson's r between the
activations and the strengths that the text implies for each token, over the tokens of activating and random test
windows.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import world as benchmark

from latentgloss import schema
from latentgloss.contexts.marks import dense_activations, masked_tokens
from latentgloss.planted import judges, meaning, rules
from latentgloss.planted import world as planted
from latentgloss.planted.labels import Label
from latentgloss.workspace import Workspace

SETTINGS = """\
[negatives]
strata = ["neighbour", "same_document", "random"]

[explanations]
explainers = ["truth", "general", "specific", "null:truth"]

[detection]
judges = ["perfect"]

[fuzzing]
judges = ["perfect"]

"""
RUNNERS = {
    "tokenized_corpus": "corpus.stages:tokenize_corpus",
    "resolved_saes": "saes.stages:resolve_saes",
    "activation_cache": "activations.stages:cache_activations",
    "sampled_contexts": "contexts.stages:sample_contexts",
    "sampled_negatives": "contexts.stages:sample_negatives",
    "explanations": "explanations.stages:explain",
    "detection_scores": "scores.stages:score_detection",
    "fuzzing_scores": "scores.stages:score_fuzzing",
}
EXPLAINERS = {"truth": "true", "general": "too general", "specific": "too specific", "null:truth": "another's"}
COLUMNS = ("detection random", "detection same_document", "detection neighbour", "fuzzing donor", "simulation")


def computed(folder: Path) -> Workspace:
    """A workspace with the planted corpus in which all stages have run."""
    workspace = planted.planted_workspace(folder, SETTINGS)
    with judges.installed():
        for stage, runner in RUNNERS.items():
            module, _, name = runner.partition(":")
            partition = planted.MODEL if stage == "tokenized_corpus" else planted.SAE
            benchmark.materialise(
                workspace, stage, partition, getattr(importlib.import_module(f"latentgloss.{module}"), name)
            )
    return workspace


def measured(workspace: Workspace) -> pl.DataFrame:
    """A table of kind, explainer, and the mean of each of `COLUMNS` over the latents of the kind."""
    kinds = {rule.latent: rule.kind for rule in rules.rules()}
    tables = [_current(workspace, f"{scorer}_scores").read(schema.SCORES) for scorer in ("detection", "fuzzing")]
    scores = pl.concat(tables).filter(status="ok")
    scores = scores.select(
        "latent", "explainer", column=pl.format("{} {}", "scorer", "negatives"), value=pl.col("score")
    )
    both = pl.concat([scores, _simulated(workspace)])
    both = both.with_columns(kind=pl.col("latent").replace_strict(kinds))
    means = both.group_by("kind", "explainer", "column").agg(pl.col("value").mean())
    wide: pl.DataFrame = means.pivot("column", index=["kind", "explainer"], values="value")
    return wide.select("kind", "explainer", *COLUMNS)


def _simulated(workspace: Workspace) -> pl.DataFrame:
    """Pearson's r of simulation, per latent and explainer."""
    contexts = _current(workspace, "sampled_contexts").read(schema.CONTEXTS).filter(split="test")
    negatives = _current(workspace, "sampled_negatives").read(schema.NEGATIVES).filter(split="test", stratum="random")
    explained = _current(workspace, "explanations").read(schema.EXPLANATIONS).filter(status="ok")
    corpus = workspace.corpus(_current(workspace, "resolved_saes"))
    length = workspace.settings.contexts.length
    masked = masked_tokens(_current(workspace, "activation_cache"), corpus, length)
    rows: list[dict[str, Any]] = []
    for (latent,), texts in explained.group_by("latent"):
        positive = contexts.filter(latent=latent)
        silent = negatives.filter(latent=latent)["context"].to_numpy()
        at = np.concatenate([positive["context"].to_numpy(), silent])
        active = np.zeros((len(at), length), dtype=np.float32)
        active[: positive.height] = dense_activations(positive, length)
        for explainer, text in texts.select("explainer", "explanation").iter_rows():
            label = meaning.read(text)
            assert isinstance(label, Label)
            said = meaning.strength(label, corpus.contexts(at, length))[~masked[at]]
            r = np.corrcoef(active[~masked[at]], said)[0, 1] if said.std() else 0.0
            rows.append({"latent": latent, "explainer": explainer, "column": "simulation", "value": float(r)})
    return pl.DataFrame(
        rows, schema={"latent": pl.UInt32, "explainer": pl.String, "column": pl.String, "value": pl.Float64}
    )


def _current(workspace: Workspace, stage: str) -> Any:
    return workspace.store.current(stage, planted.SAE)


def markdown(table: pl.DataFrame) -> str:
    """The table in Markdown."""
    heads = ["latents", "explanation", *(c.replace("_", " ") for c in COLUMNS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    order = list(dict.fromkeys(rule.kind for rule in rules.rules()))
    by = {(r["kind"], r["explainer"]): r for r in table.iter_rows(named=True)}
    for kind in order:
        for explainer, name in EXPLAINERS.items():
            row = by.get((kind, explainer))
            if row is not None:
                shown = kind if explainer == "truth" else ""
                lines.append(f"| {shown} | {name} | " + " | ".join(_shown(row[c]) for c in COLUMNS) + " |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("0.", ".", 1).replace("-.00", ".00")


def main() -> None:
    """Prints the table and, without `--no-record`, records it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-record", action="store_true", help="print the table only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table = measured(computed(Path(name)))
    if not arguments.no_record:
        rows = table.sort("kind", "explainer").with_columns(pl.selectors.float().round(4))
        benchmark.record("planted", {"rows": list(rows.iter_rows(named=True))})
    print(markdown(table))


if __name__ == "__main__":
    main()
