"""Tasks that mostly wait on I/O, run concurrently with their results in order.

What belongs here: tasks that run at the same time and whose results are yielded in order (`run_in_order`, `Threads`),
iterators that are drawn from at the same time (`interleave`), and how both are cancelled (`check_abandoned`). The
number of *requests* in flight is not decided here; the language model's client limits it over all threads
(`llm/client.py`).
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
"""Maximum number of blocks under way. In a sparse sample a block has one or two latents, so that many blocks are needed
to keep a server busy."""
CONTEXTS_UNDER_WAY = 25_000
"""Maximum number of contexts in all blocks under way; at five per prompt they are thousands of requests. Two blocks may
exceed it, because a block of a dense SAE alone has more contexts, and a second block keeps the server busy while the
first one waits for its last replies."""


def run_in_order(started: Iterable[tuple[int, Callable[[], T]]], most: int, weight: int | None = None) -> Iterator[T]:
    """Starts tasks and yields their results in the order in which they were started.

    Reading an item from `started` starts a task; the item is the task's weight and a function that waits for its
    result. A task of weight 0 is already finished. The next task is started only when at most `most` unfinished tasks
    are under way and, if `weight` is given, when their weights add up to at most `weight` or at most one is under way.
    """
    under_way: deque[tuple[int, Callable[[], T]]] = deque()
    total = unfinished = 0
    for task_weight, result in started:
        under_way.append((task_weight, result))
        total += task_weight
        unfinished += task_weight > 0
        while under_way and (
            under_way[0][0] == 0 or unfinished > most or (weight is not None and total > weight and unfinished > 1)
        ):
            task_weight, result = under_way.popleft()
            total -= task_weight
            unfinished -= task_weight > 0
            yield result()
    for _, result in under_way:
        yield result()


class Abandoned(BaseException):
    """Raised in a thread whose result is no longer needed. It is not a failure; the thread's work stays unfinished."""


_given_up: ContextVar[tuple[threading.Event, ...]] = ContextVar("given_up", default=())
"""Cancellation flags of the callers waiting on this thread; a set flag means that the caller has given up."""


def check_abandoned() -> None:
    """Raises Abandoned if a caller waiting on this thread has given up."""
    if any(flag.is_set() for flag in _given_up.get()):
        raise Abandoned


def until_abandoned(items: Iterable[T]) -> Iterator[T]:
    """Yields the items; raises Abandoned before the next one if a caller waiting on this thread has given up.

    However it ends, it closes `items` immediately and in this thread.
    """
    try:
        for item in items:
            check_abandoned()
            yield item
    finally:
        _close(items)


def _close(items: Iterable[Any]) -> None:
    """Closes a generator in the thread that drew from it; garbage collection could do so later and in any thread."""
    close = getattr(items, "close", None)
    if close is not None:
        close()


class Threads:
    """A context manager with threads for tasks that mostly wait.

    It waits for its tasks when it is left. If it is left with an error, unfinished tasks are abandoned at their next
    `check_abandoned`.
    """

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
        """Runs a task in a thread, charged to the same account as the caller's thread (`pipeline.accounting`)."""
        context = copy_context()
        context.run(_given_up.set, (*_given_up.get(), self._flag))
        return self._pool.submit(context.run, task, *arguments)


@dataclass(frozen=True)
class _End:
    """The end of an iterator, with the error that ended it, if any."""

    error: BaseException | None


def interleave(iterators: Sequence[Iterator[T]]) -> Iterator[T]:
    """Yields the items of several iterators as they arrive. Each iterator runs in its own thread.

    An iterator that raises does not stop the others; the first error is raised when all of them have ended. A single
    iterator runs in the caller's thread. If this generator is closed early or interrupted, the threads abandon their
    work (`until_abandoned`), and it waits for them to end.
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
            for item in until_abandoned(iterator):  # closes it, so that this thread releases the locks it holds
                found.put(item)
        except BaseException as e:  # an error raised in a thread would be lost
            error = e
        found.put(_End(error))

    threads = [threading.Thread(target=draw, args=(iterator,), name="interleave") for iterator in iterators]
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
            if thread.ident is not None:  # an interrupt may have arrived before the thread was started
                thread.join()
    if errors:
        raise errors[0]
