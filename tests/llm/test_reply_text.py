"""What the text of a reply says: thinking, control tokens and markup are left out, the answer is never changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgloss.explanations.explainers.replies import read_explanation, read_object
from latentgloss.llm.reply_text import only_thoughts, said, unwrapped
from latentgloss.protocols import Reply
from latentgloss.scores.judges.intruder import read_choice
from latentgloss.scores.judges.reading import read_verdicts

BEFORE = (
    "",
    "<think>a\n[0]</think>",
    "first [0], then</think>\n",
    "<thinking>a</thinking>\n\n",
    "<THINK>a</THINK>",
    "<seed:think>a</seed:think>",
    "[THINK]a[/THINK]",
    "◁think▷a◁/think▷",
    "<think>a</think><think>b</think>",
    "<|im_start|>assistant\n<think>a</think>\n",
    "<s>",
    "<｜Assistant｜>",
    "<start_of_turn>model\n",
)
AFTER = (
    "",
    "<|im_end|>",
    "</s>",
    " </s>",
    "<|eot_id|>\n",
    "<end_of_turn>\n",
    "<|im_end|>\n<|im_start|>user\n[0]",
    "<eos>",
)


@given(
    st.sampled_from(BEFORE), st.sampled_from(AFTER), st.sampled_from(["[1, 0]", "EXPLANATION: The word “a|b”.", "3."])
)
def test_the_answer_is_what_remains(before: str, after: str, answer: str) -> None:
    assert said(before + answer + after) == answer


@given(st.text(st.characters(exclude_characters="<>[]|◁▷｜"), max_size=50))
def test_text_without_such_marks_stays(text: str) -> None:
    shown = text.encode("utf-8", "replace").decode().strip()
    if not shown.startswith(("analysis", "Here")):
        assert said(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "EXPLANATION: Fires on <|im_end|> between turns.",
        'EXPLANATION: Fires on the tag "</think>".',
        "EXPLANATION: Fires on `</s>`.",
        "EXPLANATION: Tokens in [INST] blocks.",
        "EXPLANATION: Comparisons such as a <b> c.",
    ],
)
def test_a_token_that_the_text_is_about_stays(text: str) -> None:
    assert said(text) == text
    assert read_explanation(Reply("ok", text=text)) == text.removeprefix("EXPLANATION: ")


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("<think>Let me see", True),
        ("[THINK]a", True),
        ("<|channel|>analysis<|message|>a", True),
        ("a</think>", True),
        ("", False),
        ("<|im_end|>", False),
        ("[1]", False),
        ("<think>a</think>[1]", False),
    ],
)
def test_only_thinking_is_no_answer(text: str, thinking: bool) -> None:
    assert only_thoughts(text) == thinking
    assert (said(text) == "") == (thinking or "1" not in text)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("**[1, 0]**", "[1, 0]"),
        ("***`[1, 0]`***", "[1, 0]"),
        ("```\n[1, 0]\n```", "[1, 0]"),
        ("```[1, 0]```", "[1, 0]"),
        ('~~~json\n{"a": 1}\n~~~', '{"a": 1}'),
        ("$\\boxed{3}$", "3"),
        ("__3__", "3"),
        ("**a** and **b**", "**a** and **b**"),
        ("```\na\n```\n```\nb\n```", "```\na\n```\n```\nb\n```"),
        ("**", "**"),
        ("", ""),
    ],
)
def test_markup_around_all_of_it_goes(text: str, inside: str) -> None:
    assert unwrapped(text) == inside


def test_every_reader_reads_so() -> None:
    around = "so</think>\n**{}**<|im_end|>"
    assert read_verdicts(Reply("ok", text=around.format("[1, 0]")), 2).active == [True, False]
    assert read_choice(Reply("ok", text=around.format("4"))).place == 3
    assert read_explanation(Reply("ok", text=around.format("EXPLANATION: Months."))) == "Months."
    fenced = 'so</think>\n```json\n{"explanation": "Months."}\n```<|im_end|>'
    assert read_object(Reply("ok", text=fenced)) == "Months."
