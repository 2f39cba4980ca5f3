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
from latentgloss.llm.reply_cache import request_key
from latentgloss.llm.reply_text import only_thoughts, said, storable
from latentgloss.llm.unreadable import UNREAD, readings_of

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
    """The outcome of a query. Tokens and price are of all its replies, such as two if there was a repair."""

    value: T | None
    """The parsed reply; None unless `status` is `ok`."""
    status: str
    """`ok`, `parse_failed`, `prompt_truncated`, `refused`, `llm_error` or `unsupported`."""
    reason: str
    """Why there is no value; empty if there is one."""
    reply: str
    """The text of the last reply, unparsed."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    repaired: bool
    """Whether `reply` is the reply to a second request, which says what was wrong with the first one's reply."""


class _Pending(Generic[T]):
    """A query without a result yet.

    It sends the request, then the repair if the reply cannot be read. If both replies are from the cache and cannot be
    used, it sends both again as the next *attempt*: an earlier run got those replies, and the server may be mended.
    """

    def __init__(self, query: Query[T], again: Callable[[Query[T]], bool] = lambda query: True) -> None:
        """`again`: whether a query whose replies are from the cache and cannot be used may be sent again."""
        self.query, self.again = query, again
        self.request = query.request
        self.replies: list[Reply] = []
        self.repairing = False
        self.result: QueryResult[T] | None = None

    def receive(self, reply: Reply) -> bool:
        """Takes a reply; returns whether `request`, which is now another one, must be sent as well.

        Raises LanguageModelError if the reply says that the budget is spent.
        """
        self.replies.append(reply)
        if reply.status == "over_budget":  # a row would be kept for good, but a budget only ends the run
            raise LanguageModelError(
                reply.reason or "the budget is spent",
                expected="a budget that covers the remaining requests",
                todo="raise the budget and run again: replies that arrived are kept",
            )
        if reply.status in ("prompt_truncated", "refused", "llm_error", "unsupported"):
            return self._failed(reply.status, reply.reason or f"the model's reply was {reply.status}")
        try:
            if reply.status == "truncated":
                raise UnparsableReply(_cut_off(reply))
            self._end(self.query.parse(reply), "ok", "")
        except UnparsableReply as e:
            problem = f"{e} ({reply.reason})" if reply.reason else str(e)
            if self.repairing:
                return self._failed("parse_failed", f"{problem}, and not at the first attempt either")
            messages = self.query.repair(self.request.messages, storable(reply.text), problem)
            self.request, self.repairing = replace(self.request, messages=messages), True
            return True
        return False

    @property
    def first(self) -> bool:
        """Whether its request was sent now and never before."""
        return self.request.attempt == 0 and not self.replies[-1].from_cache

    def _failed(self, status: str, reason: str) -> bool:
        """Ends the query without a value, or begins the next attempt; returns whether there is one."""
        if status in UNREAD and self.replies[-1].from_cache and self.again(self.query):
            self.request = replace(self.query.request, attempt=self.request.attempt + 1)
            self.repairing = False
            return True
        self._end(None, status, reason)
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
            self.repairing,
        )


class _Asking(Generic[T]):
    """The queries of one call of `ask_all`: those under way, those to be sent again, and those still to be read."""

    def __init__(self, model: LanguageModel, queries: Iterable[Query[T]]) -> None:
        self.readings = readings_of(model)
        self.repeats = bool(getattr(model, "repeats", False))
        self.unread = iter(queries)
        self.exhausted = False
        self.kind: str = ""
        """The instructions that the first query has, and with it all others."""
        self.open = 0
        """Queries under way."""
        self.unfinished: deque[_Pending[T]] = deque()
        """In the order of `queries`, until the result is yielded."""
        self.sent: deque[_Pending[T]] = deque()
        """In the order of requests, until the reply arrives."""
        self.again: deque[_Pending[T]] = deque()
        """To be sent before the next query."""

    def requests(self) -> Iterator[Request]:
        """The requests to send, until no query is left or replies must be awaited before the next one."""
        while True:
            pending = self.again.popleft() if self.again else self._next()
            if pending is None:
                return
            self.sent.append(pending)
            yield pending.request

    def receive(self, reply: Reply) -> None:
        """Takes the next reply. Raises LanguageModelError if the run ends."""
        pending = self.sent.popleft()
        if pending.receive(reply):
            self.again.append(pending)
            return
        result = pending.result
        assert result is not None
        if result.status in UNREAD and not pending.replies[-1].from_cache:
            self.readings.unusable.add(request_key("", pending.query.request))
        self.open -= 1
        self.readings.finish(self.kind, result.status, result.reason, result.reply, counts=pending.first)

    def results(self) -> Iterator[QueryResult[T]]:
        """The results of the first queries, as far as they have one."""
        while self.unfinished and self.unfinished[0].result is not None:
            yield self.unfinished.popleft().result  # type: ignore[misc]

    def _next(self) -> _Pending[T] | None:
        """The next query; None if there is none, or none may be sent yet."""
        if self.kind and not self.readings.may_take(self.kind, self.open):
            return None
        query = next(self.unread, None)
        if query is None:
            self.exhausted = True
            return None
        self.kind = self.kind or query.request.messages[0].content
        self.readings.take(self.kind)
        self.open += 1
        pending = _Pending(query, self._may_ask_again)
        self.unfinished.append(pending)
        return pending

    def close(self) -> None:
        """No query is under way any longer."""
        if self.open:
            self.readings.leave(self.kind, self.open)

    def _may_ask_again(self, query: Query[T]) -> bool:
        """Whether a query whose replies are in the cache and cannot be used is sent again, once in a run."""
        return not self.repeats and request_key("", query.request) not in self.readings.unusable


def ask_all(model: LanguageModel, queries: Iterable[Query[T]]) -> Iterator[QueryResult[T]]:
    """The result of each query, in order. All have the same instructions (the first message).

    `queries` is read as far ahead as the model reads its requests; until one reply could be read, fewer
    (`unreadable.py`). Raises LanguageModelError if the model can answer no further request, or if no reply can be read.
    """
    asking = _Asking(model, queries)
    try:
        while True:
            asking.readings.raise_if_stopped()
            for reply in model.complete(asking.requests()):
                asking.receive(reply)
                yield from asking.results()
            if asking.sent:
                raise LanguageModelError(
                    f"{model.name} left {len(asking.sent)} requests without a reply",
                    expected="one reply per request",
                    todo="this is a defect in the engine; please report it",
                )
            if asking.exhausted and not asking.again:
                return
    finally:
        asking.close()


def to_send(query: Query[Any], known: Callable[[Request], Reply | None], *, repeats: bool = False) -> Request | None:
    """The request of a query that is still to be sent; None if the `known` replies answer the query.

    `repeats`: whether asking again for a reply that could not be used is of no use (`Client.repeats`).
    """
    pending = _Pending(query, lambda query: not repeats)
    while (reply := known(pending.request)) is not None:
        if not pending.receive(replace(reply, from_cache=True)):
            return None
    return pending.request


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
