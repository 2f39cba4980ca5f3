"""Explainers and judges that ask a language model, in the tiny world: what is shown, what is read, what is stored."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import Scripted, asked_of, passages_of, reader

from latentgloss import schema
from latentgloss.config.settings import ImportedSettings
from latentgloss.errors import ExplainerError, SettingsError
from latentgloss.explanations.explainers.imported import read_file
from latentgloss.lineage.trace import trace
from latentgloss.llm.prompts.templates import prompt
from latentgloss.protocols import Reply
from latentgloss.workspace import Workspace

ASKING = ("llm", "llm_cot", "contrastive", "best_of_k")
SETTINGS = (
    tiny.SETTINGS.replace("test = 30", "test = 15")  # most of the time goes into asking judges about these
    + """
[explanations]
explainers = ["pattern", "llm", "llm_cot", "contrastive", "best_of_k", "imported", "null:llm"]
nulls = 2
model = "scripted"
imported.file = "imported/{sae}.csv"
llm.contexts = 12
llm.silent = 6
best_of_k.k = 2

[detection]
judges = ["executed", "llm:scripted"]

[fuzzing]
judges = ["llm:scripted", "llm:lazy"]
"""
)
STAGES = [
    name
    for name in tiny.RUNNERS
    if name.split("_")[0] not in ("embedding", "context", "explanation", "search", "score")
]


def answer(request):
    """As `reader`; latent after latent is refused, unreadable, or in need of a second try."""
    said = reader(request)
    if not said.startswith("EXPLANATION"):
        return said
    place = sum(asked_of(request).encode()) % 10
    if place == 0:
        return Reply("refused", "content filter")
    if place == 1:
        return "I think it is about words."
    if place == 2 and request.messages[-1].content == asked_of(request):
        return "Sure! " + said
    return said


@pytest.fixture(scope="module")
def model():
    return Scripted(answer)


def world(folder):
    """Nothing of it is computed under `SETTINGS` yet. Most of the time goes into asking, so about fewer latents."""
    tiny.computed_workspace(folder, SETTINGS)
    tiny.register(folder, tiny.SPARSIFY, "sparsify", extra="latents = {start = 0, stop = 160}\n")
    (folder / "imported").mkdir()
    (folder / "imported" / "words.csv").write_text('latent,explanation\n0,"A word, from elsewhere"\n4,\n')
    return Workspace.open(folder / "latentgloss.toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    workspace = world(tmp_path_factory.mktemp("asked"))
    workspace._language_models |= {"scripted": model, "lazy": Scripted(lambda r: "[1]", name="lazy")}
    assert not [o.error for o in tiny.run_all(workspace, STAGES) if o.error]
    return workspace


def explanations(workspace, partition=tiny.SPARSIFY):
    return workspace.store.current("explanations", partition).read(schema.EXPLANATIONS)


def test_every_latent_has_a_row_of_every_explainer_whatever_was_replied(finished):
    rows = explanations(finished)
    eligibility = finished.store.current("sampled_contexts", tiny.SPARSIFY).read(schema.ELIGIBILITY)
    assert rows["explainer"].n_unique() == 8
    for (_,), group in rows.group_by("explainer"):
        assert sorted(group["latent"]) == sorted(eligibility["latent"])
    asked = rows.filter(pl.col("explainer").is_in(ASKING), pl.col("prompt_sha256").is_not_null())
    assert {"ok", "refused", "parse_failed"} <= set(asked["status"])
    assert asked.filter(status="ok")["explanation"].str.starts_with("The words").all()
    assert (asked.filter(pl.col("status") != "ok")["explanation"] == "").all()
    assert (asked.filter(pl.col("status") != "ok")["reason"] != "").all()
    assert (asked["model"] == "scripted").all() and asked["reply"].null_count() == 0
    assert (asked["cost_usd"] > 0).all() and (asked["prompt_tokens"] > 0).all()
    assert asked.filter(explainer="llm", status="parse_failed")["reply"].unique().to_list() == [
        "I think it is about words."
    ]
    assert asked.filter(explainer="llm", status="parse_failed")["cost_usd"].unique().to_list() == [0.002]
    # A latent is asked about if and only if it is eligible.
    assert set(asked["latent"]) == set(eligibility.filter(status="eligible")["latent"])


def test_a_planted_word_is_what_the_reader_sees_marked(finished):
    signal, _ = tiny.words()
    rows = explanations(finished).filter(explainer="llm", status="ok")
    named = [signal[r["latent"] // 4] in r["explanation"] for r in rows.iter_rows(named=True) if r["latent"] < 128]
    assert len(named) > 15 and np.mean(named) > 0.95


def test_what_was_shown_is_the_beginning_of_the_explain_sample(finished, model):
    contexts = finished.store.current("sampled_contexts", tiny.SPARSIFY).read(schema.CONTEXTS)
    explain = contexts.filter(split="explain").sort("latent", "order")
    for row in explanations(finished).filter(explainer="llm", status="ok").iter_rows(named=True):
        assert row["context_ids"] == explain.filter(latent=row["latent"])["context"].to_list()[:12]
    one = next(asked_of(r) for r in model.seen if prompt("explain").shared[0] == r.messages[0])
    assert len(passages_of(one)) == 12
    for line in one.split("\n"):
        assert re.fullmatch(r"\d+\. ⟦.*<<.+>>.*⟧ \((10|[1-9])(, (10|[1-9]))*\)", line)
        assert line.count("<<") == line.rpartition("⟧")[2].count(",") + 1


def test_contrastive_shows_silent_contexts_of_every_stratum_in_turn(finished, model):
    negatives = finished.store.current("sampled_negatives", tiny.SPARSIFY).read(schema.NEGATIVES)
    explain = negatives.filter(split="explain")
    row = explanations(finished).filter(explainer="contrastive", status="ok").row(0, named=True)
    shown = explain.filter(pl.col("latent") == row["latent"], pl.col("context").is_in(row["context_ids"]))
    assert sorted(shown["stratum"]) == ["random"] * 3 + ["same_document"] * 3
    assert shown["order"].max() == 2
    one = next(asked_of(r) for r in model.seen if prompt("contrastive").shared[0] == r.messages[0])
    active, silent = one.split("\nSilent:\n")
    assert len(passages_of(active)) == 12 and len(passages_of(silent)) == 6 and "<<" not in silent


def test_imported_rows(finished):
    rows = explanations(finished).filter(explainer="imported")
    mine = {r["latent"]: r for r in rows.iter_rows(named=True)}
    assert (mine[0]["status"], mine[0]["explanation"]) == ("ok", "A word, from elsewhere")
    assert mine[4]["status"] == "not_imported" and "0 characters" in mine[4]["reason"]
    assert "no explanation of latent 8" in mine[8]["reason"]
    other = explanations(finished, tiny.SAELENS).filter(explainer="imported")
    assert set(other["status"]) <= {"not_imported", "rare", "dead", "dense", "one_document"}


def test_nulls_of_what_a_model_said_cost_nothing(finished):
    null = explanations(finished).filter(explainer="null:llm", status="ok")
    assert null.height > 10 and null["cost_usd"].sum() == 0
    assert (null["source_latent"] != null["latent"]).all()


def test_two_judges_stand_side_by_side_and_the_reader_is_right(finished):
    scores = finished.store.current("detection_scores", tiny.SPARSIFY).read(schema.SCORES)
    good = scores.filter(judge="scripted", negatives="random", status="ok")
    assert set(scores["judge"]) == {"executed", "scripted"}
    assert good.filter(explainer="llm")["score"].median() > 0.9
    assert abs(good.filter(explainer="null:llm")["score"].median() - 0.5) < 0.1
    assert good.filter(explainer="llm")["specificity"].median() > 0.3
    # The same sentence read and run.
    pattern = scores.filter(explainer="pattern", status="ok")
    assert set(pattern["judge"]) == {"executed", "scripted"}
    assert (
        scores.filter(explainer="llm", judge="executed")["score"].null_count()
        == scores.filter(explainer="llm", judge="executed").height
    )


def test_a_judge_that_decides_is_asked_about_test_alone_five_at_a_time(finished):
    for stage in ("detection_scores", "fuzzing_scores"):
        found = finished.store.current(stage, tiny.SPARSIFY).read(schema.JUDGEMENTS)
        told = found.filter(judge="scripted", status="ok")
        assert told.height and set(told["split"]) == {"test"}
        assert told["prompt"].null_count() == 0 and told["prediction"].null_count() == 0
        keys = ["latent", "explainer", "negatives"]
        groups = told.group_by(*keys, "prompt").agg(pl.len(), pl.col("context").n_unique().alias("distinct"))
        assert groups["len"].max() == 5
        assert (groups["len"] == groups["distinct"]).all()  # never both versions of a context
        assert told.filter(explainer="llm")["truth"].n_unique() == 2


def test_an_unreadable_judge_is_unscored_with_a_reason(finished):
    stage = finished.store.current("fuzzing_scores", tiny.SPARSIFY)
    lazy = stage.read(schema.JUDGEMENTS).filter(judge="lazy").filter(pl.col("status") != "no_donor")
    full = lazy.filter(status="parse_failed")
    assert full.height > 0.9 * lazy.height  # the rest are last prompts of a single context
    assert full["prediction"].null_count() == full["evidence"].null_count() == full.height
    assert full["reason"].str.contains("1 numbers and there are").all()
    scores = stage.read(schema.SCORES).filter(judge="lazy", explainer="llm")
    assert "ok" not in set(scores["status"])


def test_what_was_spent_is_in_the_record(finished, model):
    detection = finished.store.current("detection_scores", tiny.SPARSIFY).manifest.facts["spent"]
    assert set(detection) == {"scripted"}, "who computes takes nothing"
    assert detection["scripted"]["cost_usd"] > 1 and detection["scripted"]["prompt_tokens"] > 100_000
    rows = explanations(finished)
    spent = finished.store.current("explanations", tiny.SPARSIFY).manifest.facts["spent"]
    assert spent["cost_usd"] == pytest.approx(rows["cost_usd"].sum())


def test_fuzzing_tells_right_marks_from_wrong_ones(finished):
    scores = finished.store.current("fuzzing_scores", tiny.SPARSIFY).read(schema.SCORES)
    assert scores.filter(judge="scripted", explainer="llm", status="ok")["score"].median() > 0.9


def shared_prefix(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_successive_prompts_share_everything_up_to_the_contexts(finished, model):
    """What a server need not compute again: with windows of 16 tokens three quarters of the characters."""
    texts = ["\n".join(m.content for m in r.messages) for r in model.seen if asked_of(r).startswith("Description")]
    shares = []
    for before, now in pairwise(texts):
        shared = shared_prefix(before, now)
        shares.append(shared / len(now))
        until = [text.rindex("Passages:\n1. ⟦") for text in (before, now)]
        if before[: until[0]] == now[: until[1]]:
            assert shared >= until[0]
    same = np.mean([a[: a.rindex("Passages")] == b[: b.rindex("Passages")] for a, b in pairwise(texts)])
    print(f"shared with the prompt before: {np.median(shares):.3f}; same explanation as before: {same:.3f}")
    assert np.median(shares) > 0.7 and same > 0.8


def test_a_score_of_a_reader_can_be_traced_and_verified(finished):
    rows = explanations(finished).filter(explainer="llm", status="ok")
    for scorer, explainer in (("detection", "llm"), ("fuzzing", "contrastive")):
        root = trace(finished, tiny.SPARSIFY, rows["latent"][0], scorer=scorer, explainer=explainer, verify=True)
        assert root.broken() == []


def test_nothing_is_asked_again_and_nothing_depends_on_how_much_is_in_flight(finished, model, tmp_path):
    before = len(model.seen)
    outcomes = tiny.run_all(finished, STAGES)
    assert {o.status for o in outcomes} == {"reused"} and len(model.seen) == before
    workspace = world(tmp_path)
    workspace._language_models |= {
        "scripted": Scripted(answer, ahead=200),
        "lazy": Scripted(lambda r: "[1]", name="lazy", ahead=1),
    }
    assert not [o.error for o in tiny.run_all(workspace, STAGES) if o.error]
    for stage in ("explanations", "detection_scores", "fuzzing_scores"):
        one, two = (w.store.current(stage, tiny.SPARSIFY).manifest for w in (finished, workspace))
        assert one.data_version == two.data_version


def test_another_prompt_model_or_file_makes_only_what_it_decides_stale(finished, model, monkeypatch):
    from latentgloss.llm.prompts import templates

    def stale():
        return {
            s.asset: s.because
            for s in finished.states([tiny.SPARSIFY])
            if s.state == "stale" and "input" not in s.because
        }

    assert not stale()
    monkeypatch.setattr(templates, "prompt", templates.prompt)
    changed = templates.parsed("fuzzing", "=== system\nx\n=== user\n$explanation $passages\n=== repair\n$problem $n\n")
    monkeypatch.setattr(
        "latentgloss.scores.judges.reading.prompt", lambda name: changed if name == "fuzzing" else prompt(name)
    )
    assert set(stale()) == {"fuzzing_scores"} and "prompt" in stale()["fuzzing_scores"]
    monkeypatch.undo()
    file = finished.settings.folder / "imported" / "words.csv"
    kept = file.read_text()
    file.write_text(kept + "8,new\n")
    assert set(stale()) == {"explanations"} and "imported" in stale()["explanations"]
    file.write_text(kept)


# Settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('[explanations]\nexplainers = ["llm"]\n', "needs a language model"),
        ('[explanations]\nexplainers = ["null:contrastive"]\n', "needs a language model"),
        ('[explanations]\nexplainers = ["llm"]\nmodel = "absent"\n', "'absent' is not in the registry"),
        ('[explanations]\nexplainers = ["imported"]\n', "needs a file"),
        ('[explanations]\nexplainers = ["imported"]\nimported.file = "{latent}.csv"\n', "no placeholders but"),
        ('[detection]\njudges = ["llm:absent"]\n', "'absent' is not in the registry"),
        ('[detection]\njudges = ["llm:executed"]\n', "which is the name of another judge"),
        ('[detection]\njudges = ["gpt"]\n', "or llm:NAME"),
    ],
)
def test_settings_that_cannot_be_followed_say_what_to_do(tmp_path, settings, message):
    workspace = tiny.tiny_workspace(tmp_path, settings=settings)
    stage = "explanations" if "explanations" in settings else "detection_scores"
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        workspace.external(tiny.STAGES[stage], tiny.SPARSIFY)
    assert "Expected: " in str(caught.value)
    assert isinstance(caught.value, SettingsError) or "registry" in message


# Files --------------------------------------------------------------------------------------------------------

EXPORT = [
    {"modelId": "m", "layer": "9-res", "index": i, "description": text, "explanationModelName": by, "typeName": of}
    for i, text, by, of in (("0", " months\n", "a", "t"), (0, "second", "b", "t"), ("7", "days", "b", "u"))
]


def test_an_export_of_neuronpedia(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, EXPORT)).encode()))
    found = read_file(path, ImportedSettings())
    assert {k: (v.text, v.model) for k, v in found.items()} == {0: ("months", "a"), 7: ("days", "b")}
    assert read_file(path, ImportedSettings(explained_by="b"))[0].text == "second"
    assert set(read_file(path, ImportedSettings(type="u"))) == {7}
    other = tmp_path / "y.jsonl"
    other.write_text("\n".join(json.dumps(row) for row in [*EXPORT, {**EXPORT[0], "layer": "10-res"}]))
    with pytest.raises(ExplainerError, match="of 2 SAEs"):
        read_file(other, ImportedSettings())


@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda t: t.encode("utf-8", "replace"))),
    st.sampled_from(["f.csv", "f.jsonl", "f.jsonl.gz"]),
)
def test_a_file_is_read_or_refused_by_line(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("files") / name
    path.write_bytes(data)
    try:
        found = read_file(path, ImportedSettings())
    except ExplainerError:
        return
    assert all(isinstance(latent, int) and latent >= 0 for latent in found)
