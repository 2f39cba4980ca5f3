"""What a server's refusal means: by its HTTP status, or by the error that it put into an answer with status 200.

What belongs here: the kind of failure for a status and an error code, and finding an error in a body that holds no
reply. Gateways that have begun an answer, and many servers, report errors with status 200.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from latentgloss.errors import without_secrets
from latentgloss.llm.engines.base import Failure
from latentgloss.llm.engines.usage import read_usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentgloss.llm.engines.base import Kind

QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Error codes of a 429 that does not pass by waiting."""
_STATUS = {
    429: ("rate_limit", "too_many_requests", "overloaded", "resource_exhausted"),
    402: (*QUOTA, "payment_required", "insufficient_credits", "insufficient_balance", "insufficient_funds"),
    401: ("authentication", "unauthorized", "unauthenticated", "invalid_api_key", "permission"),
    404: ("not_found",),
    400: ("invalid_request", "badrequest", "bad_request", "context_length_exceeded", "invalid_argument"),
}
"""HTTP statuses by words that occur in error codes and types; the first that fits counts."""


def kind_of(status: int, codes: frozenset[str] = frozenset()) -> Kind:
    """The kind of failure of an HTTP status, with the error codes that came with it."""
    if status == 429:
        return "forbidden" if codes & QUOTA else "busy"
    if status >= 500 or status in (408, 409, 425):
        return "failed"
    return "forbidden" if status in (401, 402, 403, 404) else "rejected"


def redirected(status: int, location: str | None, base_url: str) -> Failure:
    """The failure of an answer that sends the client elsewhere.

    It is never followed. Prompts and headers would go to a host that is not in the registry, and some redirects ask for
    a GET, whose answer is not a reply.
    """
    where = without_secrets((location or "").partition("?")[0])[:200]
    return Failure(
        "forbidden",
        f"HTTP {status}: it redirects to {where or 'no address'}",
        expected=f"an answer from {base_url} itself, because redirects are not followed: prompts and keys go to the "
        "server of the registry entry alone",
        todo="set base_url to the address that answers, if it is yours or your vendor's",
    )


def error_in(data: Any, headers: Mapping[str, str]) -> Failure | None:
    """The error in the body of an answer with status 200 that holds no reply, in the server's words; else None."""
    if isinstance(data, list) and data:
        data = data[0]  # as Gemini wraps it
    if not isinstance(data, dict):
        return None
    choices, several = data.get("choices"), data.get("errors")
    error = data.get("error") or (several[0] if isinstance(several, list) and several else several)
    if isinstance(choices, list) and choices:
        first = choices[0] if isinstance(choices[0], dict) else {}
        message = first.get("message")
        empty = isinstance(message, dict) and not any(message.get(name) for name in ("content", "refusal"))
        error = first.get("error") or (error if empty else None)
        if not isinstance(error, dict):
            return None
    elif not error:
        if "choices" in data or not isinstance(data.get("message") or data.get("detail"), str):
            return None
        error = data  # the error object itself, as vLLM wrote it once
    if not isinstance(error, dict):
        error = {"message": str(error)}
    codes = frozenset(str(error[name]) for name in ("code", "status", "type", "status_code") if error.get(name))
    status = _status(codes)
    words = error.get("message") or error.get("detail") or error
    shown = f"error {status}" if status else "an error"
    wait = headers.get("retry-after") or error.get("retry_after") or data.get("retry_after")
    # What was written before the error may be billed.
    billed = read_usage(data.get("usage")).completion_tokens > 0
    return Failure(
        kind_of(status or 500, codes),
        without_secrets(f"{shown} in an answer with HTTP 200: {words}")[:500],
        wait_s=retry_after(None if wait is None else str(wait)),
        billed=billed,
    )


def _status(codes: frozenset[str]) -> int | None:
    """The HTTP status that error codes stand for; None if they name none that is known."""
    numbers = [int(code) for code in codes if code.isascii() and code.isdecimal() and len(code) == 3]
    if known := [number for number in numbers if 400 <= number < 600]:
        return known[0]
    for status, words in _STATUS.items():
        if any(word in code.lower() for code in codes for word in words):
            return status
    return None


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a header that holds a number or a date; None if it is absent or holds neither."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - time.time())
    except (ValueError, TypeError):
        return None
