"""Stratum `similar` on the tiny workspace: the workspace's own embedder, vectors kept in LanceDB."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import tiny

from latentgloss import schema
from latentgloss.workspace import Workspace

P = tiny.SPARSIFY
STAGES = ["tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives"]


def test_similar_negatives_are_nearer_to_what_activates_than_others(tmp_path: Path) -> None:
    strata = f'[negatives]\nstrata = {json.dumps(schema.STRATA)}\nnearest = 20\nembedder = "tiny"\n'
    workspace = tiny.computed_workspace(tmp_path, tiny.SETTINGS.replace("[negatives]\n", strata))
    assert workspace.settings.negatives.nearest == 20, "the tiny settings have no table of negatives"
    outcomes = tiny.run_all(workspace, STAGES)
    assert not [o.error for o in outcomes if o.error]
    version = workspace.store.current("sampled_negatives", P)
    resolved = workspace.store.current("resolved_saes", P)
    sampled = workspace.store.current("sampled_contexts", P)
    assert version is not None and resolved is not None and sampled is not None
    assert version.manifest.facts["embedder"]["name"] == "tiny"
    assert version.manifest.recipe["external"]["embedder"] == workspace.negatives_embedder()
    vectors = workspace.negative_vectors(resolved)
    negatives = version.read(schema.NEGATIVES).filter(split="test")
    nearer = []
    for (latent,), positives in sampled.read(schema.CONTEXTS).filter(split="test").group_by("latent"):
        mean = vectors.get(positives["context"].to_numpy()).mean(axis=0)
        cosine = {
            stratum: float((vectors.get(rows["context"].to_numpy()) @ mean).mean())
            for (stratum,), rows in negatives.filter(pl.col("latent") == latent).group_by("stratum")
        }
        if {"similar", "random"} <= cosine.keys():
            nearer.append(cosine["similar"] > cosine["random"])
    assert len(nearer) > 3
    assert np.mean(nearer) > 0.9


def test_each_embedder_is_asked_about_the_windows_that_another_chose(tmp_path: Path) -> None:
    """Where one of two that score chooses, the arm is unfair to that one alone."""
    strata = '[negatives]\nstrata = ["similar", "random"]\nnearest = 20\nembedder = "tiny"\n'
    settings = tiny.SETTINGS.replace("[negatives]\n", strata).replace('["tiny"]', '["tiny", "other"]')
    folder = tiny.computed_workspace(tmp_path, settings).settings.folder
    tiny.write_embedder(folder / "other", d=16, seed=9)
    (folder / "registry/embedders/other.toml").write_text(
        'name = "other"\nsource = "path:../../other"\nmax_tokens = 64\ndtype = "float32"\n'
    )

    def scored() -> set[tuple[str, str]]:
        """(embedder, negatives) of scores."""
        workspace = Workspace.open(folder / "latentgloss.toml")
        outcomes = tiny.run_all(workspace, [*STAGES, "explanations", "embedding_scores"])
        assert not [o.error for o in outcomes if o.error]
        version = workspace.store.current("embedding_scores", P)
        assert version is not None
        judged = version.read(schema.JUDGEMENTS)
        rows = version.read(schema.SCORES)
        assert set(judged.select("embedder", "negatives").unique().iter_rows()) == set(
            rows.filter(pl.col("negatives") != schema.POPULATION).select("embedder", "negatives").unique().iter_rows()
        )
        return set(rows.filter(status="ok").select("embedder", "negatives").iter_rows())

    assert scored() == {("tiny", "random"), ("other", "random"), ("other", "similar"), ("other", "population")}

    path = folder / "latentgloss.toml"
    path.write_text(path.read_text().replace('embedder = "tiny"\n', 'embedder = "other"\n', 1))
    assert scored() == {("tiny", "random"), ("other", "random"), ("tiny", "similar"), ("tiny", "population")}

    path.write_text(path.read_text().replace('["tiny", "other"]', '["tiny"]'))
    assert scored() == {("tiny", "random"), ("tiny", "similar"), ("tiny", "population")}
