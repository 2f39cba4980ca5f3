"""What plugs into the client: something that answers one request, or fails in a way that can be told apart.

What belongs here: the two interfaces an engine may have, the ways an attempt fails, and the adapter that gathers
single requests into batches. Retries, the cache and the budget are the client's, never an engine's.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

from latentgloss.errors import LatentglossError
from latentgloss.protocols import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


Kind = Literal[
    "unreachable", "dropped", "timeout", "failed", "malformed", "busy", "rejected", "forbidden", "misdeclared"
]
"""How an attempt failed:

- `unreachable`: no connection was made; `dropped`: it broke before a whole answer; `timeout`: no answer in time;
- `failed`: the server reports a fault of its own (5xx); `malformed`: an answer that cannot be read;
- `busy`: asked to come back later (429); `rejected`: the server refuses this request (4xx);
- `forbidden`: it refuses us, or does not know the model; `misdeclared`: it lacks a declared capability.
"""

BILLED: frozenset[Kind] = frozenset({"dropped", "timeout", "malformed", "misdeclared"})
"""After these the vendor may bill what was never received."""


class Failure(Exception):
    """An attempt that brought no reply."""

    def __init__(self, kind: Kind, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.kind: Kind = kind
        self.reason = reason
        self.wait_s = wait_s
        """How long the server asks to be left alone."""


class Engine(Protocol):
    """Answers requests, many at a time. All calls come from one event loop."""

    async def answer(self, request: Request) -> Reply:
        """A reply with status `ok`, `truncated` or `refused` and its tokens, unpriced. Raises Failure."""
        ...

    async def close(self) -> None: ...


class BatchEngine(Protocol):
    """Answers many requests in one go, in this process."""

    def answer_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        """Each request's place and its reply, in any order, each once. One call at a time.

        Raises LanguageModelError if it can answer nothing at all.
        """
        ...


class Batches:
    """`Engine` over a `BatchEngine`: what is waiting when the last batch is done makes the next one."""

    def __init__(self, engine: BatchEngine, size: int) -> None:
        self.engine, self.size = engine, size
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._running: asyncio.Task[None] | None = None

    async def answer(self, request: Request) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
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
            if future.done():  # nobody waits any more
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        def tell(what: Callable[..., None], *values: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(what, *values)

        def run() -> None:
            left = set(range(len(taken)))
            try:
                for place, outcome in self.engine.answer_all([request for request, _ in taken]):
                    left.discard(place)
                    tell(settle, place, outcome)
            except BaseException as e:  # a thread has nobody to raise to
                ours = isinstance(e, LatentglossError)  # files that are missing: no retry mends that
                failure = e if ours else Failure("failed", f"{type(e).__name__}: {e}")
                for place in left:
                    tell(settle, place, failure)
            finally:
                tell(done.set)

        # A thread of its own, which ends with the process: an executor's would be waited for.
        threading.Thread(target=run, name="language model", daemon=True).start()
        await done.wait()


GATHER_S = 0.01
"""How long the first request waits for company."""
