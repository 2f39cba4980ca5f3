"""The judge that reads: a language model decides from the text of the explanation, a few contexts at a time.

What belongs here: how a question is cut into prompts, and how replies are parsed. If a reply cannot be parsed, the
model is asked once more (`llm.asking`); after that the contexts get a status with a reason. The wording of prompts is
in `llm/prompts/`. The judge decides itself, so it is asked about the test split alone and needs no threshold.

Up to `per_prompt` contexts are judged in one prompt, in the order of the question, which is shuffled. A question is
about one arm (and in fuzzing about one half), so no prompt mixes contexts that must be kept apart. `Answer.prompt` is
the beginning of the hash of the prompt's messages. Contexts judged in one prompt share this number, which does not
depend on what else is asked.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import exp, inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.llm.asking import Planned, Query, QueryResult, UnparsableReply, answer_in, ask_all
from latentgloss.llm.prompts.quoting import quoted_tokens, readable
from latentgloss.llm.prompts.templates import prompt
from latentgloss.llm.reply_text import unwrapped
from latentgloss.protocols import Answer, Request
from latentgloss.scores.judges.language_model import ALTERNATIVES, language_model_identity, prompt_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from latentgloss.config.settings import LlmJudgeSettings
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import LanguageModel, Message, Question, Reply, Task, TokenLogprobs


VERSION = "4"
"""Incremented when the same reply would lead to a different answer."""
MOST_CHOICES = 6
"""Most contexts of a prompt for which all 2^n possible replies are listed, if the model can be held to a list.

With more contexts, the reply is held to a JSON schema if the model supports schemas. The schema is an object around the
list because vendors accept no other."""


@dataclass(frozen=True)
class Verdicts:
    """What a reply says about each context of a prompt."""

    active: list[bool]
    probability: list[float] | None
    """Probability of being active, NaN where it is unknown; None if the reply has no log probabilities."""


class LlmJudge:
    """A language model as judge of one task, detection or fuzzing."""

    embedder = ""
    decides = True

    def __init__(
        self, model: LanguageModel, task: Task, vocabulary: Callable[[], Vocabulary], settings: LlmJudgeSettings
    ) -> None:
        """`vocabulary` returns the subject model's vocabulary. It is called only when a question is asked."""
        self.model, self.task, self.vocabulary, self.settings = model, task, vocabulary, settings
        self.prompt = prompt(task)

    @property
    def name(self) -> str:
        """Name of the language model; part of the key in score tables."""
        return self.model.name

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers."""
        # Sample sizes decide how many latents are judged, not what is answered.
        settings = self.settings.model_dump(mode="json", exclude={"sample", "null_sample"})
        return language_model_identity("llm", VERSION, self.model, self.prompt, settings)

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order. Questions are read only as the model takes requests."""
        pending: deque[tuple[Question, list[int]]] = deque()  # each with the numbers of its prompts
        results: deque[QueryResult[Verdicts]] = deque()

        def queries() -> Iterator[Query[Verdicts]]:
            for question in questions:
                of_question = self.queries(question)
                pending.append((question, [prompt_number(query.request) for query in of_question]))
                yield from of_question

        def finished() -> Iterator[Answer]:
            while pending and len(results) >= len(pending[0][1]):
                question, numbers = pending.popleft()
                yield self._answer(question, numbers, [results.popleft() for _ in numbers])

        for result in ask_all(self.model, queries()):
            results.append(result)
            yield from finished()
        yield from finished()  # questions without contexts have no results to wait for

    def queries(self, question: Question) -> list[Query[Verdicts]]:
        """The queries of a question, one per prompt. Raises ExplainerError if a token is not in the vocabulary."""
        vocabulary = self.vocabulary()
        explanation = readable(question.explanation)
        found: list[Query[Verdicts]] = []
        for at in self._cuts(question):
            tokens = question.tokens[at]
            marks = [None] * len(tokens) if question.marks is None else list(question.marks[at])
            shown = [quoted_tokens(row, vocabulary, marked) for row, marked in zip(tokens, marks, strict=True)]
            lines = [f"{number}. {text}" for number, text in enumerate(shown, 1)]
            messages = self.prompt.messages(explanation=explanation, passages="\n".join(lines))
            can, n = self.model.capabilities, len(lines)
            listed = "choice" in can and n <= MOST_CHOICES
            schema = not listed and "json_schema" in can
            request = Request(
                messages,
                self.settings.max_tokens,
                choice=_all_answers(n) if listed else None,
                json_schema=_schema(n) if schema else None,
                logprobs=ALTERNATIVES if "logprobs" in can else 0,
            )
            found.append(Query(request, partial(read_verdicts, n=n, schema=schema), partial(self._repaired, n=n)))
        return found

    def planned(self, question: Question) -> list[Planned]:
        """The queries of a question, for an estimate."""
        return [Planned(self.model, query) for query in self.queries(question)]

    def _repaired(self, messages: tuple[Message, ...], reply: str, problem: str, n: int) -> tuple[Message, ...]:
        """Messages that ask again, after a reply for `n` contexts that could not be parsed."""
        return self.prompt.repaired(messages, reply, problem=problem, n=str(n))

    def _cuts(self, question: Question) -> list[slice]:
        """The contexts of each prompt of a question."""
        step = self.settings.per_prompt
        return [slice(i, i + step) for i in range(0, len(question.tokens), step)]

    def _answer(self, question: Question, numbers: list[int], results: list[QueryResult[Verdicts]]) -> Answer:
        """The answer to a question, from the results of its prompts and their numbers."""
        n = len(question.tokens)
        evidence = np.full(n, np.nan, dtype=np.float32)
        probability = np.full(n, np.nan, dtype=np.float32)
        prediction = np.zeros(n, dtype=np.bool_)
        prompts = np.zeros(n, dtype=np.int64)
        status, reason = ["ok"] * n, [""] * n
        for at, number, result in zip(self._cuts(question), numbers, results, strict=True):
            rows = range(*at.indices(n))
            prompts[at] = number
            if result.value is None:
                status[at], reason[at] = [result.status] * len(rows), [result.reason] * len(rows)
                continue
            prediction[at] = result.value.active
            evidence[at] = result.value.active if result.value.probability is None else result.value.probability
            if result.value.probability is not None:
                probability[at] = result.value.probability
        given = None if np.isnan(probability).all() else probability
        return Answer(
            evidence,
            prediction,
            given,
            prompts,
            status,
            reason,
            sum(result.prompt_tokens for result in results),
            sum(result.completion_tokens for result in results),
            sum(result.cost_usd for result in results),
        )


