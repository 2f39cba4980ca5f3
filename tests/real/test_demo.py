"""The demo on its real parts: SmolLM2, the committed SAEs, Python's documentation, in the repository's own store.

Runs `demo/run.py` (minutes, unless `make demo` has been run: then seconds) and asks what a reader of its table asks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from repository import ROOT

from latentgloss import schema
from latentgloss.config.settings import JudgedSettings
from latentgloss.embeddings.stages import embed_explanations, index_explanations
from latentgloss.pipeline.graph import STAGES
from latentgloss.preview.one_latent import as_it_stands, try_explainer
from latentgloss.protocols import Request
from latentgloss.scores.explained_blocks import score_explanations
from latentgloss.scores.table import SCORERS
from latentgloss.workspace import Workspace

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
SAE = "smollm2/layers.9/topk2048"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    config = {"LATENTGLOSS_CONFIG": str(ROOT / "latentgloss.toml")}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **config}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo():
    first = run(sys.executable, "demo/run.py")
    assert first.returncode == 0, first.stdout + first.stderr
    return Workspace.open(ROOT / "latentgloss.toml")


def report(demo: Workspace) -> pl.DataFrame:
    frames = [demo.store.current("score_report", model).read(schema.REPORT) for model in sorted(demo.registry.models)]
    return pl.concat(frames)


def test_a_second_run_computes_nothing_and_says_so(demo):
    again = run(sys.executable, "demo/run.py")
    assert again.returncode == 0
    assert "nothing to compute" in again.stdout
    of_search = {name for name, stage in STAGES.items() if stage.noun == "embeddings"}  # `make demo-full`
    assert all(state.state == "fresh" for state in demo.states() if state.asset not in of_search)


def test_the_pattern_beats_the_token_table_on_every_trained_sae(demo):
    rows = report(demo).filter(explainer="pattern", scorer="detection", control=False)
    rows = rows.filter(pl.col("partition").str.ends_with("/topk2048"))
    assert rows["partition"].n_unique() == 4
    for metric in ("auroc", "balanced_accuracy"):
        # Of 256 latents the interval of one SAE may reach below 0; of 2,048 (`make demo-full`) it does not.
        assert (rows.filter(metric=metric)["gain_high"] > 0).all()
        assert rows.filter(metric=metric)["gain"].mean() > 0


def test_nulls_are_at_chance_and_the_control_is_close_to_it(demo):
    rows = report(demo).filter(pl.col("scorer") != "embedding", metric="auroc")
    nulls = rows.filter(explainer="null:pattern")
    # Two nulls of 256 latents: what is left of chance is within the intervals.
    detection = nulls.filter(scorer="detection")
    assert ((detection["median_low"] <= 0.51) & (detection["median_high"] >= 0.49)).all()
    assert 0.49 < detection["median"].mean() < 0.51
    # A little below: what another latent's rule names is rather not the token on which this latent fires.
    fuzzing = nulls.filter(scorer="fuzzing")
    assert ((fuzzing["median_low"] <= 0.505) & (fuzzing["median_high"] >= 0.47)).all()
    rows = rows.filter(scorer="detection")
    patterns = rows.filter(explainer="pattern")
    rerandomised = patterns.filter(pl.col("partition").str.starts_with("smollm2-rerandomised/"))["median"].max()
    assert rerandomised < 0.6 < patterns.filter(control=False)["median"].min()


def test_random_directions_score_below_the_sae_and_far_fewer_of_them_can_be_scored(demo):
    """They score well all the same: a direction of a trained model is no noise. What is lost is how many are of use."""
    rows = report(demo).filter(metric="auroc", explainer="pattern", scorer="detection", negatives="random")
    by = {row["partition"]: row for row in rows.iter_rows(named=True)}
    trained, random = by[SAE], by["smollm2/layers.9/random2048"]
    assert 0.6 < random["median"] < trained["median_low"]
    assert random["n_eligible"] / random["n_latents"] < 0.7 < trained["n_eligible"] / trained["n_latents"]


def test_an_embedder_tells_labels_from_those_of_other_latents(demo):
    """Whatever the labels are now; nothing is stored but the vectors of words."""
    judged = JudgedSettings(judges=("embedder:minilm",))
    run = as_it_stands(Workspace(demo.settings.model_copy(update={"detection": judged})), "detection_scores", SAE)
    scorer, explained = SCORERS["detection"], run.input("explanations")
    (judge,) = scorer.judges(run, judged)
    ready = judge.for_explainer("pattern")
    plan = scorer.plan(run, run.resources.corpus(run.input("resolved_saes")), scorer.splits)
    frames = []
    for name in sorted(explained.manifest.blocks):
        if "pattern" in name:
            rows, asked = explained.read(schema.EXPLANATIONS, name), plan.ask(name.partition("-")[0])
            frames.append(score_explanations(scorer, rows, asked, plan.arms, [ready])["scores"])
    scores = pl.concat(frames).filter(status="ok")
    null = scores.filter(pl.col("explainer").str.starts_with("null:"))
    null = null.group_by("latent", "negatives").agg(null=pl.col("auroc").mean())
    both = scores.filter(explainer="pattern").join(null, on=["latent", "negatives"])
    for (arm,), rows in both.group_by("negatives"):
        assert rows.height > 200 and 0.48 < rows["null"].median() < 0.52, arm
        assert rows["auroc"].median() > 0.6 and (rows["auroc"] - rows["null"]).median() > 0.1, arm


def test_every_latent_asked_for_is_accounted_for(demo):
    for partition, sae in demo.registry.saes.items():
        asked = sae.latents.sample
        scores = demo.store.current("detection_scores", partition).read(schema.SCORES)
        per = scores.group_by("explainer", "negatives").agg(pl.col("latent").n_unique(), n=pl.len())
        assert (per["latent"] == asked).all()
        assert (per["n"] == asked).all()
        assert scores.filter(pl.col("status") != "ok", pl.col("score").is_not_null()).is_empty()
        assert scores.filter(pl.col("status") != "ok", pl.col("reason") == "").is_empty()


def test_lineage_verifies_from_a_score_to_documents_and_weights(demo):
    scores = demo.store.current("detection_scores", SAE).read(schema.SCORES)
    latent = scores.filter(status="ok", explainer="pattern")["latent"][0]
    done = run(str(BIN / "latentgloss"), "lineage", SAE, str(latent), "--verify", "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    kinds: set[str] = set()

    def walk(node: dict[str, object]) -> None:
        kinds.add(str(node["kind"]))
        for below in node["inputs"]:  # type: ignore[attr-defined]
            walk(below)

    found = json.loads(done.stdout)
    for root in found if isinstance(found, list) else [found]:
        walk(root)
    assert {"score", "judgements", "explanation", "document", "sae", "model"} <= kinds, sorted(kinds)


def test_the_registry_checks_out(demo):
    done = run(str(BIN / "latentgloss"), "saes", "check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_readme_says_to_type_works(demo):
    """Its Python block, and every `latentgloss` command that reads."""
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    done = run(sys.executable, "-c", block)
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"^\.venv/bin/latentgloss (.*?)(?: +#.*)?$", readme, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        done = run(str(BIN / "latentgloss"), *command.split())
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout


def test_no_text_is_shared_between_shown_and_scored(demo):
    """Over the real corpus: no 13 tokens in a row of any test context occur in explain or select."""
    import numpy as np

    corpus = demo.corpus(demo.store.current("resolved_saes", SAE))
    tokens = np.asarray(corpus.tokens)
    grams = np.lib.stride_tricks.sliding_window_view(tokens, 13, axis=1)[:, 1:]  # position 0 is BOS
    shown = {row.tobytes() for row in grams[corpus.split_of_sequence < 2].reshape(-1, 13)}
    contexts = demo.store.current("sampled_contexts", SAE).scan(schema.CONTEXTS).filter(split="test")
    ids = contexts.select("context").unique().collect()["context"].to_numpy()
    windows = corpus.contexts(ids, 32)
    first = ids % (tokens.shape[1] // 32) == 0
    for window, has_bos in zip(windows, first, strict=True):
        for start in range(1 if has_bos else 0, 20):
            assert window[start : start + 13].tobytes() not in shown


def test_every_scorer_scored_every_sae(demo):
    rows = report(demo).filter(explainer="pattern")
    assert set(rows["scorer"]) == {"detection", "fuzzing", "embedding"}
    assert set(rows.group_by("scorer").agg(pl.col("partition").n_unique())["partition"]) == {len(demo.registry.saes)}
    assert rows.filter(pl.col("n_scored") == 0).is_empty()
    assert rows.select("median", "median_low", "median_high").null_count().sum_horizontal().item() == 0


def test_the_language_model_explained_a_latent_of_every_sae_at_the_first_attempt(demo):
    """Held to a line, it needs no repair: what was taken is what is counted beforehand."""
    model = demo.language_model("smollm2-instruct")
    # By whomever it was asked first: the store may have been asked more, by other settings or `latentgloss try`.
    single = "SELECT prompt_tokens FROM ledger WHERE state = 'answered' AND stage IN ('explanations', '')"
    asked = {tokens for (tokens,) in demo.ledger.database.rows(single)}
    for partition in demo.registry.saes:
        rows = demo.store.current("explanations", partition).read(schema.EXPLANATIONS).filter(explainer="llm")
        (row,) = rows.filter(pl.col("prompt_tokens") > 0).iter_rows(named=True)
        assert row["status"] == "ok", row["reason"]
        tried = try_explainer(demo, partition, row["latent"], "llm", dry=True)
        assert tried.prompt_sha256 == row["prompt_sha256"]
        assert model.count_tokens([Request(tried.messages, 1)]) == [row["prompt_tokens"]]
        assert row["prompt_tokens"] in asked


def test_search_finds_latents_by_meaning(demo):
    """Over one SAE: `make demo-full` makes the index of all of them."""
    for stage, partition, runner in (
        ("explanation_embeddings", SAE, embed_explanations),
        ("search_index", "smollm2", index_explanations),
    ):
        assert [outcome.error for outcome in demo.materialise(stage, [partition], runner)] == [None]
    found = run(str(BIN / "latentgloss"), "search", "raising an error", "--model", "smollm2", "--json")
    assert found.returncode == 0, found.stderr
    hits = json.loads(found.stdout)
    assert len(hits) == 10
    assert sum(bool(re.search("rais|error|exception", hit["explanation"], re.IGNORECASE)) for hit in hits[:5]) >= 4
    assert all(0 <= score <= 1 for hit in hits for score in hit["scores"].values())
