"""Tasks that mostly wait on I/O, run concurrently with their results in order.

What belongs here: tasks under way side by side and finished in order (`run_in_order`, `Threads`), and iterators drawn
from at the same time (`interleave`). How many *requests* are in flight is not decided here: the language model's client
bounds that over all threads (`llm/client.py`).
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from types import TracebackType


T = TypeVar("T")

BLOCKS_UNDER_WAY = 32
"""Most blocks under way. Of a sparse sample a block has a latent or two: it takes many to keep a server busy."""
CONTEXTS_UNDER_WAY = 25_000
"""Contexts in blocks under way beyond which no further block is begun, but for the second: five to a prompt they are
thousands of requests. Of a dense SAE one block has more, and while its last replies are waited for the next is at work.
"""


def run_in_order(begun: Iterable[tuple[int, Callable[[], T]]], most: int, weight: int | None = None) -> Iterator[T]:
    """What became of each task, in the order in which they were begun.

    Reading from `begun` begins a task and gives its weight and what waits for its result. No other is begun while more
    than `most` are under way, or more than one that together weigh more than `weight`. Weight 0: it is done already.
    """
    going: deque[tuple[int, Callable[[], T]]] = deque()
    total = under_way = 0
    for weighs, end in begun:
        going.append((weighs, end))
        total += weighs
        under_way += weighs > 0  # what weighs nothing was there already
        while going and (
            going[0][0] == 0 or under_way > most or (weight is not None and total > weight and under_way > 1)
        ):
            weighs, end = going.popleft()
            total -= weighs
            under_way -= weighs > 0
            yield end()
    for _, end in going:
        yield end()


class Abandoned(BaseException):
    """Raised in a thread whose result nobody waits for any more. No failure: what it worked on is unfinished."""


_given_up: ContextVar[tuple[threading.Event, ...]] = ContextVar("given_up", default=())
"""Of those who wait for what runs here; one that is set: it does not wait any more."""


def check_abandoned() -> None:
    """Raises Abandoned if nobody waits any more for what runs here."""
    if any(flag.is_set() for flag in _given_up.get()):
        raise Abandoned


def until_abandoned(items: Iterable[T]) -> Iterator[T]:
    """The items, until nobody waits for them any more: then Abandoned. Whatever gives them is closed, here and now."""
    try:
        for item in items:
            check_abandoned()
            yield item
    finally:
        _close(items)


def _close(items: Iterable[Any]) -> None:
    """Ends a generator in the thread that drew from it, instead of whenever and wherever garbage is collected."""
    close = getattr(items, "close", None)
    if close is not None:
        close()


class Threads:
    """Threads for tasks that wait. Left with an error, what is still under way is abandoned as soon as it heeds."""

    def __init__(self, most: int = BLOCKS_UNDER_WAY) -> None:
        self._pool = ThreadPoolExecutor(most, "blocks")
        self._flag = threading.Event()

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._flag.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Callable[..., T], *arguments: Any) -> Future[T]:
        """Has a task done, charged to whatever this thread is charged to (`llm.ledger.charged_to`)."""
        context = copy_context()
        context.run(_given_up.set, (*_given_up.get(), self._flag))
        return self._pool.submit(context.run, task, *arguments)


@dataclass(frozen=True)
class _End:
    """What an iterator ended with."""

    error: BaseException | None


def interleave(iterators: Sequence[Iterator[T]]) -> Iterator[T]:
    """Items of several iterators as they come, each iterator drawn from in a thread of its own.

    One that raises stops no other: its error is raised here once all have ended. One alone is drawn from right here.
    Closed early, or interrupted, it has the threads abandon what they do (`until_abandoned`) and waits for that.
    """
    if len(iterators) == 1:
        yield from iterators[0]
        return
    found: SimpleQueue[T | _End] = SimpleQueue()
    flag = threading.Event()
    flags = (*_given_up.get(), flag)

    def draw(iterator: Iterator[T]) -> None:
        _given_up.set(flags)
        error: BaseException | None = None
        try:
            for item in until_abandoned(iterator):  # which closes it: locks are released in the thread that took them
                found.put(item)
        except BaseException as e:  # a thread has nobody to raise to
            error = e
        found.put(_End(error))

    threads = [threading.Thread(target=draw, args=(one,), name="abreast") for one in iterators]
    errors: list[BaseException] = []
    running = len(threads)
    try:
        for thread in threads:
            thread.start()
        while running:
            item = found.get()
            if not isinstance(item, _End):
                yield item
                continue
            running -= 1
            errors += [] if item.error is None else [item.error]
    finally:
        flag.set()
        for thread in threads:
            if thread.ident is not None:  # an interrupt may have come before it was started
                thread.join()
    if errors:
        raise errors[0]
