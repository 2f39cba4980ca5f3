"""What a server's refusal means: by its HTTP status, or by the error that it put into an answer with status 200.

What belongs here: the kind of failure for a status and an error code, and finding an error in a body that holds no
reply.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from latentgloss.llm.engines.base import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentgloss.llm.engines.base import Kind


QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Error codes of a 429 that does not pass by waiting."""
_STATUS = {
    429: r"rate.?limit|too.?many|overloaded",
    402: r"quota|billing|credit|balance|payment",
    401: r"auth|api.?key|permission",
    400: r"invalid|bad.?request|context.?length|unsupported",
}
"""HTTP statuses by what an error's code or type says, for errors without a status."""


def kind_of(status: int, codes: frozenset[str] = frozenset()) -> Kind:
    """The kind of failure of an HTTP status, with the error codes that came with it."""
    if status == 429:
        return "forbidden" if codes & QUOTA else "busy"
    if status >= 500 or status in (408, 409, 425):
        return "failed"
    return "forbidden" if status in (401, 402, 403, 404) else "rejected"


def error_in(data: Any, headers: Mapping[str, str]) -> Failure | None:
    """The error in the body of an answer with status 200 that holds no reply, in the server's words; else None."""
    if not isinstance(data, dict):
        return None
    choices = data.get("choices")
    if isinstance(choices, list) and choices:
        error = choices[0].get("error") if isinstance(choices[0], dict) else None
    else:
        error = data.get("error") or (data if isinstance(data.get("message") or data.get("detail"), str) else None)
    if not error:
        return None
    found = error if isinstance(error, dict) else {"message": str(error)}
    codes = frozenset(str(found[name]) for name in ("code", "status", "type") if found.get(name))
    status = next((int(code) for code in sorted(codes) if re.fullmatch(r"[45]\d\d", code)), None)
    if status is None:
        words = " ".join(sorted(codes)).lower()
        status = next((status for status, pattern in _STATUS.items() if re.search(pattern, words)), None)
    shown = f"error {status}" if status else "an error"
    said = found.get("message") or found.get("detail") or found
    return Failure(kind_of(status or 500, codes), f"{shown} in an answer with HTTP 200: {said}"[:500])
