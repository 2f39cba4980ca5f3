"""Judges of intruder detection: which of five marked passages has the marks of another latent?

What belongs here: what answers a trial, and how a reply is parsed. A latent is judged without any explanation. A
question is one trial, and its answer names one passage; chance is one in five. Method: arXiv 2507.08473. Which windows
make a trial is decided in `scorers/trials.py`.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from functools import partial
from math import exp
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import ScorerError
from latentgloss.llm.asking import Planned, Query, QueryResult, UnparsableReply, answer_in, ask_all
from latentgloss.llm.prompts.quoting import quoted_tokens
from latentgloss.llm.prompts.templates import prompt
from latentgloss.llm.reply_text import unwrapped
from latentgloss.protocols import Answer, Request
from latentgloss.scores.judges.language_model import ALTERNATIVES, language_model_identity, prompt_number
from latentgloss.scores.scorers.trials import ARM, PASSAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from jaxtyping import Bool, UInt32

    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import LanguageModel, Question, Reply


VERSION = "2"
"""Incremented when the same reply would lead to a different answer."""
MAX_TOKENS = 16
"""Most tokens of a reply."""
MAX_TOKENS_JSON = 32
"""Most tokens of a reply that is an object around the number, which may span several lines."""
PLACES = tuple(str(i + 1) for i in range(PASSAGES))
"""The possible replies."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {ARM: {"type": "integer", "enum": [int(place) for place in PLACES]}},
    "required": [ARM],
    "additionalProperties": False,
}
"""An object around the number, for models that support schemas but no choice."""

_OBJECT = re.compile(rf'\{{\s*"{ARM}"\s*:\s*([1-{PASSAGES}])\s*\}}')


@dataclass(frozen=True)
class Choice:
    """What a reply says."""

    place: int
    """Place of the intruder, from 0."""
    probability: tuple[float, ...] | None = None
    """Probability of each place; None if it is unknown."""


class IntruderJudge:
    """A language model that looks for the intruder."""

    embedder = ""
    decides = True

    def __init__(self, model: LanguageModel, vocabulary: Callable[[], Vocabulary]) -> None:
        """`vocabulary` returns the subject model's vocabulary. It is called only when a question is asked."""
        self.model, self.vocabulary = model, vocabulary

    @property
    def name(self) -> str:
        """Name of the language model; part of the key in score tables."""
        return self.model.name

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers."""
        return language_model_identity("intruder", VERSION, self.model, prompt("intruder"))

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order. Questions are read only as the model takes requests."""
        pending: deque[Request] = deque()

        def queries() -> Iterator[Query[Choice]]:
            for question in questions:
                query = self._query(question)
                pending.append(query.request)
                yield query

        for result in ask_all(self.model, queries()):
            yield _answer(result, prompt_number(pending.popleft()))

    def planned(self, question: Question) -> list[Planned]:
        """The query of a question, for an estimate."""
        return [Planned(self.model, self._query(question))]

    def _query(self, question: Question) -> Query[Choice]:
        """The query of a question. Raises ScorerError if its windows are not marked."""
        if question.marks is None:
            raise ScorerError("a trial without marks", expected=f"{PASSAGES} marked windows")
        return trial(question.tokens, question.marks, self.vocabulary(), self.model)


class MarkedTokens:
    """Names the passage whose marked tokens are least similar to those of the others; the first of several such.

    The similarity of two passages is the Jaccard index of their sets of marked tokens, without regard to case and
    spacing. This shows what can be found without understanding anything.
    """

    name, embedder, decides = "tokens", "", True

    def __init__(self, vocabulary: Vocabulary) -> None:
        """`vocabulary`: that of the subject model."""
        self.vocabulary = vocabulary

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Everything that decides its answers."""
        return {"judge": cls.name, "version": "1"}

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order."""
        for question in questions:
            assert question.marks is not None
            self.vocabulary.check(question.tokens)
            words = [
                {self.vocabulary.strings[token].strip().casefold() for token in row[marked]}
                for row, marked in zip(question.tokens, question.marks, strict=True)
            ]
            alike = [sum(len(a & b) / len(a | b) for b in words) for a in words]
            yield named(int(np.argmin(alike)), len(words))


