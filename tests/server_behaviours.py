"""How servers behave, and what happens with each: one table, which the tests try and the documentation shows.

What belongs here: the behaviours as data. `llm/test_servers.py` tries each against the real client over HTTP, so a row
says what is true; `rows()` gives the rows of docs/compatibility.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_server import Fault, completion

Says = Callable[[dict[str, Any], str], "str | dict[str, Any] | Fault"]
"""From the body of a request and the right answer to it: what the server does."""


@dataclass(frozen=True)
class Behaviour:
    name: str
    says: Says
    happens: Literal["read", "ends", "row"] = "read"
    """`read`: every reply is read, from one request each. `ends`: the run ends early. `row`: one query has a row with a
    status, all others are read."""
    why: str = ""
    """A part of the message with which the run ends, or of the row's reason."""
    status: str = ""
    """Status of the row."""
    most: int = 60
    """Most requests that a run of 60 queries sends before it ends."""
    again: bool = False
    """Whether requests are sent more than once before they are answered."""
    asks: tuple[str, ...] = ()
    """The forms of query with which it is tried; without any, `list`."""
    entry: dict[str, Any] = field(default_factory=dict)
    """Fields of the registry entry."""
    wanted: dict[str, Any] = field(default_factory=dict)
    """What the requests demand: fields of `Request`."""
    note: str = ""
    """For readers of the table."""

    @property
    def forms(self) -> tuple[str, ...]:
        return self.asks or ("list",)


def around(before: str, after: str = "", **message: Any) -> Says:
    return lambda body, good: completion(f"{before}{good}{after}", **message)


def ended(reason: Any) -> Says:
    def says(body: dict[str, Any], good: str) -> dict[str, Any]:
        answer = completion(good)
        answer["choices"][0]["finish_reason"] = reason
        return answer

    return says


def without(*path: Any) -> Says:
    def says(body: dict[str, Any], good: str) -> dict[str, Any]:
        answer: Any = completion(good)
        inner = answer
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        return answer  # type: ignore[no-any-return]

    return says


def content(make: Callable[[str], Any]) -> Says:
    return lambda body, good: completion(make(good))


def in_field(name: str, inside: Any = None, ended: str = "stop") -> Says:
    """The answer, or something else, in another field of a message without content."""
    return lambda body, good: completion(None, ended=ended, **{name: good if inside is None else inside})


def raw(body: str) -> Says:
    return lambda request, good: Fault(raw=body.encode())


def first_time(fault: Fault) -> Says:
    """Goes wrong the first time that a request comes."""
    seen: set[str] = set()

    def says(body: dict[str, Any], good: str) -> str | Fault:
        if (asked := str(body["messages"])) in seen:
            return good
        seen.add(asked)
        return fault

    return says


def refusing(part: Callable[[dict[str, Any]], bool], message: str) -> Says:
    return lambda body, good: Fault(status=400, message=message) if part(body) else good


def has_system(body: dict[str, Any]) -> bool:
    return any(m["role"] == "system" for m in body["messages"])


def logprobs(value: Any) -> Says:
    def says(body: dict[str, Any], good: str) -> dict[str, Any]:
        answer = completion(good)
        answer["choices"][0]["logprobs"] = value
        return answer

    return says


def one_in_three(spoilt: Says) -> Says:
    """Spoils the replies about one query of three, also when they are asked for again."""

    def says(body: dict[str, Any], good: str) -> Any:
        number = int(body["messages"][1]["content"].split()[-1])
        return spoilt(body, good) if number == 1 else good

    return says


VLLM = {"dialect": "vllm"}
SCHEMA = {"type": "object", "properties": {"active": {"type": "array"}}}
CHOICES = {"choice": ("[1, 0, 0, 1, 1]", "[0, 0, 0, 0, 0]")}
HARMONY = "<|channel|>analysis<|message|>[1] or [0]?<|end|><|start|>assistant<|channel|>final<|message|>"

