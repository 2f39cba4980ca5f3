"""Explainers whose model can be held to a JSON schema or to a line: what is asked, what is read, and what is stale."""

from __future__ import annotations

import json
import re

import polars as pl
import pytest
import tiny
from scripted_model import Scripted, asked_of, is_repair, reader

from latentgloss import schema as tables
from latentgloss.explanations.explainers import EXPLAINERS as ALL_EXPLAINERS
from latentgloss.explanations.explainers.replies import LINE, read_line
from latentgloss.llm.prompts.templates import prompt
from latentgloss.protocols import Reply

STEPS = ("strongest", "around", "weaker")
EXPLAINERS = ("llm", "llm_cot", "contrastive", "best_of_k")
SETTINGS = (
    tiny.SETTINGS
    + """
[explanations]
explainers = ["llm", "llm_cot", "contrastive", "best_of_k"]
model = "scripted"
llm.contexts = 12
llm.silent = 6
best_of_k.k = 2
"""
)
BEFORE = list(tiny.RUNNERS)[: list(tiny.RUNNERS).index("explanations")]


def answer(request):
    """As `reader`, in the form that is demanded; for some latents cut off, once or for ever."""
    said = reader(request)
    if request.json_schema is None or not said.startswith("EXPLANATION"):
        return said
    names = request.json_schema["required"]
    text = json.dumps({**dict.fromkeys(names, "because"), "explanation": said.removeprefix("EXPLANATION: ")})
    place = sum(asked_of(request).encode()) % 10
    if place == 0:
        return Reply("truncated", text=text[:-5])
    if place == 1:
        return text[:-5]  # by a server that says all is well
    if place == 2 and not is_repair(request):
        return Reply("truncated", text=text[:-1])
    return text


def held(**more):
    return Scripted(answer, capabilities=("json_schema",), **more)


@pytest.fixture(scope="module")
def model():
    return held()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    workspace = tiny.computed_workspace(tmp_path_factory.mktemp("held"), SETTINGS, stages=BEFORE)
    workspace._language_models["scripted"] = model
    assert not [o.error for o in tiny.run_all(workspace, [*BEFORE, "explanations"]) if o.error]
    return workspace


def test_each_explainer_is_held_to_an_object_that_ends_in_the_explanation(finished, model):
    asked = [request for request in model.seen if not asked_of(request).startswith("Description")]
    of = {
        name: [r for r in asked if r.messages[0] == prompt(name).shared[0]]
        for name in ("explain_json", "explain_cot_json", "contrastive_json")
    }
    assert sum(map(len, of.values())) == len(asked) and all(of.values())
    for name, requests in of.items():
        names = [*(STEPS if name == "explain_cot_json" else ()), "explanation"]
        for request in requests:
            schema = request.json_schema
            assert schema["required"] == list(schema["properties"]) == names and not schema["additionalProperties"]


def test_replies_are_read_and_one_that_is_cut_off_is_a_row_with_a_reason(finished):
    rows = finished.store.current("explanations", tiny.SPARSIFY).read(tables.EXPLANATIONS)
    asked = rows.filter(pl.col("prompt_sha256").is_not_null())
    assert set(asked["explainer"]) == set(EXPLAINERS) and set(asked["status"]) == {"ok", "parse_failed"}
    assert asked.filter(status="ok")["explanation"].str.starts_with("The words").all()
    llm = asked.filter(explainer="llm")
    failed = llm.filter(status="parse_failed")
    assert (failed["explanation"] == "").all() and (failed["cost_usd"] == 0.002).all()
    assert {reason.split(",")[0].split(" after")[0] for reason in failed["reason"]} == {
        "it was cut off",
        "it is not a JSON object",
    }
    assert 0.002 in llm.filter(status="ok")["cost_usd"], "some were mended"
    assert asked.filter(explainer="llm_cot", status="ok")["reply"].str.contains('"weaker": "because"').all()


def test_a_model_that_comes_to_be_held_makes_its_explanations_stale_and_no_other(finished):
    def stale():
        return {s.asset: s.because for s in finished.states([tiny.SPARSIFY]) if s.state == "stale"}

    try:
        assert not stale()
        finished._language_models["scripted"] = Scripted(answer)
        assert set(stale()) == {"explanations"} and "json_schema" in stale()["explanations"]
        plain = finished.external(tiny.STAGES["explanations"], tiny.SPARSIFY)["explainers"]["llm"]
        assert plain["prompt"] == prompt("explain").sha256 and "json_schema" not in plain
    finally:
        finished._language_models["scripted"] = held()
    assert not stale()


def test_a_model_that_can_be_held_to_a_line_is_and_asked_as_any_other(finished):
    tools = finished.tools(tiny.SPARSIFY)
    both = Scripted(answer, capabilities=("json_schema", "regex"))
    free = Scripted(answer)
    settings = finished.settings.explanations
    for name in EXPLAINERS:
        of = {}
        for model in (both, free):
            finished._language_models["scripted"] = model
            of[model] = ALL_EXPLAINERS[name].identity(settings, tools)
        finished._language_models["scripted"] = held()
        asked = of[both]["samples"] if name == "best_of_k" else of[both]
        if name == "llm_cot":  # which thinks first
            assert "json_schema" in asked
            continue
        plain = of[free]["samples"] if name == "best_of_k" else of[free]
        assert asked == {**plain, "model": asked["model"], "regex": LINE}


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("The word storm and its forms.", "The word storm and its forms."),
        ('Words in quotation marks: "a" and "b".', 'Words in quotation marks: "a" and "b".'),
        ("x" * 299 + ".", "x" * 299 + "…"),  # as long as it may be: the end is not the model's
        ("x" * 298 + ".", "x" * 298 + "."),
    ],
)
def test_a_line_that_matches_is_read(said, read):
    assert re.fullmatch(LINE, f"EXPLANATION: {said}")
    assert read_line(Reply("ok", text=f"EXPLANATION: {said}")) == read


@pytest.mark.parametrize(
    "said", ["Yes.", "The word storm", "Two\nlines of it.", " begins with a space.", "x" * 300 + "."]
)
def test_a_line_that_is_no_sentence_does_not_match(said):
    assert not re.fullmatch(LINE, f"EXPLANATION: {said}")


def test_the_same_texts_are_read_from_either_form(finished, tmp_path):
    """What the form costs nobody: the reader says the same."""
    workspace = tiny.computed_workspace(tmp_path, SETTINGS)
    workspace._language_models["scripted"] = Scripted(reader)
    assert not [o.error for o in tiny.run_all(workspace, [*BEFORE, "explanations"]) if o.error]
    plain, read = (
        w.store.current("explanations", tiny.SPARSIFY).read(tables.EXPLANATIONS).filter(status="ok")
        for w in (workspace, finished)
    )
    both = plain.join(read, on=["latent", "explainer"])
    assert both.height == read.height > 40 and (both["explanation"] == both["explanation_right"]).all()
