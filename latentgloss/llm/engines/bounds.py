"""The most tokens that a request body allows a server to bill.

What belongs here: which fields of a body limit a reply, and which multiply it. A body is what is really sent, with the
parameters of the registry entry, which override those of the request. The names are those of OpenAI and of servers that
speak its protocol (vLLM, llama.cpp, Ollama, text-generation-inference, OpenRouter). Where several limits are sent, the
largest counts, because servers differ in which one they obey.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIMITS = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "max_new_tokens",
        "max_output_tokens",
        "max_gen_tokens",
        "max_gen_toks",
        "max_length",
        "n_predict",
        "num_predict",
    }
)
"""Fields that limit the tokens of one reply."""
THINKING = frozenset({"thinking_budget", "budget_tokens", "thinking_token_budget", "max_thinking_tokens"})
"""Fields that allow tokens of thinking, which some servers bill on top of the limit."""
MULTIPLIERS = frozenset({"n", "best_of", "num_return_sequences", "num_beams", "beam_width", "num_completions"})
"""Fields that make a server write several replies. The largest counts: `best_of` includes `n`."""
_NOT_INSIDE = frozenset(
    {"messages", "tools", "functions", "response_format", "structured_outputs", "logit_bias", "metadata"}
)
"""Fields whose content names things of its own, such as the properties of a JSON schema."""
_SHOWN = frozenset({"tools", "functions", "response_format", "documents", "prediction"})
"""Fields besides `messages` whose content a server puts into the prompt."""


def most_reply_tokens(body: Mapping[str, Any]) -> int | None:
    """The most tokens of all replies to a body together; None if it sets no limit or none that can be read."""
    fields = list(_fields(body))
    limits = [_number(value) for name, value in fields if name in LIMITS]
    if not limits or any(limit is None for limit in limits):
        return None
    thinking = sum(_number(value) or 0 for name, value in fields if name in THINKING)
    several = [_number(value) or 1 for name, value in fields if name in MULTIPLIERS]
    return (max(limit or 0 for limit in limits) + thinking) * max(several, default=1)


def more_prompt_tokens(parameters: Mapping[str, Any]) -> int:
    """A bound on prompt tokens that come from the parameters of a registry entry: one per two bytes.

    The schema of a request is not included: servers that constrain the reply to it do not show it to the model.
    """
    shown = {name: value for name, value in parameters.items() if name in _SHOWN}
    return len(json.dumps(shown, ensure_ascii=False).encode("utf-8", "replace")) // 2 if shown else 0


def _fields(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All fields of a body, also those inside others (`options`, `extra_body`, `reasoning`)."""
    for name, value in part.items():
        yield name, value
        if isinstance(value, dict) and name not in _NOT_INSIDE:
            yield from _fields(value)


def _number(value: Any) -> int | None:
    """A positive whole number, also as a decimal or a text, which lenient servers accept; None for anything else."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return math.ceil(number) if number is not None and 0 < number < math.inf else None
