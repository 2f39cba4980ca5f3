"""Reads the tokens that a server says it bills, whatever it wrote into `usage`.

What belongs here: which of the numbers can be true, and which reading of them is charged. Servers count differently:
some leave the tokens of thinking out of `completion_tokens` and show them in `total_tokens` or in the details only.
Charged is the largest reading that is consistent. A number that cannot be true (negative, no number, beyond `LARGEST`)
counts as not reported; `payments.py` then charges the most that was possible.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from latentgloss.errors import without_secrets

LARGEST = 2**31 - 1
"""No request takes more tokens than this, and two such counts (a reply and its repair) fit into a column of 32 bits."""
CACHED_ABOVE_PROMPT = "more cached tokens than prompt tokens"
"""Part of `Usage.note` if the prompt's tokens may not include those from the server's prefix cache."""
_DIGITS = re.compile(r"\s*\d{1,12}\s*")


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. 0 prompt tokens mean that the server did not report them."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    note: str = ""
    """What in the report could not be true or went beyond its own fields; empty if nothing did."""


def read_usage(usage: Any) -> Usage:
    """The largest consistent reading of the field `usage` of an answer. Raises nothing."""
    if usage is None:
        return Usage()
    if not isinstance(usage, dict):
        return Usage(note=f"usage is {_shown(usage)}")
    faults: list[str] = []
    prompt = _largest(usage, ("prompt_tokens", "input_tokens"), faults)
    completion = _largest(usage, ("completion_tokens", "output_tokens"), faults)
    total = _largest(usage, ("total_tokens",), faults)
    if total is not None and prompt is not None and total < prompt + (completion or 0):
        faults.append(f"total_tokens = {total} is less than prompt and completion")
        total = None
    billed = _billed(usage, prompt, completion, total, faults)
    if not prompt and completion and total is not None and total > completion:
        prompt = total - completion
    return Usage(prompt or 0, _cached(usage, prompt or 0, faults), billed, without_secrets("; ".join(faults))[:300])


def _billed(
    usage: dict[str, Any], prompt: int | None, completion: int | None, total: int | None, faults: list[str]
) -> int:
    """Tokens that are billed as the reply, with those that the server counts outside `completion_tokens`."""
    billed = completion or 0
    if total is not None and (prompt or not completion):  # without the prompt's, the rest may be the prompt
        billed = max(billed, total - (prompt or 0))
    details = [usage.get("completion_tokens_details"), usage.get("output_tokens_details")]
    counts = [_largest(part, tuple(part), faults) or 0 for part in details if isinstance(part, dict)]
    apart = max([*counts, _largest(usage, ("reasoning_tokens",), faults) or 0])
    if apart > billed:  # so they cannot be included
        billed += apart
    if not billed and completion is None:
        faults.append("completion_tokens is not reported")
    billed = min(billed, LARGEST)
    if completion is not None and billed > completion:
        faults.append(f"{billed} tokens of reply by total_tokens or the details, completion_tokens = {completion}")
    return billed


def _cached(usage: dict[str, Any], prompt: int, faults: list[str]) -> int:
    """Prompt tokens from the server's cache, which have a price of their own; 0 if there cannot be so many."""
    details = [usage.get("prompt_tokens_details"), usage.get("input_tokens_details")]
    counts = [_largest(part, ("cached_tokens",), faults) for part in details if isinstance(part, dict)]
    cached = max(
        (count for count in [*counts, _largest(usage, ("prompt_cache_hit_tokens",), faults)] if count), default=0
    )
    if prompt and cached > prompt:
        faults.append(f"{CACHED_ABOVE_PROMPT} ({cached}, {prompt})")
    return cached if cached <= prompt else 0


def _largest(part: dict[str, Any], names: tuple[str, ...], faults: list[str]) -> int | None:
    """The largest usable count among these fields; None if there is none. Others are added to `faults`."""
    found: list[int] = []
    for name in names:
        value = part.get(name)
        if value is None:
            continue
        count = _count(value)
        if count is None:
            faults.append(f"{name} = {_shown(value)}")
        else:
            found.append(count)
    return max(found, default=None)


def _count(value: Any) -> int | None:
    """A count of tokens; None if the value is none or cannot be true."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        return None  # NaN is not between the two either
    return math.ceil(value)


def _shown(value: Any) -> str:
    try:
        return repr(value)[:40]
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of thousands of digits"
