"""The executable forms of explanations: from stored JSON back to what predicts.

A program names its `kind`; `PROGRAMS` says what reads it. An explanation without a program is for judges that read.
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


@lru_cache(maxsize=2048)  # a program is somebody's null, too: several latents' in a row
def load_program(program: str, vocabulary: Vocabulary) -> Predictor:
    """The predictor a stored program describes. Raises ExplainerError if nothing here reads it."""
    try:
        kind = json.loads(program)["kind"]
        read = PROGRAMS[kind]
    except (ValueError, KeyError, TypeError) as e:
        raise ExplainerError(
            f"a program that nothing here reads ({e})",
            expected=f"JSON with kind {' or '.join(sorted(PROGRAMS))}",
            todo="compute the explanations again",
        ) from e
    return read(program, vocabulary)
