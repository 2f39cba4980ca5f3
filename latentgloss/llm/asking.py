"""Asks a language model many queries: parses each reply, repairs it once where parsing fails, keeps the order.

What belongs here: what explainers and judges that use a language model share. Requests are made only as the model takes
them, so that it can keep as many in flight as it likes; a repair is sent among the next requests, not after all of
them. The caller decides what a prompt says and how a reply is parsed. Nothing is read or written here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from latentgloss.errors import LanguageModelError
from latentgloss.llm.reply_text import only_thoughts, said, storable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.protocols import LanguageModel, Message, Reply, Request


T = TypeVar("T")

LONGEST = 20_000
"""Characters of a reply that are kept."""


class UnparsableReply(Exception):
    """A reply does not have the form that the prompt demands; the message says why and is shown to the model, too."""


@dataclass(frozen=True)
class Query(Generic[T]):
    """A request, with the way to parse its reply and to ask again."""

    request: Request
    parse: Callable[[Reply], T]
    """Returns the value of a reply. Raises UnparsableReply."""
    repair: Callable[[tuple[Message, ...], str, str], tuple[Message, ...]]
    """Returns the messages of the second request, from the first one's messages, its reply and the problem."""


@dataclass(frozen=True)
class Planned:
    """A query that will be sent, as far as it is known before there are any replies."""

    model: LanguageModel
    query: Query[Any]
    unwritten: int = 0
    """Most tokens of a part of the prompt that does not exist yet (an explanation); 0 if the prompt is complete."""


@dataclass(frozen=True)
class QueryResult(Generic[T]):
    """The outcome of a query. Tokens and price are of both replies if there was a repair."""

    value: T | None
    """The parsed reply; None unless `status` is `ok`."""
    status: str
    """`ok`, `parse_failed`, `refused`, `llm_error` or `unsupported`."""
    reason: str
    """Why there is no value; empty if there is one."""
    reply: str
    """The text of the last reply, unparsed."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    repaired: bool
    """Whether `reply` is the reply to a second request."""


class _Pending(Generic[T]):
    """A query without a result yet."""

    def __init__(self, query: Query[T]) -> None:
        self.query = query
        self.request = query.request
        self.replies: list[Reply] = []
        self.result: QueryResult[T] | None = None

    def receive(self, reply: Reply) -> bool:
        """Takes a reply; returns whether `request`, which is now the repair, must be sent as well.

        Raises LanguageModelError if the reply says that the budget is spent.
        """
        self.replies.append(reply)
        if reply.status == "over_budget":  # a row would be kept for good, but a budget only ends the run
            raise LanguageModelError(
                reply.reason or "the budget is spent",
                expected="a budget that covers the remaining requests",
                todo="raise the budget and run again: replies that arrived are kept",
            )
        if reply.status in ("refused", "llm_error", "unsupported"):
            self._end(None, reply.status, reply.reason or f"the model's reply was {reply.status}")
            return False
        try:
            if reply.status == "truncated":
                raise UnparsableReply(_cut_off(reply))
            self._end(self.query.parse(reply), "ok", "")
        except UnparsableReply as e:
            problem = f"{e} ({reply.reason})" if reply.reason else str(e)
            if len(self.replies) > 1:
                self._end(None, "parse_failed", f"{problem}, and not at the first attempt either")
                return False
            messages = self.query.repair(self.request.messages, storable(reply.text), problem)
            self.request = replace(self.request, messages=messages)
            return True
        return False

    def _end(self, value: T | None, status: str, reason: str) -> None:
        last = self.replies[-1]
        self.result = QueryResult(
            value,
            status,
            storable(reason),
            storable(last.text)[:LONGEST],
            sum(r.prompt_tokens for r in self.replies),
            sum(r.completion_tokens for r in self.replies),
            sum(r.cost_usd for r in self.replies),
            len(self.replies) > 1,
        )


def ask_all(model: LanguageModel, queries: Iterable[Query[T]]) -> Iterator[QueryResult[T]]:
    """The result of each query, in order.

    `queries` is read as far ahead as the model reads its requests. Raises LanguageModelError if the model can answer no
    further request.
    """
    unread = iter(queries)
    unfinished: deque[_Pending[T]] = deque()  # in the order of `queries`, until the result is yielded
    sent: deque[_Pending[T]] = deque()  # in the order of requests, until the reply arrives
    repairs: deque[_Pending[T]] = deque()  # to be sent before the next query

    def requests() -> Iterator[Request]:
        while True:
            if repairs:
                pending = repairs.popleft()
            else:
                query = next(unread, None)
                if query is None:
                    return
                pending = _Pending(query)
                unfinished.append(pending)
            sent.append(pending)
            yield pending.request

    while True:  # runs twice at most: the second time for repairs of the last replies, which are never repaired again
        for reply in model.complete(requests()):
            pending = sent.popleft()
            if pending.receive(reply):
                repairs.append(pending)
            while unfinished and unfinished[0].result is not None:
                yield unfinished.popleft().result  # type: ignore[misc]
        if sent:
            raise LanguageModelError(
                f"{model.name} left {len(sent)} requests without a reply",
                expected="one reply per request",
                todo="this is a defect in the engine; please report it",
            )
        if not repairs:
            return


def follow_up(query: Query[Any], reply: Reply) -> Request | None:
    """The request that follows the first reply: the repair if the reply cannot be parsed, else None."""
    pending = _Pending(query)
    return pending.request if pending.receive(reply) else None


def answer_in(reply: Reply) -> str:
    """The answer in a reply (`reply_text.said`). Raises UnparsableReply if there is none."""
    text = said(reply.text)
    if not text:
        thinking = only_thoughts(storable(reply.text))
        raise UnparsableReply("it is all thinking, without an answer" if thinking else "the reply was empty")
    return text


def _cut_off(reply: Reply) -> str:
    """What to say of a reply that reached its maximum length."""
    after = f"after {reply.completion_tokens:,} tokens" if reply.completion_tokens else "at its maximum length"
    thinking = only_thoughts(storable(reply.text))
    return f"it was cut off {after}" + (", all of them thinking, before it gave an answer" if thinking else "")
