"""Reads the answer of a chat completion in the forms in which servers write it.

What belongs here: where servers put text, thinking, refusals, the reason for ending, log probabilities and errors in
the body of an answer. What cannot be read becomes a `Failure` that quotes the server. `openai_compatible.py` sends the
requests and makes the `Reply`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal

from latentgloss.llm.engines.base import Failure
from latentgloss.protocols import TokenLogprobs

if TYPE_CHECKING:
    from latentgloss.llm.engines.base import Kind


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
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_credits", "insufficient_balance")
"""Error codes of a 429 that does not pass by waiting."""
_WORDS: tuple[tuple[str, Kind], ...] = (
    (r"quota|billing|credit|balance|payment", "forbidden"),
    (r"auth|api.?key|permission|forbidden|model.?not.?found", "forbidden"),
    (r"rate.?limit|too.?many|overloaded", "busy"),
    (r"invalid|bad.?request|context.?length|unsupported|content.?filter", "rejected"),
)
"""Kinds of failure by what an error's code or type says, for errors without a status."""


def kind_of(status: int, codes: set[str]) -> Kind:
    """What a status of HTTP means, together with the codes in the body of the error."""
    if status == 429:
        return "forbidden" if codes.intersection(_QUOTA) else "busy"
    if status >= 500 or status in (408, 409, 425):
        return "failed"
    return "forbidden" if status in (401, 402, 403, 404) else "rejected"


def decoded(content: bytes) -> dict[str, Any]:
    """The JSON object in the body of a 200.

    Raises Failure if it is none (`malformed`), and if it is an error, of the kind that the error's code says.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise Failure("malformed", f"an answer that is not JSON: {_quoted(content)}") from None
    if not isinstance(data, dict):
        raise Failure("malformed", f"an answer that is not an object: {_quoted(content)}")
    error = data.get("error")
    if not error and not data.get("choices"):  # how vLLM, FastAPI and others write an error
        error = data if data.keys() & {"message", "detail", "msg"} else None
    if error:
        raise error_of(error)
    return data


def error_of(error: Any) -> Failure:
    """The failure that an error in the body of a 200 describes."""
    found = error if isinstance(error, dict) else {"message": error}
    said = next((found[name] for name in ("message", "detail", "msg", "error") if found.get(name)), None)
    words = said if isinstance(said, str) else json.dumps(error if said is None else said, ensure_ascii=False)
    codes = {str(found[name]) for name in ("code", "status", "type") if found.get(name)}
    statuses = [int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)]
    kind: Kind = kind_of(statuses[0], codes) if statuses else "failed"
    if not statuses:
        about = " ".join(sorted(codes)).lower()
        kind = next((kind for pattern, kind in _WORDS if re.search(pattern, about)), kind)
    named = f" {', '.join(sorted(codes))}" if codes else ""
    return Failure(kind, f"HTTP 200 with the error{named}: {_quoted(words.encode('utf-8', 'replace'))}")


def text_of(choice: dict[str, Any]) -> tuple[str, str, str]:
    """Text, thinking and refusal in a choice; empty where it has none. Raises TypeError for any other content."""
    if choice.get("error"):
        raise error_of(choice["error"])
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


def ended_of(choice: dict[str, Any], *, cut: bool) -> Literal["stop", "length", "refused"]:
    """How a choice ended. `cut`: whether it has as many tokens as were allowed, which decides where no reason is given.

    Raises Failure (`failed`) if the server broke off.
    """
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


def _quoted(content: bytes) -> str:
    """The beginning of an answer in one line, without the tags of HTML."""
    text = content[: 20 * QUOTED].decode("utf-8", "replace")
    if "<html" in text[:QUOTED].lower() or "<!doctype" in text[:QUOTED].lower():
        text = "HTML: " + re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    text = " ".join(text.split())
    return (text if len(text) <= QUOTED else text[:QUOTED] + "…") or "(nothing)"