def named(place: int, n: int, probability: Sequence[float] | None = None, prompt: int | None = None) -> Answer:
    """The answer that passage `place` of `n` (from 0) is the intruder.

    `probability`: that of being the intruder, for each place, if it is known. `prompt`: number of the prompt.
    """
    belongs = np.arange(n) != place
    share = None if probability is None else (1 - np.asarray(probability)).astype(np.float32)
    evidence = belongs.astype(np.float32) if share is None else share
    return Answer(evidence, belongs, share, None if prompt is None else np.full(n, prompt, dtype=np.int64))


def _answer(result: QueryResult[Choice], prompt: int) -> Answer:
    """The answer to a trial, from the result of its query and the number of its prompt."""
    spent = (result.prompt_tokens, result.completion_tokens, result.cost_usd)
    if result.value is None:
        nothing = np.full(PASSAGES, np.nan, dtype=np.float32)
        of_prompt = np.full(PASSAGES, prompt, dtype=np.int64)
        status, reason = [result.status] * PASSAGES, [result.reason] * PASSAGES
        return Answer(nothing, np.zeros(PASSAGES, bool), None, of_prompt, status, reason, *spent)
    found = named(result.value.place, PASSAGES, result.value.probability, prompt)
    return Answer(found.evidence, found.prediction, found.probability, found.prompt, None, None, *spent)


def trial(
    tokens: UInt32[np.ndarray, "five length"],
    marks: Bool[np.ndarray, "five length"],
    vocabulary: Vocabulary,
    model: LanguageModel,
) -> Query[Choice]:
    """The query of one trial, with the windows in the order in which they are shown.

    Raises ScorerError unless there are five windows, all of them marked.
    """
    if len(tokens) != PASSAGES or not marks.any(axis=1).all():
        raise ScorerError(
            f"a trial of {len(tokens)} windows, {int(marks.any(axis=1).sum())} of them marked",
            expected=f"{PASSAGES} marked windows",
        )
    template = prompt("intruder")
    lines = [
        f"{i}. {quoted_tokens(row, vocabulary, m)}" for i, (row, m) in enumerate(zip(tokens, marks, strict=True), 1)
    ]
    held = _held(model)
    request = Request(
        template.messages(passages="\n".join(lines)),
        MAX_TOKENS_JSON if held else MAX_TOKENS,
        choice=PLACES if "choice" in model.capabilities else None,
        json_schema=SCHEMA if held else None,
        logprobs=ALTERNATIVES if "logprobs" in model.capabilities else 0,
    )
    read = partial(read_choice, schema=held)
    return Query(request, read, lambda messages, reply, problem: template.repaired(messages, reply, problem=problem))


def _held(model: LanguageModel) -> bool:
    """Whether replies of the model are held to `SCHEMA`."""
    return "json_schema" in model.capabilities and "choice" not in model.capabilities


def read_choice(reply: Reply, *, schema: bool = False) -> Choice:
    """Parses a reply, which must be the number of a passage and nothing else.

    With `schema`, the reply may be the object that `SCHEMA` demands. Raises UnparsableReply for any other reply.
    """
    text = unwrapped(answer_in(reply))
    if schema and (inside := _OBJECT.fullmatch(text)):
        text = inside[1]
    if not re.fullmatch(rf"[1-{PASSAGES}]\.?", text):
        raise UnparsableReply(f"it is not a number from 1 to {PASSAGES}, and that alone")
    return Choice(int(text[0]) - 1, _probabilities(reply, text[0]))


def _probabilities(reply: Reply, digit: str) -> tuple[float, ...] | None:
    """Probability of each place, from the token with the answer; None unless the digit occurs exactly once.

    A place whose digit is not among the listed tokens is less probable than all of them and counts as impossible.
    """
    with_digit = [token for token in reply.logprobs if digit in token.token]
    if len(with_digit) != 1 or with_digit[0].token.count(digit) != 1:
        return None
    (token,) = with_digit
    listed = {**dict(token.top), token.token: token.logprob}
    each = [listed.get(token.token.replace(digit, place)) for place in PLACES]
    shares = [0.0 if value is None else exp(min(value, 0.0)) for value in each]
    total = sum(shares)
    return tuple(share / total for share in shares) if total > 0 else None
