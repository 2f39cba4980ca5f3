"""The judge that reads: a language model decides from the explanation's text, a few contexts at a time.

What belongs here: how a question is cut into prompts, how replies are read, and what becomes of those that cannot be.
The wording is in `prompts/`. A judge decides itself, so it is asked about the test split alone and needs no threshold.

Contexts are judged `per_prompt` together, in the order of the question, which is shuffled; a question is of one arm
(and in fuzzing of one half), so no prompt mixes what must be kept apart. `Answer.prompt` is the beginning of the hash
of the prompt's messages: what was judged together has the same number, whatever else was asked.
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

from latentgloss.llm.asking import Planned, Query, QueryResult, UnparsableReply, ask_all, storable, without_thoughts
from latentgloss.llm.prompts.quoting import quoted_tokens, readable
from latentgloss.llm.prompts.templates import messages_sha256, prompt
from latentgloss.protocols import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from latentgloss.config.settings import LlmJudgeSettings
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.protocols import LanguageModel, Message, Question, Reply, Task, TokenLogprobs


VERSION = "4"
ALTERNATIVES = 5
"""Tokens whose probability is asked for at each place of a reply."""
MOST_CHOICES = 6
"""Contexts up to which all possible answers (2^n) are listed for a model that can be held to a list.

More are held to a JSON schema, where the model knows such: an object around the list, since vendors take no other."""


@dataclass(frozen=True)
class Verdicts:
    """What a reply says of each context of a prompt."""

    active: list[bool]
    probability: list[float] | None
    """Of being active, where the model says so; NaN where it says too little."""


class LlmJudge:
    """A language model as judge of one task."""

    embedder = ""
    decides = True

    def __init__(
        self, model: LanguageModel, task: Task, vocabulary: Callable[[], Vocabulary], settings: LlmJudgeSettings
    ) -> None:
        self.model, self.task, self.vocabulary, self.settings = model, task, vocabulary, settings
        self.prompt = prompt(task)

    @property
    def name(self) -> str:
        return self.model.name

    def identity(self) -> dict[str, Any]:
        return {
            "judge": "llm",
            "version": VERSION,
            "model": self.model.identity(),
            "prompt": self.prompt.sha256,
            "temperature": 0.0,
            "uses": used(self.model),
            # What is answered, not about how many.
            **self.settings.model_dump(mode="json", exclude={"sample", "null_sample"}),
        }

    def judge(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """One answer per question, in order. Questions are read as the model takes requests."""
        going: deque[tuple[Question, list[int]]] = deque()  # with the numbers of its prompts
        results: deque[QueryResult[Verdicts]] = deque()

        def queries() -> Iterator[Query[Verdicts]]:
            for question in questions:
                of_question = self.queries(question)
                going.append((question, [prompt_number(query.request) for query in of_question]))
                yield from of_question

        def finished() -> Iterator[Answer]:
            while going and len(results) >= len(going[0][1]):
                question, numbers = going.popleft()
                yield self._answer(question, numbers, [results.popleft() for _ in numbers])

        for result in ask_all(self.model, queries()):
            results.append(result)
            yield from finished()
        yield from finished()  # questions about nothing

    def queries(self, question: Question) -> list[Query[Verdicts]]:
        """The prompts of a question. Raises ExplainerError if a token is not of the vocabulary."""
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
        """What will be asked about a question."""
        return [Planned(self.model, query) for query in self.queries(question)]

    def _repaired(self, messages: tuple[Message, ...], reply: str, problem: str, n: int) -> tuple[Message, ...]:
        return self.prompt.repaired(messages, reply, problem=problem, n=str(n))

    def _cuts(self, question: Question) -> list[slice]:
        step = self.settings.per_prompt
        return [slice(i, i + step) for i in range(0, len(question.tokens), step)]

    def _answer(self, question: Question, numbers: list[int], results: list[QueryResult[Verdicts]]) -> Answer:
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


def used(model: LanguageModel) -> list[str]:
    """Capabilities a judge makes use of: held to a list or a schema, or with probabilities, it answers otherwise."""
    return sorted({"choice", "json_schema", "logprobs"} & model.capabilities)


def prompt_number(request: Request) -> int:
    """The first 60 bits of the hash of a request's messages."""
    return int(messages_sha256(request.messages)[:15], 16)


def _all_answers(n: int) -> tuple[str, ...]:
    return tuple(f"[{', '.join(bits)}]" for bits in product("01", repeat=n))


def _schema(n: int) -> dict[str, Any]:
    verdicts = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": n, "maxItems": n}
    return {
        "type": "object",
        "properties": {"active": verdicts},
        "required": ["active"],
        "additionalProperties": False,
    }


_FENCE = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)
_LIST = re.compile(r"\[\s*([01](?:\s*,\s*[01])*)\s*,?\s*\]")
_OBJECT = re.compile(r'\{\s*"active"\s*:\s*(\[[^\]]*\])\s*\}')


def read_verdicts(reply: Reply, n: int, *, schema: bool = False) -> Verdicts:
    """A list of `n` zeros and ones, and nothing beside it. Raises UnparsableReply for anything else.

    With `schema`, which demands it, the list may stand in its object.
    """
    text = without_thoughts(storable(reply.text)).strip()
    fenced = _FENCE.match(text)
    text = fenced[1].strip() if fenced else text
    if not text:
        raise UnparsableReply("the reply was empty")
    if schema and (inside := _OBJECT.fullmatch(text)):
        text = inside[1]
    if not text.isascii() or not (found := _LIST.fullmatch(text)):
        raise UnparsableReply("it is not a list of zeros and ones in square brackets, and that alone")
    bits = re.findall("[01]", found[1])
    if len(bits) != n:
        raise UnparsableReply(f"the list has {len(bits)} numbers and there are {n} passages")
    return Verdicts([bit == "1" for bit in bits], _probabilities(reply.logprobs, text, bits))


def _probabilities(logprobs: tuple[TokenLogprobs, ...], text: str, bits: list[str]) -> list[float] | None:
    """p(1) / (p(0) + p(1)) at the token of each answer; None if the answer is not among the tokens, once.

    The other answer is the same token with the other digit. Where it is not among the alternatives it is less probable
    than all of them: it counts as impossible beside an answer that is more probable than the last of them, and beside
    any other nothing is known (NaN).
    """
    whole = "".join(token.token for token in logprobs)
    if whole.count(text) != 1:  # what ended the reply may stand behind it
        return None
    start = whole.index(text)
    places = [i for i in range(start, start + len(text)) if whole[i] in "01"]
    found: list[float] = []
    end = 0
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
    """p(token) / (p(token) + p(other)); NaN if it cannot be determined."""
    listed = dict(token.top)
    if other in listed:
        return 1 / (1 + exp(min(listed[other] - token.logprob, 700.0)))
    least = min(listed.values(), default=inf)
    return 1.0 if token.logprob > least else nan