BEHAVIOURS = (
    Behaviour("the answer alone", around(""), asks=("list", "sentence")),
    # Thinking
    Behaviour("`<think>…</think>` before the answer", around("<think>[0]? EXPLANATION: no\n</think>\n\n")),
    Behaviour(
        "thinking without an opening tag",
        around("so [0, 0] … the answer is</think>\n"),
        asks=("list", "sentence"),
    ),
    Behaviour("`<thought>`, `<seed:think>`, `<reasoning>` …", around("<seed:think>a\nb</seed:think>")),
    Behaviour("`[THINK]…[/THINK]`", around("[THINK]hm, [1]\n[/THINK]")),
    Behaviour(
        "`<|begin_of_thought|>`, then `<|begin_of_solution|>`",
        around("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>\n", "\n<|end_of_solution|>"),
    ),
    Behaviour(
        "`<|START_THINKING|>`, then `<|START_RESPONSE|>`",
        around("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    Behaviour("channels of gpt-oss, `<|channel|>final`", around(HARMONY, "<|return|>")),
    Behaviour(
        "the same with its control tokens left out (`analysis…assistantfinal…`)", around("analysisHm.assistantfinal")
    ),
    Behaviour(
        "`Here is my thought process: … Here is my response:`",
        around("Here is my thought process: a\n\nHere is my response:\n"),
    ),
    Behaviour("`<think></think><answer>…</answer>`", around("<think>\n\n</think>\n<answer>", "</answer>")),
    Behaviour("thinking in `reasoning_content`, the answer in `content`", around("", reasoning_content="[0]")),
    Behaviour("`content` null, the answer in `reasoning_content`", in_field("reasoning_content")),
    Behaviour("`content` null, the answer in `reasoning`", in_field("reasoning")),
    Behaviour(
        "all tokens used up by thinking: `content` empty, `finish_reason` `length`",
        in_field("reasoning_content", "Let me see. The first", ended="length"),
        "ends",
        "all of them thinking",
    ),
    Behaviour(
        "the same with the thinking in `content`",
        lambda body, good: completion("<think>Let me see.", ended="length"),
        "ends",
        "all of them thinking",
    ),
    # Forms of content
    Behaviour("`content` as a list of parts", content(lambda good: [{"type": "text", "text": good}])),
    Behaviour(
        "parts with thinking and text",
        content(
            lambda good: [
                {"type": "thinking", "thinking": [{"type": "text", "text": "[0]"}]},
                {"type": "text", "text": good},
            ]
        ),
    ),
    Behaviour("a message without `finish_reason`", without("choices", 0, "finish_reason")),
    Behaviour("`finish_reason` null", ended(None)),
    Behaviour("`finish_reason` empty", ended("")),
    Behaviour("`finish_reason` `eos_token`", ended("eos_token")),
    Behaviour("`finish_reason` `end_turn`, `STOP` or any other word", ended("STOP")),
    Behaviour(
        "`finish_reason` `abort` or `error`",
        lambda body, good: completion(good, ended="abort"),
        "ends",
        "broke off its answer",
        most=600,
    ),
    Behaviour("no `usage`", without("usage")),
    Behaviour(
        "`text` in place of `message`",
        lambda body, good: {"choices": [{"index": 0, "text": good, "finish_reason": "stop"}]},
    ),
    Behaviour("log probabilities that nobody asked for, as plain numbers", logprobs({"content": [-0.1, -0.2]})),
    Behaviour(
        "log probabilities as plain numbers, of a model that is declared to give them",
        logprobs([-0.1, -0.2]),
        "ends",
        "log probabilities without their tokens",
        entry={"capabilities": ("logprobs",)},
        wanted={"logprobs": 5},
    ),
    Behaviour(
        "log probabilities in the form of the older API",
        logprobs({"tokens": ["["], "token_logprobs": [-0.1], "top_logprobs": [{"[": -0.1}]}),
        entry={"capabilities": ("logprobs",)},
        wanted={"logprobs": 5},
    ),
    # What is left around an answer
    *(
        Behaviour(f"`{token}` at the end", around("", token), asks=("list", "sentence"))
        for token in ("<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<|endoftext|>", "<｜end▁of▁sentence｜>")
    ),
    Behaviour("text after the end of the turn", around("", "<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n[0, 0]")),
    Behaviour("the header of the turn before the answer", around("<|start_header_id|>assistant<|end_header_id|>\n\n")),
    Behaviour("bold around the answer", around("**", "**"), asks=("list", "sentence")),
    Behaviour("a code fence around the answer", around("```text\n", "\n```")),
    Behaviour("`\\boxed{…}` around the answer", around("$\\boxed{", "}$")),
    # What cannot be read
    Behaviour(
        "prose around every answer",
        around("I would say: ", " That is all."),
        "ends",
        "none of the first 20",
    ),
    Behaviour("every reply empty", lambda body, good: completion(""), "ends", "the reply was empty"),
    Behaviour(
        "every reply a refusal (`content_filter`)",
        lambda body, good: completion("", ended="content_filter"),
        "ends",
        "content filter",
    ),
    Behaviour(
        "single replies that cannot be read",
        one_in_three(around("Well: ", " Or not.")),
        "row",
        status="parse_failed",
        note="it is asked for a second time first",
    ),
    # Refusals and errors
    Behaviour(
        "400 to a system message", refusing(has_system, "system role not supported"), "ends", "system_role = false"
    ),
    Behaviour("the same, with `system_role = false`", refusing(has_system, "no"), entry={"system_role": False}),
    Behaviour(
        "400 to `structured_outputs`",
        refusing(lambda b: "structured_outputs" in b, "unknown field"),
        "ends",
        'take "choice" out',
        entry={"capabilities": ("choice",), **VLLM},
        wanted=CHOICES,
    ),
    Behaviour(
        "400 to `response_format`",
        refusing(lambda b: "response_format" in b, "unknown field"),
        "ends",
        'take "json_schema" out',
        entry={"capabilities": ("json_schema",)},
        wanted={"json_schema": SCHEMA},
    ),
    Behaviour(
        "400 to `logprobs`",
        refusing(lambda b: "logprobs" in b, "logprobs are not supported"),
        "ends",
        'take "logprobs" out',
        entry={"capabilities": ("logprobs",)},
        wanted={"logprobs": 5},
    ),
    Behaviour(
        "400 to `max_tokens` above what it allows",
        refusing(lambda b: b["max_tokens"] > 10, "max_tokens is too large"),
        "ends",
        "allow replies fewer than 40 tokens",
    ),
    Behaviour(
        "400 to every request", refusing(lambda b: True, "unknown parameter top_p"), "ends", "unknown parameter top_p"
    ),
    Behaviour(
        "400 to single requests",
        one_in_three(lambda body, good: Fault(status=400, message="too long")),
        "row",
        "too long",
        status="llm_error",
    ),
    Behaviour(
        "a choice that is ignored",
        around("I say "),
        "ends",
        "outside the choice",
        entry={"capabilities": ("choice",), **VLLM},
        wanted=CHOICES,
    ),
    Behaviour(
        "an error object with 200, code 402",
        raw('{"error": {"message": "No credits left", "code": 402}}'),
        "ends",
        "No credits left",
    ),
    Behaviour(
        "an error object with 200, code 429, for a while",
        first_time(Fault(raw=b'{"error": {"message": "slow down", "code": 429}}')),
        again=True,
    ),
    Behaviour(
        "an error object with 200, code 400",
        raw('{"error": {"message": "bad grammar", "code": 400}}'),
        "ends",
        "bad grammar",
    ),
    Behaviour("an error as text with 200", raw('{"error": "model is loading"}'), "ends", "model is loading", most=600),
    Behaviour(
        "an error in the choice, once",
        first_time(Fault(raw=b'{"choices": [{"error": {"message": "upstream", "code": 502}}]}')),
        again=True,
    ),
    Behaviour(
        "a page of HTML with 200",
        raw("<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>"),
        "ends",
        "HTML: Sign in",
        most=600,
    ),
)


def what_happens(behaviour: Behaviour) -> str:
    """One cell of the table."""
    if behaviour.happens == "read":
        return "sent again, then read" if behaviour.again else "read"
    if behaviour.happens == "row":
        return f"a row of status `{behaviour.status}`; all others are read" + (
            f"; {behaviour.note}" * bool(behaviour.note)
        )
    return f"the run ends early: “… {behaviour.why} …”"


def rows() -> list[tuple[str, str]]:
    """The table: what a server does, and what happens then."""
    return [(behaviour.name, what_happens(behaviour)) for behaviour in BEHAVIOURS]
