"""A request in the form in which it is sent to a model that has no system role, or that thinks before it answers.

What belongs here: what the registry entry of a model changes in every request, whatever engine sends it. The reply
cache knows a request as it was made; the entry's fields are in the model's identity. Nothing is read or written here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latentgloss.protocols import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.protocols import Request


def as_sent(spec: LanguageModelSpec, request: Request) -> Request:
    """The request with the entry's allowance for thinking, and without a system message if the model has none."""
    if spec.system_role and not spec.reasoning_tokens:
        return request
    messages = request.messages if spec.system_role else in_user_turn(request.messages)
    return replace(request, messages=messages, max_tokens=request.max_tokens + spec.reasoning_tokens)


def in_user_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with the text of system messages at the beginning of the first user message."""
    system = [message.content for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    if not system:
        return tuple(others)
    first = next((place for place, message in enumerate(others) if message.role == "user"), None)
    if first is None:
        return (Message("user", "\n\n".join(system)), *others)
    others[first] = Message("user", "\n\n".join([*system, others[first].content]))
    return tuple(others)
