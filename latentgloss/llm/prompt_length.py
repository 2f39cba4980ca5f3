"""Whether a model can read a whole prompt, and whether it did.

What belongs here: the check before a request is sent (`context_length` of the registry entry) and the check of what the
server says it has read. Some servers cut a prompt that is too long for them without an error, usually at its beginning,
where the instructions are. Both checks need the model's tokenizer. Nothing is read or written here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latentgloss.llm.engines.usage import CACHED_ABOVE_PROMPT

if TYPE_CHECKING:
    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.protocols import Reply, Request

TOLERATED_TOKENS, TOLERATED_SHARE = 32, 0.02
"""How many tokens fewer than counted a server may report: so many or such a share of them, whichever is more. Its chat
template may lack a header or a default system message that the tokenizer's has."""


def too_long(spec: LanguageModelSpec, request: Request, counted: int | None) -> str:
    """Why a request must not be sent; empty if it may be. `counted`: tokens of its prompt, None if unknown."""
    if counted is None or spec.context_length is None or counted + request.max_tokens <= spec.context_length:
        return ""
    return (
        f"{counted} tokens of prompt and {request.max_tokens} of reply, and the context_length of {spec.name} is "
        f"{spec.context_length}; it was not sent"
    )


def checked(reply: Reply, counted: int | None) -> Reply:
    """The reply with the number of tokens counted in its prompt, as `prompt_truncated` if the server read too few.

    A server that reports no prompt tokens, or none that can be right, is not checked.
    """
    if counted is None:
        return reply
    reply = replace(reply, counted_prompt_tokens=counted)
    least = counted - max(TOLERATED_TOKENS, int(TOLERATED_SHARE * counted))
    read = reply.prompt_tokens
    if reply.status not in ("ok", "truncated") or not 0 < read < least or CACHED_ABOVE_PROMPT in reply.note:
        return reply
    return replace(
        reply,
        status="prompt_truncated",
        reason=f"the server read {read} tokens of a prompt of {counted}; its context is shorter than the prompt, or "
        "`tokenizer` in the registry is not that of the model it serves",
    )
