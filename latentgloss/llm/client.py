"""Turns an engine into a `protocols.LanguageModel`: requests of many callers, sent concurrently, answered in order.

What belongs here: the callers' side of a request, from `complete` to its reply, and the thread whose event loop sends
requests. That loop keeps up to `in_flight` requests in flight over all calls of `complete`. What happens to a request
in the loop is in `sending.py`. Replies are read from the store's reply cache; a request whose reply the cache holds is
not sent.

- **Order and memory.** Replies come in the order of the requests. `requests` is read in the caller's thread, at most
  `AHEAD` times `in_flight` beyond the last reply that was handed out. No more requests and replies are held at a time.
- **Equal requests** in flight are sent once: callers in this process share a job (`jobs.py`), other processes of the
  store wait for it (`claims.py`).
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from latentgloss.errors import without_secrets
from latentgloss.llm.as_sent import as_sent
from latentgloss.llm.jobs import Job, Jobs
from latentgloss.llm.payments import Payments
from latentgloss.llm.prompt_length import checked, too_long
from latentgloss.llm.reply_cache import request_key
from latentgloss.llm.sending import BACKOFF_S, Sender
from latentgloss.llm.unreadable import ReadingsByRun
from latentgloss.machine.concurrency import check_abandoned
from latentgloss.pipeline.accounting import purpose, run_of_now
from latentgloss.protocols import Capability, Reply, Request
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from collections.abc import Hashable

    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.llm.engines.base import Engine
    from latentgloss.llm.ledger import Ledger
    from latentgloss.llm.reply_cache import ReplyCache


_log = logging.getLogger(__name__)

AHEAD = 4
"""Requests that are read ahead, in multiples of `in_flight`."""
CHECK_S = 0.5
"""Interval at which a thread that waits for a reply checks whether its own caller has given up."""
GRACE_S = 10.0
"""How long `complete`, when closed early, and `close` wait for requests in flight, since these are paid for."""


class Client:
    """A `protocols.LanguageModel` over an engine, which is made when the first request must be sent."""

    def __init__(
        self,
        spec: LanguageModelSpec,
        make_engine: Callable[[], Engine],
        replies: ReplyCache,
        ledger: Ledger,
        *,
        identity: dict[str, Any] | None = None,
        capabilities: Iterable[Capability] | None = None,
        count: Callable[[Sequence[Request]], list[int]] | None = None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        """`identity` and `capabilities` default to what the registry entry declares. `count` counts prompt tokens."""
        self.spec, self.replies, self.ledger = spec, replies, ledger
        self._identity = spec.declared() if identity is None else identity
        self._capabilities = frozenset(spec.capabilities if capabilities is None else capabilities)
        self._make_engine, self._count = make_engine, count
        self._served = spec.engine == "openai_compatible"
        self._engine: Engine | None = None
        self._model_sha256 = json_sha256(self._identity)
        self._jobs = Jobs()
        self._payments = Payments(spec, ledger, count)
        self._sender = Sender(
            spec, self._jobs, replies, self._payments, model_sha256=self._model_sha256, backoff_s=backoff_s
        )
        self.readings = ReadingsByRun(spec.name)
        """What each run has read of the replies (`asking.py`)."""
        self._calls = 0
        self._run: Hashable = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Client({self.name})"

    @property
    def name(self) -> str:
        """Name of the registry entry."""
        return self.spec.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the model can do beyond answering with text."""
        return self._capabilities

    def identity(self) -> dict[str, Any]:
        """Everything that decides the replies, without addresses and keys. Sends no request."""
        return self._identity

    def count_tokens(self, requests: Sequence[Request]) -> list[int] | None:
        """Prompt tokens of each request; None if the model's tokenizer is not available."""
        return self._count([as_sent(self.spec, request) for request in requests]) if self._count else None

    @property
    def repeats(self) -> bool:
        """Whether it gives the same reply whenever it gets the same request, so that asking again is of no use."""
        return self.spec.engine != "openai_compatible"

    # -- in the caller's thread ------------------------------------------------------------------------------

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Yields one reply per request, in order (see the protocol). Raises LanguageModelError.

        If closed early (an exception in the consumer, KeyboardInterrupt), it drops the requests that were not sent yet
        and waits at most `GRACE_S` for those that were.
        """
        ahead: deque[Job | Reply] = deque()
        unread = iter(requests)
        self._begin()
        try:
            while True:
                room = AHEAD * self.spec.in_flight - len(ahead)
                for request in itertools.islice(unread, room):
                    ahead.append(self._start(request))
                if not ahead:
                    return
                head = ahead[0]
                reply = _waited_for(head) if isinstance(head, Job) else head
                self._leave(ahead.popleft())
                yield reply
        finally:
            for item in ahead:
                self._leave(item)
            with self._jobs.lock:
                self._calls -= 1
            # Requests in flight are paid for, so their replies should reach the cache even if no caller takes them.
            wait([item.future for item in ahead if isinstance(item, Job) and item.sent], timeout=GRACE_S)

    def close(self, grace_s: float = GRACE_S) -> None:
        """Waits at most `grace_s` for requests in flight and ends the thread. `complete` starts a new one."""
        with self._jobs.lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            self._jobs.leave_all()
        if loop is None or thread is None:
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._finish(grace_s), loop)
        thread.join(grace_s + 5)

    def _begin(self) -> None:
        """Counts a call of `complete`; the first call of a new run forgets what stopped an earlier one."""
        with self._jobs.lock:
            run = run_of_now()
            if self._calls == 0 and (run is None or run != self._run):
                # The cause may have been removed since. Within a run, one partition finds it and the others believe it.
                self._sender.health.begin()
            self._run = run
            self._calls += 1

    def _start(self, request: Request) -> Job | Reply:
        """The reply if it is known already, else the job of the request."""
        if missing := _needed(request) - self.capabilities:
            return Reply("unsupported", f"{self.name} has no {', '.join(sorted(missing))}")
        key = request_key(self._model_sha256, request)
        reply = self.replies.get(key)
        if reply is not None:
            return self._read_whole(request, reply)
        counted = self._counted(request)
        if reason := too_long(self.spec, as_sent(self.spec, request), counted):
            return Reply("llm_error", reason)
        with self._jobs.lock:
            job = self._jobs.join(key)
            if job is not None:
                return job
            # A job is removed after its reply is in the cache, so a request found in neither has not been answered.
            reply = self.replies.get(key)
            if reply is not None:
                return reply
            loop = self._running_loop()
            job = Job(key, request, purpose(), prompt_tokens=counted)
            self._jobs.add(job)
            loop.call_soon_threadsafe(self._launch, job)
        return job

    def _read_whole(self, request: Request, reply: Reply) -> Reply:
        """A kept reply, as `prompt_truncated` if the server did not read the whole prompt.

        Replies that were kept before prompts were counted are checked now.
        """
        return reply if reply.counted_prompt_tokens or not self._served else checked(reply, self._counted(request))

    def _counted(self, request: Request) -> int | None:
        """Tokens of a prompt, if a check needs them and they can be counted. Raises LanguageModelError."""
        if self._count is None or not (self._served or self.spec.context_length):
            return None
        try:
            (counted,) = self._count([as_sent(self.spec, request)])
        except Exception as e:
            if self.spec.paid or not self._served:  # which need the count elsewhere, too
                raise
            self._count = None
            _log.warning(
                "%s: prompts cannot be counted, so whether they are read whole is not checked (%s)",
                self,
                without_secrets(str(e)),
            )
            return None
        return counted

    def _leave(self, item: Job | Reply) -> None:
        if isinstance(item, Job):
            self._jobs.leave(item)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, started if there is none. Raises LanguageModelError if the model cannot be used."""
        if self._loop is None:
            self._payments.begin()
            self._engine = self._engine or self._make_engine()
            self._sender.begin(self._engine)
            self._loop = loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(loop,), name=f"requests to {self.name}", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        return self._loop

    # -- in the loop's thread ----------------------------------------------------------------------------------

    def _launch(self, job: Job) -> None:
        """Starts sending a job."""
        try:
            task = asyncio.get_running_loop().create_task(self._sender.run(job))
        except Exception as e:  # the callers that wait for the job must receive it
            job.future.set_exception(e)
            raise
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, grace_s: float) -> None:
        """Waits at most `grace_s` for the jobs, cancels the rest, closes the engine and stops the loop."""
        tasks = set(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._engine is not None:
            with suppress(Exception):
                await self._engine.close()
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.stop)


def _waited_for(job: Job) -> Reply:
    """The job's reply. Raises the error that ended the job, or Abandoned if this thread's own caller has given up."""
    while not job.future.done():
        wait([job.future], timeout=CHECK_S)
        check_abandoned()
    return job.future.result()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _needed(request: Request) -> frozenset[Capability]:
    """Capabilities that a request needs.

    A seed needs none, because it distinguishes replies to equal prompts even where it is not sent.
    """
    found: set[Capability] = set()
    if request.choice is not None:
        found.add("choice")
    if request.json_schema is not None:
        found.add("json_schema")
    if request.regex is not None:
        found.add("regex")
    if request.logprobs:
        found.add("logprobs")
    return frozenset(found)
