"""Short requests that find out whether a server answers, and what it refuses.

What belongs here: the probe that asks in the same form as a failing request, and the plainer probes, each without one
part of that form, that show which part the server refuses. `sending.py` sends them. Nothing is read or written here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latentgloss.protocols import Message

if TYPE_CHECKING:
    from collections.abc import Hashable

    from latentgloss.protocols import Request


ASKED = Message("user", "Reply with the word: yes")
SYSTEM = Message("system", "You answer in one word.")
MOST_TOKENS = 8
"""Most tokens of a reply to the last of the plainer probes."""
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


def form(request: Request) -> Hashable:
    """What a server may refuse in a request whatever it says: a system message, constraints, log probabilities."""
    return (
        any(message.role == "system" for message in request.messages),
        request.choice is not None,
        request.regex is not None,
        request.json_schema is not None,
        request.logprobs > 0,
        bool(request.stop),
        request.seed is not None,
    )


def probe(request: Request) -> Request:
    """A request in the same form, with the same maximum length, to which the answer is one word."""
    system = any(message.role == "system" for message in request.messages)
    return replace(
        request,
        messages=(SYSTEM, ASKED) if system else (ASKED,),
        choice=None if request.choice is None else ("yes", "no"),
        regex=None if request.regex is None else "yes",
        json_schema=None if request.json_schema is None else _SCHEMA,
        attempt=0,
    )


def plainer(request: Request) -> list[tuple[str, Request]]:
    """Probes that lack one part of a request's form, each with what to do if the server answers that one."""
    short = probe(request)
    found: list[tuple[str, Request]] = []
    if len(short.messages) > 1:
        todo = "declare `system_role = false` in the registry entry: the server answers without a system message"
        found.append((todo, replace(short, messages=(ASKED,))))
    parts = {"choice": None, "regex": None, "json_schema": None, "logprobs": 0, "seed": None}
    for name, nothing in parts.items():
        if getattr(short, name) not in (None, 0):
            todo = f'take "{name}" out of `capabilities` in the registry entry: the server answers without it'
            found.append((todo, replace(short, **{name: nothing})))  # type: ignore[arg-type]
    todo = (
        f"allow replies fewer than {short.max_tokens:,} tokens (`max_tokens` in the settings): the server answers then"
    )
    return [*found, (todo, replace(short, max_tokens=MOST_TOKENS))]
