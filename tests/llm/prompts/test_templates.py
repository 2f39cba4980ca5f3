"""Prompts: their form, their variables, and that the same values give the same messages for ever."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgloss.errors import PromptError
from latentgloss.llm.prompts.templates import messages_sha256, names, parsed, prompt
from latentgloss.protocols import Message

GOOD = "=== system\nS\n=== user\nQ $5\n=== assistant\nA\n=== user\nask $what\n=== repair\nno: $problem\n"
VARIABLES = {
    "explain": {"passages"},
    "explain_cot": {"passages"},
    "contrastive": {"passages", "silent"},
    "detection": {"explanation", "passages"},
    "fuzzing": {"explanation", "passages"},
    "intruder": {"passages"},
    "explain_json": {"passages"},
    "explain_cot_json": {"passages"},
    "contrastive_json": {"passages", "silent"},
}


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_each_prompt_is_filled_in_by_its_variables_and_nothing_else(name):
    values = dict.fromkeys(VARIABLES[name], "x")
    messages = prompt(name).messages(**values)
    assert messages[0].role == "system" and messages[-1].role == "user"
    for wrong in ({}, {**values, "more": "x"}):
        with pytest.raises(PromptError, match="exactly its variables"):
            prompt(name).messages(**wrong)


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_examples_look_like_what_is_asked(name):
    """The words around the variables of what is asked are those of the examples, in the same order."""
    read = prompt(name)
    fixed = [line.split("$")[0] for line in read.asked.splitlines() if line.split("$")[0]]
    for message in read.shared:
        if message.role == "user":
            found = [line for line in message.content.splitlines() if any(line.startswith(f) for f in fixed)]
            assert len(found) == len(fixed)
            assert "⟦" in message.content and "$" not in message.content


@pytest.mark.parametrize("name", sorted(name for name in VARIABLES if name.endswith("_json")))
def test_a_prompt_for_json_is_its_twin_in_another_form(name):
    """The same passages, the same answers; the instructions differ in what they say of the form alone.

    Words are quoted by ', since small models write an end of the string where they mean \\".
    """
    one, other = prompt(name.removesuffix("_json")), prompt(name)
    assert one.asked == other.asked and [m.role for m in one.shared] == [m.role for m in other.shared]
    for line, held in zip(one.shared[1:], other.shared[1:], strict=True):
        if line.role == "user":
            assert line == held
        else:
            said = dict(entry.split(": ", 1) for entry in line.content.splitlines())
            assert json.loads(held.content) == {key.lower(): text.replace('"', "'") for key, text in said.items()}
            assert "\\" not in held.content
    system, of_json = (p.shared[0].content.splitlines() for p in (one, other))
    same = [a == b for a, b in zip(system, of_json, strict=False)]
    assert same.count(False) <= 5 and all(same[: same.index(False)])
    assert "like 'this'" in other.shared[0].content and "full stop" in other.shared[0].content


def test_there_is_no_other_prompt():
    assert set(names()) == set(VARIABLES)
    with pytest.raises(PromptError, match="contrastive, contrastive_json, detection"):
        prompt("explian")


@given(st.text(max_size=40))
def test_values_are_put_in_as_they_are(text):
    read = parsed("x", GOOD)
    assert read.messages(what=text)[-1] == Message("user", f"ask {text}")
    assert read.messages(what=text) == read.messages(what=text)
    assert read.messages(what=text)[:-1] == (Message("system", "S"), Message("user", "Q $5"), Message("assistant", "A"))
    again = read.repaired(read.messages(what="x"), text, problem="p")
    assert again[:4] == read.messages(what="x") and again[-1] == Message("user", "no: p")
    assert again[4].content.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\n" + GOOD,
        GOOD.replace("=== system", "=== sistem"),
        GOOD.replace("=== assistant\nA\n", ""),
        GOOD.replace("=== repair\nno: $problem\n", ""),
        GOOD.replace("$what", "$ 5"),
        GOOD.replace("\nS\n", "\n\n"),
    ],
)
def test_a_malformed_file_is_refused(text):
    with pytest.raises(PromptError):
        parsed("x", text)


def test_hashes_are_of_what_is_shown_and_change_with_it():
    one = prompt("explain").messages(passages="a")
    assert messages_sha256(one) == messages_sha256(prompt("explain").messages(passages="a"))
    assert messages_sha256(one) != messages_sha256(prompt("explain").messages(passages="b"))
    assert messages_sha256([Message("user", "a"), Message("user", "b")]) != messages_sha256([Message("user", "ab")])
    assert messages_sha256([Message("user", "a")]) == messages_sha256([Message("user", "a")])
    assert parsed("x", GOOD).sha256 != parsed("x", GOOD + " ").sha256
    # For ever: no process, platform or version may change it.
    assert messages_sha256([Message("user", "a⟦é")]) == EXPECTED


EXPECTED = "83918c2b0ebedc3f5a50cf75d030a9d27dbb6703f6f35e46accf330d80dc7eeb"