def _all_answers(n: int) -> tuple[str, ...]:
    """All possible replies about `n` contexts."""
    return tuple(f"[{', '.join(bits)}]" for bits in product("01", repeat=n))


def _schema(n: int) -> dict[str, Any]:
    """JSON schema of a reply about `n` contexts."""
    verdicts = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": n, "maxItems": n}
    return {
        "type": "object",
        "properties": {"active": verdicts},
        "required": ["active"],
        "additionalProperties": False,
    }


_LIST = re.compile(r"\[\s*([01](?:\s*,\s*[01])*)\s*,?\s*\]")
_OBJECT = re.compile(r'\{\s*"active"\s*:\s*(\[[^\]]*\])\s*\}')


def read_verdicts(reply: Reply, n: int, *, schema: bool = False) -> Verdicts:
    """Parses a reply, which must be a list of `n` zeros and ones and nothing else.

    With `schema`, the reply may be the object that the schema demands. Nothing is guessed: raises UnparsableReply for
    any other reply.
    """
    text = unwrapped(answer_in(reply))
    if schema and (inside := _OBJECT.fullmatch(text)):
        text = inside[1]
    if not text.isascii() or not (found := _LIST.fullmatch(text)):
        raise UnparsableReply("it is not a list of zeros and ones in square brackets, and that alone")
    bits = re.findall("[01]", found[1])
    if len(bits) != n:
        raise UnparsableReply(f"the list has {len(bits)} numbers and there are {n} passages")
    return Verdicts([bit == "1" for bit in bits], _probabilities(reply.logprobs, text, bits))


def _probabilities(logprobs: tuple[TokenLogprobs, ...], text: str, bits: list[str]) -> list[float] | None:
    """Probability of "1" for each context, p(1) / (p(0) + p(1)) at the token of its answer.

    None unless the text of the answer occurs exactly once among the tokens. The alternative to a token is the same
    token with the other digit. If it is not among the listed tokens, it is less probable than all of them. It then
    counts as impossible if the token of the answer is more probable than the last one listed; otherwise the probability
    is unknown (NaN).
    """
    whole = "".join(token.token for token in logprobs)
    if whole.count(text) != 1:  # the token that ended the reply may follow
        return None
    start = whole.index(text)
    places = [i for i in range(start, start + len(text)) if whole[i] in "01"]
    found: list[float] = []
    tokens = iter(logprobs)
    token = next(tokens)
    begin, end = 0, len(token.token)
    for place, bit in zip(places, bits, strict=True):
        while place >= end:
            token = next(tokens)
            begin, end = end, end + len(token.token)
        other = token.token[: place - begin] + ("0" if bit == "1" else "1") + token.token[place - begin + 1 :]
        share = _share(token, other)
        found.append(share if bit == "1" else 1 - share)
    return found


def _share(token: TokenLogprobs, other: str) -> float:
    """p(token) / (p(token) + p(other)); NaN if it is unknown."""
    listed = dict(token.top)
    if other in listed:
        return 1 / (1 + exp(min(listed[other] - token.logprob, 700.0)))
    least = min(listed.values(), default=inf)
    return 1.0 if token.logprob > least else nan
