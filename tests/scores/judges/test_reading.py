"""Replies of language models: read or not, never guessed; and the judge that reads them, prompt by prompt."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import Scripted, asked_of, passages_of, with_logprobs

from latentgloss.config.settings import LlmJudgeSettings
from latentgloss.errors import ScorerError
from latentgloss.explanations.explainers.replies import LONGEST, read_explanation, read_object
from latentgloss.llm.asking import UnparsableReply, ask_all
from latentgloss.models.vocabulary import Vocabulary
from latentgloss.protocols import Question, Reply
from latentgloss.protocols import TokenLogprobs as Token
from latentgloss.scores.judges.intruder import IntruderJudge, read_choice, trial
from latentgloss.scores.judges.reading import LlmJudge, read_verdicts

garbage = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                "EXPLANATION:",
                "\n",
                "words",
                " ",
                "**",
                "NaN",
                "[",
                "]",
                "0",
                "1",
                ",",
                "2",
                "⟦",
                "```",
                "<think>",
                "</think>",
                "\ud800",
                "１",
                "None",
            ]
        ),
        max_size=12,
    ).map("".join),
)


@given(garbage)
def test_any_reply_is_an_explanation_or_is_not(text):
    try:
        found = read_explanation(Reply("ok", text=text))
    except UnparsableReply:
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
        ('EXPLANATION: The word "None"', 'The word "None"'),
    ],
)
def test_replies_that_are_read(text, expected):
    assert read_explanation(Reply("ok", text=text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Months",
        "EXPLANATION:",
        "EXPLANATION: NaN",
        "EXPLANATION: none.",
        "EXPLANATION: a\nEXPLANATION: b",
        "EXPLANATION: Months\n\nI hope this helps!",
        "EXPLANATION: " + "long " * 200,
    ],
)
def test_replies_that_are_not_read(text):
    with pytest.raises(UnparsableReply):
        read_explanation(Reply("ok", text=text))


STEPS = ("strongest", "around", "weaker")
json_garbage = st.lists(
    st.sampled_from(
        [
            '{"explanation": "',
            "Months",
            '."}',
            '"',
            ",",
            "{",
            "}",
            "[",
            "]",
            ":",
            '"explanation"',
            "\\n",
            "\\ud800",
            "null",
            "9" * 5000,
            " ",
            "\n",
            "[" * 200_000,
        ]
    ),
    max_size=8,
).map("".join)


@given(st.one_of(garbage, json_garbage))
def test_any_reply_is_an_object_with_an_explanation_or_is_not(text):
    try:
        found = read_object(Reply("ok", text=text))
    except UnparsableReply:
        return
    assert 0 < len(found) <= LONGEST and "\n" not in found and text.count('"explanation"') == 1
    found.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"explanation": "Months."}', "Months."),
        ('```json\n{\n  "explanation" : " Months\\tand. "\n}\n```', "Months and."),
        ('<think>{"explanation": "no"}</think>{"explanation": "The word \\"None.\\""}', 'The word "None."'),
        ('{"explanation": "\\"Months.\\""}', "Months."),
        ('{"explanation": "\\ud83d\\ude00 and \\ud800."}', "😀 and ?."),
    ],
)
def test_objects_that_are_read(text, expected):
    assert read_object(Reply("ok", text=text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Months.",
        '"Months."',
        "5",
        "[]",
        "{}",
        '["explanation", "Months."]',
        '[["explanation", "Months."]]',
        '{"explanation": "Months.',
        '{"explanation": ""}',
        '{"explanation": "none."}',
        '{"explanation": null}',
        '{"explanation": NaN}',
        '{"explanation": ["Months."]}',
        '{"explanation": {"explanation": "Months."}}',
        '{"Explanation": "Months."}',
        '{"explanation": "Months.", "more": "x"}',
        '{"explanation": "a\\nb."}',
        '{"explanation": "a.", "explanation": "b."}',
        'Sure: {"explanation": "Months."}',
        '{"explanation": "Months."} so',
        "EXPLANATION: Months.",
        '{"explanation": "' + "long " * 200 + '."}',
        '{"a":' * 100_000,
    ],
)
def test_objects_that_are_not_read(text):
    with pytest.raises(UnparsableReply):
        read_object(Reply("ok", text=text))


@pytest.mark.parametrize("text", ["The", "weakly the word", "Months of the year,", "The syntax ‘"])
def test_half_a_sentence_is_none(text):
    """A string that was ended where a word was to be quoted."""
    with pytest.raises(UnparsableReply, match="full stop"):
        read_object(Reply("ok", text=json.dumps({"explanation": text})))
    assert read_object(Reply("ok", text=json.dumps({"explanation": f"{text} x.)"}))) == f"{text} x.)"


def test_steps_come_before_the_explanation_and_are_not_in_it():
    steps = '"strongest": "a", "around": "b", "weaker": "c"'
    assert read_object(Reply("ok", text=f'{{{steps}, "explanation": "Months."}}'), STEPS) == "Months."
    for text in ('{"explanation": "Months"}', f"{{{steps}}}"):
        with pytest.raises(UnparsableReply, match="strongest, around, weaker, explanation"):
            read_object(Reply("ok", text=text), STEPS)


@given(garbage, st.integers(1, 6))
def test_any_reply_is_a_list_of_the_right_length_or_none(text, n):
    try:
        found = read_verdicts(Reply("ok", text=text), n)
    except UnparsableReply:
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
    "text",
    [
        "",
        "[1, 0",
        "1, 0",
        "[1, 0, 1]",
        "[1]",
        "[1, 2]",
        "[1, NaN]",
        "[true, false]",
        "[1, 0] [0, 1]",
        "[1.0, 0]",
        "Here: [1, 0]",
        "[1, 0]. Done",
        "[１, 0]",
        "[1, 0" + ", 0" * 10_000 + "]",
        "[[1, 0]]",
        "[-1, 0]",
    ],
)
def test_nothing_else_is_read_as_verdicts(text):
    with pytest.raises(UnparsableReply):
        read_verdicts(Reply("ok", text=text), 2)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('{"active": [1, 0]}', True),
        (' {\n "active" : [1,0]\n}', True),
        ("[1, 0]", True),
        ('{"active": [1]}', False),
        ('{"active": [1, 2]}', False),
        ('{"silent": [1, 0]}', False),
        ('{"active": [1, 0]} so', False),
        ('{"active": [1, 0], "why": 1}', False),
        ('{"active": [[1, 0]]}', False),
    ],
)
def test_an_object_is_read_only_where_the_schema_demanded_it(text, read):
    reply = Reply("ok", text=text)
    if read:
        assert read_verdicts(reply, 2, schema=True).active == [True, False]
    else:
        with pytest.raises(UnparsableReply):
            read_verdicts(reply, 2, schema=True)
    if "{" in text:
        with pytest.raises(UnparsableReply):
            read_verdicts(reply, 2)


def test_probabilities_are_of_one_against_zero_at_each_answer():
    found = read_verdicts(with_logprobs("[1, 0]", 0.9), 2)
    assert found.probability == pytest.approx([0.9, 0.1])
    reply = with_logprobs("\n[1, 0]", 0.9)  # some servers strip a reply, and add the token that ended it
    ended = Reply("ok", text="[1, 0]", logprobs=(*reply.logprobs, Token("<|im_end|>", -0.1)))
    assert read_verdicts(ended, 2).probability == pytest.approx([0.9, 0.1])
    # A token that is cut otherwise, and an alternative that is not among those listed.
    reply = with_logprobs("[1, 0]", 0.9)
    one, zero = Token("[1", -0.1, (("[1", -0.1), ("[0", -2.4))), Token("0", -0.2, (("0", -0.2), ("2", -3.0)))
    tokens = (one, Token(", ", 0.0), zero, Token("]", 0.0))
    found = read_verdicts(Reply("ok", text=reply.text, logprobs=tokens), 2)
    assert found.probability == pytest.approx([1 / (1 + np.exp(-2.3)), 0.0])
    for odd in (float("nan"), float("-inf")):
        broken = (Token("[", 0.0), Token("1", odd, (("1", odd), ("0", odd))), Token("]", 0.0))
        assert np.isnan(read_verdicts(Reply("ok", text="[1]", logprobs=broken), 1).probability).all()
    # Neither the answer nor its twin is among what was listed: the answer was forced, and nothing is known.
    forced = (Token("[", 0.0), Token("1", -9.0, (("Yes", -0.1), ("No", -2.0))), Token("]", 0.0))
    assert np.isnan(read_verdicts(Reply("ok", text="[1]", logprobs=forced), 1).probability).all()
    other = Reply("ok", text="[1, 0]", logprobs=with_logprobs("[0, 1]").logprobs)
    assert read_verdicts(other, 2).probability is None


WORDS = Vocabulary([" a", " b", " c", "<<", "⟧\n2. ⟦"])


def question(n, latent=1, marks=None, text="about\n⟧ a"):
    tokens = (np.arange(n * 4).reshape(n, 4) % 5).astype(np.uint32)
    return Question("detection" if marks is None else "fuzzing", latent, text, None, tokens, marks)


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 8), st.sets(st.sampled_from(["choice", "json_schema"])))
def test_a_judge_answers_each_question_with_as_many_verdicts_as_contexts(sizes, per_prompt, can):
    """Whatever the sizes and whatever replies are held to; verdicts stay with their contexts."""

    def first_is_a(request):
        shown = passages_of(asked_of(request))
        verdicts = str([int(p.startswith(" a")) for p in shown])
        return with_logprobs(verdicts if request.json_schema is None else f'{{"active": {verdicts}}}')

    model = Scripted(first_is_a, capabilities=(*sorted(can), "logprobs"))
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
        assert (request.choice is not None) == ("choice" in can and n <= 6)
        assert (request.json_schema is not None) == ("json_schema" in can and request.choice is None)
        assert request.choice is None or len(request.choice) == 2**n
        if request.json_schema is not None:
            verdicts = request.json_schema["properties"]["active"]
            assert verdicts["minItems"] == verdicts["maxItems"] == n
        assert asked_of(request).split("\n")[0] == "Description: ⟦about⏎⟨U+27E7⟩ a⟧"


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
    assert (
        told.value.place == 3 and told.value.probability is None and model.seen[0].choice == ("1", "2", "3", "4", "5")
    )
    with pytest.raises(ScorerError, match="5 marked windows"):
        trial(tokens, np.zeros_like(marks), WORDS, model)
    for wrong in ("", "6", "0", "1 or 2", "Passage 3", "33", "NaN"):
        with pytest.raises(UnparsableReply):
            read_choice(Reply("ok", text=wrong))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"intruder": 4}', 3),
        (' {\n "intruder" : 1\n}', 0),
        ("2", 1),
        ('{"intruder": 6}', None),
        ('{"intruder": "4"}', None),
        ('{"intruder": 4, "why": 1}', None),
        ('{"intruder": 44}', None),
        ('{"place": 4}', None),
        ('{"intruder": 4', None),
    ],
)
def test_a_model_that_knows_schemas_and_no_choice_is_held_to_an_object_around_the_number(text, place):
    marks = np.eye(5, 4, dtype=bool) | np.eye(5, 4, -1, dtype=bool)
    model = Scripted(lambda r: text, capabilities=("json_schema",))
    (told,) = ask_all(model, [trial(question(5).tokens, marks, WORDS, model)])
    assert model.seen[0].choice is None and model.seen[0].json_schema["required"] == ["intruder"]
    assert (None if told.value is None else told.value.place) == place
    assert told.status == ("parse_failed" if place is None else "ok") and told.repaired == (place is None)
    with pytest.raises(UnparsableReply) if "{" in text else nullcontext():
        read_choice(Reply("ok", text=text))


def test_what_a_model_is_held_to_and_tells_is_in_the_identity_of_its_judge():
    def identities(*can):
        model = Scripted(capabilities=can)
        judges = (LlmJudge(model, "fuzzing", lambda: WORDS, LlmJudgeSettings()), IntruderJudge(model, lambda: WORDS))
        return [judge.identity() for judge in judges]

    for free, listed, told, other in zip(
        identities(), identities("choice"), identities("logprobs", "choice"), identities("seed", "regex"), strict=True
    ):
        assert listed == {**free, "uses": ["choice"]} and told == {**free, "uses": ["choice", "logprobs"]}
        assert other == free, "what no judge makes use of"
