"""Replies that match a regular expression or fit a JSON schema: which tokens may come next.

What belongs here: what a request demands as a grammar of `llguidance`, and what becomes of one it refuses. Whoever
decodes masks all other tokens. A matcher knows its own reply and nothing else, so that company changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import LanguageModelError
from latentgloss.llm.engines.base import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Bool
    from llguidance._lib import JsonCompileOptions

    from latentgloss.protocols import Request


JSON: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as prompts show it. Where white space is free, a small model may write nothing else until it is cut off."""


class Grammars:
    """Makes matchers for one tokenizer."""

    def __init__(self, tokenizer: Any, ends: Iterable[int]) -> None:
        """`ends` are the tokens that end a reply. Raises LanguageModelError if no reply can be held to anything."""
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as e:
            raise LanguageModelError(
                f"llguidance cannot be imported ({e})",
                expected="it beside transformers: replies are held to regular expressions and schemas with it",
                todo="`pip install llguidance`",
            ) from e
        try:
            self._tokens = from_tokenizer(tokenizer, eos_token=sorted(ends))
        except ValueError as e:
            raise LanguageModelError(
                f"the tokenizer cannot be held to a regular expression or a schema ({e})",
                expected="a fast tokenizer whose tokens are bytes, or fall back to bytes",
                todo="serve the model with vLLM (engine openai_compatible), or name another one",
            ) from e

    def matcher(self, request: Request) -> Matcher:
        """Of the schema or, without one, the expression. Raises Failure (`rejected`) if llguidance refuses it."""
        from llguidance import LLMatcher

        if request.json_schema is not None:
            grammar = LLMatcher.grammar_from_json_schema(dict(request.json_schema), overrides=JSON)
        else:
            grammar = LLMatcher.grammar_from_regex(request.regex or "")
        return Matcher(LLMatcher(self._tokens, grammar, log_level=0))


class Matcher:
    """How far one reply has come."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._check()

    def allowed(self, n: int) -> Bool[np.ndarray, " n"]:
        """Of the first `n` tokens those that may come next; one that ends a reply, where the match is complete.

        Raises Failure if following the grammar goes beyond the library's limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        # A model can have more places than its tokenizer has tokens, and the mask is filled up to whole words.
        found = np.zeros(n, dtype=np.bool_)
        known = np.unpackbits(bits, bitorder="little", count=min(n, 8 * len(bits)))
        found[: len(known)] = known
        return found

    def take(self, token: int) -> None:
        """Goes on by a token that is allowed."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether the reply matches as it stands."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise Failure("rejected", f"llguidance cannot hold a reply to this: {self._matcher.get_error()}")
