"""Intruder detection: among five passages of marked text, the one whose marks belong to another latent.

What belongs here: the prompt of one trial and how a reply is read. It judges a latent without any explanation: four
windows of one decile, and one activating window of a latent that does not fire together with it, with marks of its own
in as many runs. Chance is one in five. Method: arXiv 2507.08473; which windows make a trial is the stage's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from latentgloss.asking import Ask, Unread, storable, without_thoughts
from latentgloss.errors import ScorerError
from latentgloss.prompting import prompt
from latentgloss.protocols import Request
from latentgloss.quoting import quoted_tokens

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, UInt32

    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.protocols import LanguageModel, Reply

PASSAGES = 5
MAX_TOKENS = 16


def trial(
    tokens: UInt32[np.ndarray, "five length"],
    marks: Bool[np.ndarray, "five length"],
    vocabulary: Vocabulary,
    model: LanguageModel,
) -> Ask[int]:
    """One trial, windows in the order they are shown; its value is the place of the intruder, from 0.

    Raises ScorerError unless there are five windows, all of them marked.
    """
    if len(tokens) != PASSAGES or not marks.any(axis=1).all():
        raise ScorerError(
            f"a trial of {len(tokens)} windows, {int(marks.any(axis=1).sum())} of them marked",
            expected=f"{PASSAGES} marked windows",
        )
    asked = prompt("intruder")
    lines = [
        f"{i}. {quoted_tokens(row, vocabulary, m)}" for i, (row, m) in enumerate(zip(tokens, marks, strict=True), 1)
    ]
    choice = tuple(str(i + 1) for i in range(PASSAGES)) if "choice" in model.capabilities else None
    request = Request(asked.messages(passages="\n".join(lines)), MAX_TOKENS, choice=choice)
    return Ask(request, read_place, lambda messages, reply, problem: asked.repaired(messages, reply, problem=problem))


def read_place(reply: Reply) -> int:
    """The number of a passage, and nothing beside it. Raises Unread for anything else."""
    text = without_thoughts(storable(reply.text)).strip()
    if not re.fullmatch(rf"[1-{PASSAGES}]\.?", text):
        raise Unread(f"it is not a number from 1 to {PASSAGES}, and that alone")
    return int(text[0]) - 1
