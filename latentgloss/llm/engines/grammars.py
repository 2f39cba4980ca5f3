"""Holds replies to a regular expression or a JSON schema: says which tokens may come next.

What belongs here: translating the demands of a request into a grammar of `llguidance`, and refusing a grammar that
`llguidance` cannot handle. The engine masks all other tokens when it decodes. A matcher knows only its own reply, so
that a reply does not depend on the rest of its batch.
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
"""JSON is spaced as in the prompts. If white space were free, a small model might write it until it is cut off."""


class Grammars:
    """Makes matchers for one tokenizer."""

    def __init__(self, tokenizer: Any, ends: Iterable[int]) -> None:
        """`ends` are the tokens that end a reply. Raises LanguageModelError if the tokenizer is not supported."""
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as e:
            raise LanguageModelError(
                f"llguidance cannot be imported ({e})",
                expected="llguidance beside transformers, to hold replies to regular expressions and schemas",
                todo="`pip install llguidance`",
            ) from e
        try:
            self._tokens = from_tokenizer(tokenizer, eos_token=sorted(ends))
        except ValueError as e:
            raise LanguageModelError(
                f"llguidance cannot use the model's tokenizer to hold replies to an expression or a schema ({e})",
                expected="a fast tokenizer whose tokens are bytes, or fall back to bytes",
                todo="serve the model with vLLM (engine openai_compatible), or use another model",
            ) from e

    def matcher(self, request: Request) -> Matcher:
        """A matcher for the request's schema or, without one, its expression.

        Raises Failure (`rejected`) if llguidance refuses it.
        """
        from llguidance import LLMatcher

        if request.json_schema is not None:
            grammar = LLMatcher.grammar_from_json_schema(dict(request.json_schema), overrides=JSON)
        else:
            grammar = LLMatcher.grammar_from_regex(request.regex or "")
        return Matcher(LLMatcher(self._tokens, grammar, log_level=0))


class Matcher:
    """The state of one reply in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._check()

    def allowed(self, n: int) -> Bool[np.ndarray, " n"]:
        """Which of the first `n` tokens may come next. Tokens that end a reply may come where the match is complete.

        Raises Failure (`rejected`) if the grammar exceeds the library's limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        # A model can have more logits than its tokenizer has tokens, and the mask is padded to whole words.
        found = np.zeros(n, dtype=np.bool_)
        known = np.unpackbits(bits, bitorder="little", count=min(n, 8 * len(bits)))
        found[: len(known)] = known
        return found

    def take(self, token: int) -> None:
        """Appends an allowed token to the reply. Raises Failure (`rejected`) as `allowed` does."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether the reply matches in its present state."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise Failure("rejected", f"llguidance cannot hold a reply to this: {self._matcher.get_error()}")
