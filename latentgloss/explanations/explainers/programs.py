"""Executable explanations: from stored JSON back to a predictor.

A program names its `kind`, and `PROGRAMS` lists what reads each kind. An explanation without a program can only be
judged by reading it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from latentgloss.errors import ExplainerError
from latentgloss.explanations.explainers.pattern.rules import Pattern
from latentgloss.explanations.explainers.token_table import TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import Predictor


PROGRAMS: dict[str, Callable[[str, Vocabulary], Predictor]] = {
    "pattern": Pattern.from_json,
    "token_table": TokenTable.from_json,
}
"""Per kind, what reads its programs."""


@lru_cache(maxsize=2048)  # a program is also the null explanation of other latents, several of them in succession
def load_program(program: str, vocabulary: Vocabulary) -> Predictor:
    """The predictor that a stored program describes. Raises ExplainerError if its kind is unknown or it is damaged."""
    try:
        kind = json.loads(program)["kind"]
        read = PROGRAMS[kind]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ExplainerError(
            f"a program of no known kind ({e})",
            expected=f"JSON with kind {' or '.join(sorted(PROGRAMS))}",
            todo="compute the explanations again",
        ) from e
    return read(program, vocabulary)
