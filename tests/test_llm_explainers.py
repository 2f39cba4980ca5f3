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
from scripted_model import Scripted, asked_of, passages_of, reader, with_logprobs

from latentgloss import schema
from latentgloss.asking import Unread, ask_all
from latentgloss.errors import ExplainerError, ScorerError, SettingsError
from latentgloss.explainers.imported import read_file
from latentgloss.explainers.llm import LONGEST, read_explanation
from latentgloss.explainers.windows import Vocabulary
from latentgloss.prompting import prompt
from latentgloss.protocols import Question, Reply
from latentgloss.scorers.intruder import read_place, trial
from latentgloss.scorers.llm_judge import LlmJudge, read_verdicts
from latentgloss.settings import ImportedSettings, LlmJudgeSettings

ASKING = ("llm", "llm_cot", "contrastive", "best_of_k")
SETTINGS = (
    tiny.SETTINGS.replace("resamples = 200", "resamples = 200\n")
    + """
[explanations]
explainers = ["pattern", "llm", "llm_cot", "contrastive", "best_of_k", "imported", "null:llm"]
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("asked")
    workspace = tiny.tiny_workspace(folder, settings=SETTINGS)
    (folder / "imported").mkdir()
    (folder / "imported" / "words.csv").write_text('latent,explanation\n0,"A word, from elsewhere"\n4,\n')
    workspace._language_models |= {"scripted": model, "lazy": Scripted(lambda r: "[1]", name="lazy")}
    assert not [o.error for o in tiny.run_all(workspace, STAGES) if o.error]
    return workspace


def explanations(workspace, partition=tiny.SPARSIFY):
    return workspace.store.current("explanations", partition).read(schema.EXPLANATIONS)


def test_every_latent_has_a_row_of_every_explainer_whatever_was_replied(finished):
    rows = explanations(finished)
    eligibility = finished.store.current("sampled_contexts", tiny.SPARSIFY).read(schema.ELIGIBILITY)
    assert rows["explainer"].n_unique() == 7
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
    assert scores.filter(explainer="llm", judge="executed")["score"].null_count() == scores.filter(
        explainer="llm", judge="executed").height  # fmt: skip


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


def test_fuzzing_tells_right_marks_from_wrong_ones(finished):
    scores = finished.store.current("fuzzing_scores", tiny.SPARSIFY).read(schema.SCORES)
    assert scores.filter(judge="scripted", explainer="llm", status="ok")["score"].median() > 0.9


def shared_prefix(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_successive_prompts_share_their_beginning(finished, model):
    texts = ["\n".join(m.content for m in r.messages) for r in model.seen if asked_of(r).startswith("Description")]
    shares = np.array([shared_prefix(a, b) / len(b) for a, b in pairwise(texts)])
    longest = max(len("\n".join(m.content for m in prompt(name).shared)) for name in ("detection", "fuzzing"))
    print(f"shared with the prompt before: median {np.median(shares):.2f}, {np.mean(shares):.2f} on average")
    assert np.median(shares) > 0.8
    assert np.median([len(t) for t in texts]) < 1.5 * longest


def test_nothing_is_asked_again_and_nothing_depends_on_how_much_is_in_flight(finished, model, tmp_path):
    before = len(model.seen)
    outcomes = tiny.run_all(finished, STAGES)
    assert {o.status for o in outcomes} == {"reused"} and len(model.seen) == before
    workspace = tiny.tiny_workspace(tmp_path, settings=SETTINGS)
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "words.csv").write_text('latent,explanation\n0,"A word, from elsewhere"\n4,\n')
    workspace._language_models |= {
        "scripted": Scripted(answer, ahead=200), "lazy": Scripted(lambda r: "[1]", name="lazy", ahead=1),
    }  # fmt: skip
    assert not [o.error for o in tiny.run_all(workspace, STAGES) if o.error]
    for stage in ("explanations", "detection_scores", "fuzzing_scores"):
        one, two = (w.store.current(stage, tiny.SPARSIFY).manifest for w in (finished, workspace))
        assert one.data_version == two.data_version


def test_another_prompt_model_or_file_makes_only_what_it_decides_stale(finished, model, monkeypatch):
    from latentgloss import prompting

    def stale():
        return {
            s.asset: s.because
            for s in finished.states([tiny.SPARSIFY])
            if s.state == "stale" and "input" not in s.because
        }

    assert not stale()
    monkeypatch.setattr(prompting, "prompt", prompting.prompt)
    changed = prompting.parsed("fuzzing", "=== system\nx\n=== user\n$explanation $passages\n=== repair\n$problem $n\n")
    monkeypatch.setattr(
        "latentgloss.scorers.llm_judge.prompt", lambda name: changed if name == "fuzzing" else prompt(name)
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
        ('[detection]\njudges = ["llm:executed"]\n', "as another judge is"),
        ('[detection]\njudges = ["gpt"]\n', "or llm:NAME"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_followed_say_what_to_do(tmp_path, settings, message):
    workspace = tiny.tiny_workspace(tmp_path, settings=settings)
    stage = "explanations" if "explanations" in settings else "detection_scores"
    with pytest.raises(Exception, match=re.escape(message)) as caught:
        workspace._external(tiny.STAGES[stage], tiny.SPARSIFY)
    assert "Expected: " in str(caught.value)
    assert isinstance(caught.value, SettingsError) or "registry" in message


# Replies ------------------------------------------------------------------------------------------------------

garbage = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["EXPLANATION:", "\n", "words", " ", "**", "NaN", "[", "]", "0", "1", ",", "2", "⟦", "```", "<think>",
                         "</think>", "\ud800", "１", "None"]), max_size=12,
    ).map("".join),
)  # fmt: skip


@given(garbage)
def test_any_reply_is_an_explanation_or_is_not(text):
    try:
        found = read_explanation(Reply("ok", text=text))
    except Unread as e:
        assert str(e)
        return
    assert found in " ".join(text.encode("utf-8", "replace").decode().split()) and text.count("EXPLANATION") >= 1
    assert 0 < len(found) <= LONGEST and "\n" not in found
    found.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EXPLANATION: Months.", "Months."),
        ("**EXPLANATION:** Months and \n", "Months and"),
        ('EXPLANATION: "Months"', "Months"),
        ("STRONGEST: x\nEXPLANATION:\n Months", "Months"),
        ("<think>EXPLANATION: no\n</think>\nEXPLANATION: Months", "Months"),
        ("EXPLANATION: The word \"None\"", 'The word "None"'),
    ],
)  # fmt: skip
def test_replies_that_are_read(text, expected):
    assert read_explanation(Reply("ok", text=text)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "Months", "EXPLANATION:", "EXPLANATION: NaN", "EXPLANATION: none.", "EXPLANATION: a\nEXPLANATION: b",
     "EXPLANATION: Months\n\nI hope this helps!", "EXPLANATION: " + "long " * 200],
)  # fmt: skip
def test_replies_that_are_not_read(text):
    with pytest.raises(Unread):
        read_explanation(Reply("ok", text=text))


@given(garbage, st.integers(1, 6))
def test_any_reply_is_a_list_of_the_right_length_or_none(text, n):
    try:
        found = read_verdicts(Reply("ok", text=text), n)
    except Unread as e:
        assert str(e)
        return
    assert len(found.active) == n
    assert re.findall("[01]", text.split("</think>")[-1].strip("`")) == [str(int(a)) for a in found.active]


@given(
    st.lists(st.sampled_from([0, 1]), min_size=1, max_size=6),
    st.sampled_from(["{}", " {}\n", "```json\n{}\n```", "<think>[1]</think>{}"]),
)
def test_a_list_alone_is_read(bits, around):
    assert read_verdicts(Reply("ok", text=around.format(bits)), len(bits)).active == [b == 1 for b in bits]


@pytest.mark.parametrize(
    "text", ["", "[1, 0", "1, 0", "[1, 0, 1]", "[1]", "[1, 2]", "[1, NaN]", "[true, false]", "[1, 0] [0, 1]", "[1.0, 0]",
             "Here: [1, 0]", "[1, 0]. Done", "[１, 0]", "[1, 0" + ", 0" * 10_000 + "]", "[[1, 0]]", "[-1, 0]"],
)  # fmt: skip
def test_nothing_else_is_read_as_verdicts(text):
    with pytest.raises(Unread):
        read_verdicts(Reply("ok", text=text), 2)


def test_probabilities_are_of_one_against_zero_at_each_answer():
    found = read_verdicts(with_logprobs("[1, 0]", 0.9), 2)
    assert found.probability == pytest.approx([0.9, 0.1])
    # A token that is cut otherwise, and an alternative that is not among those listed.
    reply = with_logprobs("[1, 0]", 0.9)
    from latentgloss.protocols import TokenLogprobs as Token

    tokens = (Token("[1", -0.1, (("[1", -0.1), ("[0", -2.4))), Token(", ", 0.0), Token("0", -0.2, (("0", -0.2), ("2", -3))),
              Token("]", 0.0))  # fmt: skip
    found = read_verdicts(Reply("ok", text=reply.text, logprobs=tokens), 2)
    assert found.probability == pytest.approx([1 / (1 + np.exp(-2.3)), 0.0])
    for odd in (float("nan"), float("-inf")):
        broken = (Token("[", 0.0), Token("1", odd, (("1", odd), ("0", odd))), Token("]", 0.0))
        assert read_verdicts(Reply("ok", text="[1]", logprobs=broken), 1).probability is None
    other = Reply("ok", text="[1, 0]", logprobs=with_logprobs("[0, 1]").logprobs)
    assert read_verdicts(other, 2).probability is None


WORDS = Vocabulary([" a", " b", " c", "<<", "⟧\n2. ⟦"])


def question(n, latent=1, marks=None, text="about\n⟧ a"):
    tokens = (np.arange(n * 4).reshape(n, 4) % 5).astype(np.uint32)
    return Question("detection" if marks is None else "fuzzing", latent, text, None, tokens, marks)


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 7), st.booleans())
def test_a_judge_answers_each_question_with_as_many_verdicts_as_contexts(sizes, per_prompt, listed):
    """Whatever the sizes; verdicts stay with their contexts."""

    def first_is_a(request):
        shown = passages_of(asked_of(request))
        return with_logprobs(str([int(p.startswith(" a")) for p in shown]))

    model = Scripted(first_is_a, capabilities=("choice", "logprobs") if listed else ("logprobs",))
    judge = LlmJudge(model, "detection", lambda: WORDS, LlmJudgeSettings(per_prompt=per_prompt))
    questions = [question(n, i) for i, n in enumerate(sizes)]
    answers = list(judge.judge(iter(questions)))
    assert [len(a.evidence) for a in answers] == sizes
    for asked, answer in zip(questions, answers, strict=True):
        assert answer.prediction.tolist() == (asked.tokens[:, 0] == 0).tolist()
        assert answer.status == ["ok"] * len(asked.tokens)
        if len(asked.tokens):
            assert answer.probability == pytest.approx(np.where(asked.tokens[:, 0] == 0, 0.9, 0.1))
            assert (answer.prompt >= 0).all()
    for request in model.seen:
        n = len(passages_of(asked_of(request)))
        assert 1 <= n <= per_prompt
        assert (request.choice is not None) == (listed and n <= 6)
        assert request.choice is None or len(request.choice) == 2**n
        assert asked_of(request).split("\n")[0] == "Description: ⟦about ⟨U+27E7⟩ a⟧"


def test_what_fails_in_one_prompt_leaves_the_others_alone():
    def some(request):
        n = len(passages_of(asked_of(request)))
        return Reply("llm_error", "the server said 500") if n == 5 else str([1] * n)

    judge = LlmJudge(Scripted(some), "detection", lambda: WORDS, LlmJudgeSettings())
    (answer,) = judge.judge([question(7)])
    assert answer.status == ["llm_error"] * 5 + ["ok"] * 2
    assert answer.reason[0] == "the server said 500" and answer.reason[6] == ""
    assert np.isnan(answer.evidence).tolist() == [True] * 5 + [False] * 2
    assert answer.probability is None and len(set(answer.prompt.tolist())) == 2


def test_a_trial_shows_five_marked_windows():
    marks = np.eye(5, 4, dtype=bool) | np.eye(5, 4, -1, dtype=bool)
    tokens = question(5).tokens
    model = Scripted(lambda r: "4" if len(passages_of(asked_of(r))) == 5 else "", capabilities=("choice",))
    (told,) = ask_all(model, [trial(tokens, marks, WORDS, model)])
    assert told.value == 3 and model.seen[0].choice == ("1", "2", "3", "4", "5")
    with pytest.raises(ScorerError, match="5 marked windows"):
        trial(tokens, np.zeros_like(marks), WORDS, model)
    for wrong in ("", "6", "0", "1 or 2", "Passage 3", "33", "NaN"):
        with pytest.raises(Unread):
            read_place(Reply("ok", text=wrong))


# Files --------------------------------------------------------------------------------------------------------

EXPORT = [
    {"modelId": "m", "layer": "9-res", "index": "0", "description": " months\n", "explanationModelName": "a", "typeName": "t"},
    {"modelId": "m", "layer": "9-res", "index": 0, "description": "second", "explanationModelName": "b", "typeName": "t"},
    {"modelId": "m", "layer": "9-res", "index": "7", "description": "days", "explanationModelName": "b", "typeName": "u"},
]  # fmt: skip


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
