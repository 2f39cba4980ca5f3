"""Reads the answer of a chat completion in the forms in which servers write it.

What belongs here: where servers put text, thinking, refusals, the reason for ending and log probabilities in the body
of an answer. What cannot be read becomes a `Failure` that quotes the server. `openai_compatible.py` sends the requests
and makes the `Reply`; errors in an answer are in `refusals.py`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from latentgloss.llm.engines.base import Failure
from latentgloss.protocols import TokenLogprobs

IMPOSSIBLE = -9999.0
"""Written by servers instead of minus infinity, which JSON does not have."""
QUOTED = 300
"""Most characters of a server's answer that a message quotes."""

_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "max_new_tokens", "model_length", "token_limit"})
_REFUSED = frozenset(
    {"content_filter", "refusal", "safety", "recitation", "prohibited_content", "blocklist", "sensitive"}
)
_BROKEN = frozenset({"error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource"})
"""Reasons for ending, in lower case. All others, such as `stop`, `eos_token`, `end_turn` or none, end a whole reply."""
_THINKING = ("reasoning_content", "reasoning", "thinking", "thoughts")
"""Fields of a message that hold thinking. Some servers put the whole reply there."""


def decoded(content: bytes) -> Any:
    """The JSON in the body of a 200. Raises Failure (`malformed`) with the beginning of a body that is not JSON."""
    try:
        return json.loads(content, parse_int=_integer)
    except (ValueError, RecursionError):
        raise Failure("malformed", f"an answer that is not JSON: {quoted(content)}") from None


def text_of(choice: dict[str, Any]) -> tuple[str, str, str]:
    """Text, thinking and refusal in a choice; empty where it has none. Raises TypeError for any other content."""
    message = choice.get("message")
    if message is None and isinstance(choice.get("text"), str):
        return choice["text"], "", ""
    content = message["content"] if isinstance(message, dict) and "content" in message else None
    found = {"text": "", "thinking": "", "refusal": ""}
    parts = content if isinstance(content, list) else [] if content is None else [content]
    for part in parts:
        kind, words = _part(part)
        found[kind] += words
    if not isinstance(message, dict):
        raise TypeError(f"message is {type(message).__name__}")
    if not found["thinking"]:
        found["thinking"] = next((words for name in _THINKING if (words := _words(message.get(name)))), "")
    return found["text"], found["thinking"], found["refusal"] or _words(message.get("refusal"))


def ended_of(choice: dict[str, Any], usage: Any, max_tokens: int) -> Literal["stop", "length", "refused"]:
    """How a choice ended. Where no reason is given, it was cut if it has as many tokens as were allowed.

    `usage`: that of the answer, if it has one. Raises Failure (`failed`) if the server broke off.
    """
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    cut = isinstance(tokens, int | float) and tokens >= max_tokens
    given = choice.get("finish_reason")
    name = "" if given is None else str(given).strip().lower()
    if name in _CUT or (name in ("", "none", "null") and cut):
        return "length"
    if name in _REFUSED:
        return "refused"
    if name in _BROKEN:
        raise Failure("failed", f"the server broke off its answer (finish_reason {given!r})")
    return "stop"


def logprobs_of(choice: dict[str, Any]) -> tuple[TokenLogprobs, ...] | None:
    """The tokens of a choice with their log probabilities; empty if it has none, None if they have no known form."""
    given = choice.get("logprobs")
    try:
        if isinstance(given, dict) and given.get("tokens"):  # as the older API for completions writes them
            tops = given.get("top_logprobs") or [None] * len(given["tokens"])
            rows = zip(given["tokens"], given["token_logprobs"], tops, strict=True)
            return tuple(_token(token, logprob, top) for token, logprob, top in rows)
        listed = (given.get("content") if isinstance(given, dict) else given) or ()
        return tuple(_token(item["token"], item["logprob"], item.get("top_logprobs")) for item in listed)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _token(token: Any, logprob: Any, top: Any) -> TokenLogprobs:
    listed = top.items() if isinstance(top, dict) else ((t["token"], t["logprob"]) for t in top or ())
    found = [(str(t), float(p)) for t, p in listed if p is not None]
    ordered = sorted((t for t in found if t[1] > IMPOSSIBLE), key=lambda t: -t[1])
    return TokenLogprobs(str(token), float("nan") if logprob is None else float(logprob), tuple(ordered))


def _part(part: Any) -> tuple[Literal["text", "thinking", "refusal"], str]:
    """Whether a part of a message's content is text, thinking or a refusal; and its words."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        raise TypeError(f"content is {type(part).__name__}")
    kind = str(part.get("type") or "text").lower()
    if "think" in kind or "reason" in kind:
        return "thinking", _words(part)
    if kind == "refusal":
        return "refusal", _words(part)
    if not isinstance(part.get("text"), str):
        raise TypeError(f"content has a part of type {kind!r} without text")
    return "text", part["text"]


def _words(value: Any) -> str:
    """The text in a field that is a text, or a list or object around texts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_words, value))
    if isinstance(value, dict):
        return next(
            (_words(value[name]) for name in ("text", *_THINKING, "refusal", "summary", "content") if value.get(name)),
            "",
        )
    return ""


def quoted(content: bytes) -> str:
    """The beginning of an answer in one line, without the tags of HTML."""
    text = content[: 20 * QUOTED].decode("utf-8", "replace")
    if "<html" in text[:QUOTED].lower() or "<!doctype" in text[:QUOTED].lower():
        text = "HTML: " + re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    text = " ".join(text.split())
    return (text if len(text) <= QUOTED else text[:QUOTED] + "…") or "(nothing)"


def _integer(digits: str) -> int | float:
    """An integer in JSON. Python refuses to read one of thousands of digits, which is no number of anything here."""
    return int(digits) if len(digits) < 400 else float("inf")
