"""Asking a language model many things: replies read, asked again once where they cannot be, in order.

What belongs here: what explainers and judges that use a language model share. Requests are made as the model takes
them, so that it has in flight as many as it likes; a repair goes out among the next requests instead of after all of
them. What a prompt says and how a reply is read is whoever asks.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from latentgloss.errors import LanguageModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.protocols import LanguageModel, Message, Reply, Request


T = TypeVar("T")

LONGEST = 20_000
"""Characters of a reply that are kept."""


class UnparsableReply(Exception):
    """A reply is not what was asked for; the message says why, to the model as well."""


@dataclass(frozen=True)
class Query(Generic[T]):
    """One thing to ask. `read` raises Unread; `repaired` gives the messages that ask again."""

    request: Request
    read: Callable[[Reply], T]
    repaired: Callable[[tuple[Message, ...], str, str], tuple[Message, ...]]
    """From the messages, the reply and what is wrong with it."""


@dataclass(frozen=True)
class Planned:
    """An ask that will come, as far as it is known before there are replies."""

    model: LanguageModel
    ask: Query[Any]
    unwritten: int = 0
    """Most tokens of what belongs into it and is not written yet (an explanation); 0: it is sent as it stands."""


@dataclass(frozen=True)
class QueryResult(Generic[T]):
    """What came of it. Tokens and price are of both replies, if there were two."""

    value: T | None
    status: str
    """`ok`, `parse_failed`, `refused`, `llm_error` or `unsupported`."""
    reason: str
    reply: str
    """The last one, unparsed."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    repaired: bool


class _Pending(Generic[T]):
    """An ask on its way."""

    def __init__(self, ask: Query[T]) -> None:
        self.ask = ask
        self.request = ask.request
        self.replies: list[Reply] = []
        self.told: QueryResult[T] | None = None

    def receive(self, reply: Reply) -> bool:
        """Takes a reply; whether it is to be asked again."""
        self.replies.append(reply)
        if reply.status == "over_budget":  # a row would stay for ever where a budget only ends a run
            raise LanguageModelError(
                reply.reason or "the budget is spent",
                expected="enough of it left for what is asked",
                todo="raise the budget and run again: what was answered is kept",
            )
        if reply.status in ("refused", "llm_error", "unsupported"):
            self._end(None, reply.status, reply.reason or f"the model's reply was {reply.status}")
            return False
        try:
            if reply.status == "truncated":
                raise UnparsableReply(f"it was cut off after {reply.completion_tokens} tokens")
            self._end(self.ask.read(reply), "ok", "")
        except UnparsableReply as e:
            if len(self.replies) > 1:
                self._end(None, "parse_failed", f"{e}, and not at the first attempt either")
                return False
            messages = self.ask.repaired(self.request.messages, storable(reply.text), str(e))
            self.request = replace(self.request, messages=messages)
            return True
        return False

    def _end(self, value: T | None, status: str, reason: str) -> None:
        last = self.replies[-1]
        self.told = QueryResult(
            value,
            status,
            storable(reason),
            storable(last.text)[:LONGEST],
            sum(r.prompt_tokens for r in self.replies),
            sum(r.completion_tokens for r in self.replies),
            sum(r.cost_usd for r in self.replies),
            len(self.replies) > 1,
        )


def ask_all(model: LanguageModel, asks: Iterable[Query[T]]) -> Iterator[QueryResult[T]]:
    """What came of each ask, in order.

    `asks` is read as far ahead as the model reads its requests. Raises LanguageModelError if nothing more can be
    answered.
    """
    coming = iter(asks)
    waiting: deque[_Pending[T]] = deque()  # in the order asked, until told
    sent: deque[_Pending[T]] = deque()  # in the order of requests, until replied to
    again: deque[_Pending[T]] = deque()

    def requests() -> Iterator[Request]:
        while True:
            if again:
                going = again.popleft()
            else:
                following = next(coming, None)
                if following is None:
                    return
                going = _Pending(following)
                waiting.append(going)
            sent.append(going)
            yield going.request

    while True:  # a second time for repairs of the last replies, of which there can be no third
        for reply in model.complete(requests()):
            going = sent.popleft()
            if going.receive(reply):
                again.append(going)
            while waiting and waiting[0].told is not None:
                yield waiting.popleft().told  # type: ignore[misc]
        if sent:
            raise LanguageModelError(
                f"{model.name} left {len(sent)} requests without a reply",
                expected="one reply per request",
                todo="this is a defect in the engine; please report it",
            )
        if not again:
            return


def after(ask: Query[Any], reply: Reply) -> Request | None:
    """The request that follows this reply: the repair where it cannot be read, else None."""
    going = _Pending(ask)
    return going.request if going.receive(reply) else None


_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """A reply without the thinking that some models put before it."""
    return _THOUGHTS.sub("", text)


def storable(text: str) -> str:
    """Text that UTF-8 can hold: what a model answers may have lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")
