"""Turns an engine into a `protocols.LanguageModel`: order, concurrency, cache, retries, budget.

What belongs here: one request's way from `complete` to its reply. An event loop in a thread of its own keeps up to
`in_flight` requests under way, over all calls of `complete`; each reply is in the store before anybody sees it.

- **Order and memory.** Replies come in the order of the requests. `requests` is read at most `AHEAD` times `in_flight`
  beyond the reply handed out last, in the caller's thread; that many requests and replies are held at most.
- **Once.** Equal requests under way are sent once, over all processes of the store (`claims.py`). What the cache holds
  is not sent.
- **Retries.** Waits grow from `BACKOFF_S` twofold up to `BACKOFF_MOST_S`, each drawn from half to one and a half times.
  `busy` holds everybody back, as long as the server asks. A refused request is not repeated.
- **Whose fault.** A request that failed often while the server answers others is a reply `llm_error`; if it answers
  nobody, the run ends with LanguageModelError (`health.py`).
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from latentgloss.errors import LanguageModelError, LatentglossError
from latentgloss.llm.claims import Claims
from latentgloss.llm.engines.base import BILLED, Failure
from latentgloss.llm.health import Health, Tries
from latentgloss.llm.ledger import Cost
from latentgloss.llm.reply_cache import request_key
from latentgloss.machine.concurrency import check_abandoned
from latentgloss.pipeline.accounting import purpose, run_of_now
from latentgloss.protocols import Capability, Message, Reply, Request
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from collections.abc import Hashable

    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.llm.engines.base import Engine
    from latentgloss.llm.ledger import Ledger
    from latentgloss.llm.reply_cache import ReplyCache


AHEAD = 4
BACKOFF_S = 0.5
BACKOFF_MOST_S = 30.0
CLAIMED_S, CLAIMED_MOST_S = 0.02, 1.0
"""Between two looks at a request that another process has under way: at first, and at most."""
HEED_S = 0.5
"""Between two looks at whether anybody still waits for the thread that waits for a reply."""
PROBE = Request((Message("user", "Reply with the word: yes"),), max_tokens=8)
"""What a server is asked that failed often, to see whether it answers anything."""
GRACE_S = 10.0
"""How long an end, of `complete` before its time or of the client, waits for what is in flight: it is paid for."""


@dataclass(eq=False)
class _Job:
    """One request under way, and everybody who waits for it."""

    key: bytes
    request: Request
    charged: tuple[str, str]
    waiting: int = 1
    sent: bool = False
    """An attempt is under way."""
    future: Future[Reply] = field(default_factory=Future)


class Client:
    """`protocols.LanguageModel` over an engine, which is made when the first request must be sent."""

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
        self.spec, self.replies, self.ledger = spec, replies, ledger
        self._identity = spec.declared() if identity is None else identity
        self._capabilities = frozenset(spec.capabilities if capabilities is None else capabilities)
        self._make_engine, self._count = make_engine, count
        self._engine: Engine | None = None
        self._model_sha256 = json_sha256(self._identity)
        self._claims = Claims(replies.database.path.parent)
        self._backoff_s = backoff_s
        self._lock = threading.RLock()  # also of what the garbage collector ends while it is held
        self._jobs: dict[bytes, _Job] = {}
        self._calls = 0
        self._asked_for: Hashable = None
        self._stopped: LanguageModelError | None = None
        self._health = Health(spec.patience_s)
        self._not_before = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Client({self.name})"

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._capabilities

    def identity(self) -> dict[str, Any]:
        return self._identity

    def count_tokens(self, requests: Sequence[Request]) -> list[int] | None:
        return self._count(requests) if self._count else None

    # -- in the caller's thread ------------------------------------------------------------------------------

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """See the protocol. Raises LanguageModelError.

        Closed early (an exception in the consumer, KeyboardInterrupt), it drops what was not sent yet and waits
        `GRACE_S` at most for what was.
        """
        ahead: deque[_Job | Reply] = deque()
        left = iter(requests)
        self._begin()
        try:
            while True:
                room = AHEAD * self.spec.in_flight - len(ahead)
                for request in itertools.islice(left, room):
                    ahead.append(self._start(request))
                if not ahead:
                    return
                head = ahead[0]
                reply = _waited_for(head) if isinstance(head, _Job) else head
                self._leave(ahead.popleft())
                yield reply
        finally:
            for item in ahead:
                self._leave(item)
            with self._lock:
                self._calls -= 1
            # Nobody may be left to receive what is in flight, but it is paid for: let it reach the cache.
            wait([item.future for item in ahead if isinstance(item, _Job) and item.sent], timeout=GRACE_S)

    def close(self, grace_s: float = GRACE_S) -> None:
        """Waits for what is in flight, `grace_s` at most, and ends the thread. `complete` starts it again."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            for job in self._jobs.values():
                job.waiting = 0
        if loop is None or thread is None:
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._finish(grace_s), loop)
        thread.join(grace_s + 5)

    def _begin(self) -> None:
        with self._lock:
            run = run_of_now()
            if self._calls == 0 and (run is None or run != self._asked_for):
                # What stopped an earlier run may be mended by now; within one, no other partition finds out anew.
                self._stopped, self._health, self._not_before = None, Health(self.spec.patience_s), 0.0
            self._asked_for = run
            self._calls += 1

    def _start(self, request: Request) -> _Job | Reply:
        """The reply, if it is known already, else the request on its way."""
        if missing := wanted(request) - self.capabilities:
            return Reply("unsupported", f"{self.name} has no {', '.join(sorted(missing))}")
        key = request_key(self._model_sha256, request)
        with self._lock:
            job = self._jobs.get(key)
            if job is not None:
                job.waiting += 1
                return job
            # A job leaves `_jobs` after its reply is in the cache: what is in neither was not answered.
            reply = self.replies.get(key)
            if reply is not None:
                return reply
            loop = self._running_loop()
            job = self._jobs[key] = _Job(key, request, purpose())
            loop.call_soon_threadsafe(self._launch, job)
        return job

    def _leave(self, item: _Job | Reply) -> None:
        if isinstance(item, _Job):
            with self._lock:
                item.waiting -= 1

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            if self.spec.paid and not self.ledger.limited:
                raise LanguageModelError(
                    f"{self.name} is paid for, and there is no budget",
                    expected="[budget] with tokens or usd in latentgloss.toml",
                    todo="set one (`latentgloss estimate` says what is needed)",
                )
            self._engine = self._engine or self._make_engine()
            self._loop = loop = asyncio.new_event_loop()
            self._slots = asyncio.Semaphore(self.spec.in_flight)
            self._settled, self._probing = asyncio.Event(), asyncio.Lock()
            self._paying = 0
            self._thread = threading.Thread(target=_run, args=(loop,), name=f"requests to {self.name}", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        return self._loop

    # -- in the loop's thread ----------------------------------------------------------------------------------

    def _launch(self, job: _Job) -> None:
        try:
            task = asyncio.get_running_loop().create_task(self._run(job))
        except Exception as e:  # whoever waits must hear of it
            job.future.set_exception(e)
            raise
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, job: _Job) -> None:
        outcome: Reply | BaseException = CancelledError()
        try:
            outcome = await self._once(job)
        except LatentglossError as e:
            if isinstance(e, LanguageModelError) and job.waiting > 0:  # else it says nothing about the run of now
                self._stopped = self._stopped or e
            outcome = e
        except Exception as e:  # a fault of ours must reach the caller, not end in the loop's log
            outcome = e
        finally:
            with self._lock:
                if self._jobs.get(job.key) is job:
                    del self._jobs[job.key]
            if isinstance(outcome, Reply):
                job.future.set_result(outcome)
            else:
                job.future.set_exception(outcome)

    async def _once(self, job: _Job) -> Reply:
        """The reply, from the server, or from the cache if another process asks for it. Raises as `_answered`."""
        pause = CLAIMED_S
        while True:
            async with self._slots:
                if self._claims.take(job.key):
                    try:
                        # Another process may have asked, and be done, since the cache was last looked into.
                        return self.replies.get(job.key) or await self._answered(job)
                    finally:
                        self._claims.release(job.key)
            if self._stopped is not None:
                raise self._stopped
            if self._dropped(job):
                raise CancelledError
            job.sent = False
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, CLAIMED_MOST_S)

    async def _answered(self, job: _Job) -> Reply:
        """The reply, or `llm_error` with the reason. Raises LanguageModelError if the server is gone or money is."""
        tries = Tries()
        while True:
            while (pause := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(pause * random.uniform(1.0, 1.1))
            if self._stopped is not None:
                raise self._stopped
            if self._dropped(job):
                raise CancelledError
            try:
                reply = await self._attempt(job)
            except Failure as e:
                job.sent = False
                tries.count(e)
                found = self._health.verdict(e, tries)
                if found is not None and found.ends and not (found.doubtful and await self._answers(job)):
                    if not found.again:
                        raise self._end(found.ends, found.todo) from None
                    found = None
                if found is not None:
                    return Reply("llm_error", found.reason)
                pause = min(self._backoff_s * 2 ** (tries.most - 1), BACKOFF_MOST_S) * random.uniform(0.5, 1.5)
                if e.kind == "busy":
                    self._not_before = max(self._not_before, time.monotonic() + (e.wait_s or 0.0))
                await asyncio.sleep(max(pause, e.wait_s or 0.0))
            else:
                self._health.good()
                return reply

    def _dropped(self, job: _Job) -> bool:
        """Whether nobody waits for it any more; from then on nobody can."""
        with self._lock:
            job.sent = job.waiting > 0
            if job.sent:
                return False
            self._jobs.pop(job.key, None)
            return True

    async def _answers(self, job: _Job) -> bool:
        """Whether the server answers anything: a short question that has nothing to do with what fails, asked once."""
        since = time.monotonic()
        async with self._probing:
            if self._health.last_good > since:
                return True
            if self._stopped is not None:
                raise self._stopped
            try:
                await self._attempt(_Job(request_key(self._model_sha256, PROBE), PROBE, job.charged))
            except Failure:
                return False
            self._health.good()
            return True

    def _end(self, what: str, todo: str) -> LanguageModelError:
        return LanguageModelError(
            f"{self.name} {what}", todo=f"{todo}, then run again: every reply that arrived is kept and not asked again"
        )

    async def _attempt(self, job: _Job) -> Reply:
        """Asks once; on a reply it is in the store, and paid, when this returns. Raises Failure."""
        entry = await self._reserve(job) if self.spec.paid else None
        billed = True  # if this is cancelled in the middle, nobody knows
        arrived = False
        try:
            engine = self._engine
            assert engine is not None
            local = self.spec.engine != "openai_compatible"
            try:
                async with asyncio.timeout(None if local else self.spec.timeout_s):
                    reply = await engine.answer(job.request)
            except TimeoutError:
                raise Failure("timeout", f"no whole answer in {self.spec.timeout_s:g} s") from None
            reply = self._priced(reply, job)
            self._keep(job, reply, entry)
            arrived = True
            return reply
        except Failure as e:
            billed = e.kind in BILLED
            raise
        finally:
            if entry is not None:
                if not arrived:
                    self.ledger.unanswered(entry, billed=billed)
                self._paying -= 1
                self._settled.set()

    def _keep(self, job: _Job, reply: Reply, entry: int | None) -> None:
        with self.replies.database.transaction() as transaction:
            self.replies.put(transaction, job.key, reply)
            self.ledger.answered(transaction, entry, self.name, job.charged, Cost.paid(reply))

    async def _reserve(self, job: _Job) -> int:
        """The ledger's entry for this attempt. Raises LanguageModelError once not even what is in flight helps."""
        most = self._most(job.request)
        while True:
            self._settled.clear()
            entry = self.ledger.send(self.name, job.charged, most)
            if entry is not None:
                self._paying += 1
                return entry
            if self._paying == 0:
                spent = self.ledger.spent()
                raise LanguageModelError(
                    f"over budget: {spent.tokens:,} tokens and ${spent.usd:.4f} are spent, and the next request to "
                    f"{self.name} may take {most.tokens:,} tokens and ${most.usd:.4f}",
                    expected=f"[budget] tokens = {self.ledger.tokens}, usd = {self.ledger.usd}",
                    todo="raise it and run again: every reply that arrived is kept and not asked again",
                )
            await self._settled.wait()
            if self._stopped is not None:
                raise self._stopped

    def _most(self, request: Request) -> Cost:
        """The most an attempt can cost."""
        if self._count is not None:
            (prompt,) = self._count([request])
        else:
            prompt = most_prompt_tokens(request)
        assert self.spec.prices is not None
        return Cost.of(self.spec.prices, prompt, 0, request.max_tokens)

    def _priced(self, reply: Reply, job: _Job) -> Reply:
        if not self.spec.paid or self.spec.prices is None:
            return reply
        if reply.prompt_tokens == 0:  # the server did not say
            most = self._most(job.request)
            return replace(
                reply, prompt_tokens=most.prompt_tokens, completion_tokens=most.completion_tokens, cost_usd=most.usd
            )
        cost = Cost.of(self.spec.prices, reply.prompt_tokens, reply.cached_prompt_tokens, reply.completion_tokens)
        return replace(reply, cost_usd=cost.usd)

    async def _finish(self, grace_s: float) -> None:
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


def _waited_for(job: _Job) -> Reply:
    """Its reply. Raises what it failed with, or Abandoned if nobody waits for this thread any more."""
    while not job.future.done():
        wait([job.future], timeout=HEED_S)
        check_abandoned()
    return job.future.result()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def most_prompt_tokens(request: Request) -> int:
    """Where there is no tokenizer: two bytes a token, where text has three to five."""
    return sum(len(m.content.encode("utf-8", "replace")) // 2 + 16 for m in request.messages)


def wanted(request: Request) -> frozenset[Capability]:
    """What a request asks for beyond text. A seed is none of it: where it is not sent, it still tells samples apart."""
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
