"""What judges that ask a language model have in common.

What belongs here: the identity of such a judge, and the number of a prompt. What is asked and how a reply is parsed is
up to each judge (`reading.py`, `intruder.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.llm.prompts.templates import messages_sha256

if TYPE_CHECKING:
    from latentgloss.llm.prompts.templates import Prompt
    from latentgloss.protocols import LanguageModel, Request


ALTERNATIVES = 5
"""Most probable tokens whose log probability is requested at each place of a reply."""


def language_model_identity(
    judge: str, version: str, model: LanguageModel, prompt: Prompt, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that decides the answers of a judge that asks a language model.

    `settings`: those of the judge that decide its answers, if any.
    """
    return {
        "judge": judge,
        "version": version,
        "model": model.identity(),
        "prompt": prompt.sha256,
        "temperature": 0.0,
        "uses": used_capabilities(model),
        **(settings or {}),
    }


def used_capabilities(model: LanguageModel) -> list[str]:
    """The capabilities of a model that a judge uses, sorted.

    They are part of its identity because a model answers differently if it is held to a list or a schema, or if its
    probabilities are read.
    """
    return sorted({"choice", "json_schema", "logprobs"} & model.capabilities)


def prompt_number(request: Request) -> int:
    """The first 60 bits of the hash of a request's messages. Judgements made in one prompt share this number."""
    return int(messages_sha256(request.messages)[:15], 16)
