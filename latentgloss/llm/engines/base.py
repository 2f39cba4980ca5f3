"""The interface between the client and an engine, which answers one request or fails in one of several known ways.

What belongs here: the two interfaces that an engine can have, the kinds of failure, and the adapter that gathers single
requests into batches. An engine knows nothing of retries, the cache and the budget, which are the client's.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

from latentgloss.errors import LatentglossError, without_secrets
from latentgloss.protocols import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


Kind = Literal[
    "unreachable", "dropped", "timeout", "failed", "malformed", "busy", "rejected", "forbidden", "misdeclared"
]
"""How an attempt failed:

- `unreachable`: no connection was made;
- `dropped`: the connection broke before the answer was complete;
- `timeout`: no answer came in time;
- `failed`: the server reports an error of its own (5xx);
- `malformed`: the answer cannot be parsed;
- `busy`: the server demands a pause (429);
- `rejected`: the server refuses this request (4xx);
- `forbidden`: the server refuses this client, or does not know the model;
- `misdeclared`: the server lacks a capability that the registry declares.
"""

BILLED: frozenset[Kind] = frozenset({"dropped", "timeout", "malformed", "misdeclared"})
"""Failures after which the vendor may bill a reply that was never received."""


class Failure(Exception):
    """An attempt without a reply."""

    def __init__(
        self,
        kind: Kind,
        reason: str,
        *,
        wait_s: float | None = None,
        expected: str = "",
        todo: str = "",
        billed: bool = False,
    ) -> None:
        """`billed`: whether the vendor bills the attempt although `kind` is not in `BILLED`.

        `expected` and `todo` say more than the error that ends the run for all failures of this kind.
        """
        self.reason = without_secrets(reason)
        super().__init__(self.reason)
        self.kind: Kind = kind
        self.wait_s = wait_s
        """The pause that the server demands; None if it demands none."""
        self.expected, self.todo = expected, todo
        self.billed = billed or kind in BILLED


class Engine(Protocol):
    """Answers requests, many at a time. All calls come from one event loop."""

    async def answer(self, request: Request) -> Reply:
        """A reply with status `ok`, `truncated` or `refused`, with its tokens but without a price. Raises Failure.

        0 tokens of prompt or reply mean that the server reports none that can be true.
        """
        ...

    async def close(self) -> None:
        """Releases connections and tasks. `answer` may be called again afterwards."""
        ...


class BatchEngine(Protocol):
    """Answers a batch of requests at once, in this process."""

    def answer_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        """Yields the index of each request with its reply or failure, each once, in any order.

        At most one call runs at a time.

        Raises LanguageModelError if the engine can answer no request at all.
        """
        ...


class Batches:
    """An `Engine` over a `BatchEngine`: requests that arrive during one batch form the next, at most `size` of them."""

    def __init__(self, engine: BatchEngine, size: int) -> None:
        self.engine, self.size = engine, size
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._running: asyncio.Task[None] | None = None

    async def answer(self, request: Request) -> Reply:
        """The reply from the request's batch. Raises Failure, or LanguageModelError if the engine cannot run."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Stops waiting for the batch; its thread is left to end by itself."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        try:
            await asyncio.sleep(GATHER_S)
            while self._waiting:
                taken = [item for item in self._waiting[: self.size] if not item[1].done()]
                del self._waiting[: self.size]
                await self._batch(taken)
        finally:
            self._running = None

    async def _batch(self, taken: list[tuple[Request, asyncio.Future[Reply]]]) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def settle(place: int, outcome: Reply | BaseException) -> None:
            future = taken[place][1]
            if future.done():  # cancelled meanwhile
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        def in_loop(function: Callable[..., None], *values: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed, so no caller is left
                loop.call_soon_threadsafe(function, *values)

        def run() -> None:
            left = set(range(len(taken)))
            try:
                for place, outcome in self.engine.answer_all([request for request, _ in taken]):
                    left.discard(place)
                    in_loop(settle, place, outcome)
            except BaseException as e:  # an exception would be lost in this thread
                ours = isinstance(e, LatentglossError)  # such as missing files, which a retry does not find
                failure = e if ours else Failure("failed", f"{type(e).__name__}: {e}")
                for place in left:
                    in_loop(settle, place, failure)
            finally:
                in_loop(done.set)

        # A daemon thread ends with the process; Python would wait for the thread of an executor.
        threading.Thread(target=run, name="language model", daemon=True).start()
        await done.wait()


GATHER_S = 0.01
"""How long the first request of a batch waits for others."""
