"""Sends one request until it has a reply: claim, attempts and pauses, payment, and the reply cache.

What belongs here: what happens to a job in the client's event loop. Each reply is in the store before any caller
receives it.

- **Once.** Before a request is sent, it is claimed against all processes of the store (`claims.py`). A request that
  another process has claimed is looked up in the cache again after a pause.
- **Retries.** Pauses double from `BACKOFF_S` up to `BACKOFF_MOST_S`, and each is multiplied by a random factor from a
  half to one and a half. A server that is busy holds back all requests for as long as it demands. A refused request is
  not repeated.
- **Cause.** If a request keeps failing while the server answers others, its reply has status `llm_error`. If the server
  answers nothing, the run ends with LanguageModelError (`health.py`).
"""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from latentgloss.errors import LanguageModelError, LatentglossError
from latentgloss.llm import probing
from latentgloss.llm.as_sent import as_sent
from latentgloss.llm.claims import Claims
from latentgloss.llm.engines.base import Failure
from latentgloss.llm.health import Health, Tries
from latentgloss.llm.jobs import Job
from latentgloss.llm.ledger import Cost
from latentgloss.llm.prompt_length import checked
from latentgloss.llm.reply_cache import request_key
from latentgloss.protocols import Reply

if TYPE_CHECKING:
    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.llm.engines.base import Engine
    from latentgloss.llm.jobs import Jobs
    from latentgloss.llm.payments import Payments, Reservation
    from latentgloss.llm.reply_cache import ReplyCache
    from latentgloss.protocols import Request


BACKOFF_S = 0.5
BACKOFF_MOST_S = 30.0
CLAIMED_S, CLAIMED_MOST_S = 0.02, 1.0
"""Pause between two looks at a request that another process has claimed: the first, and the longest."""


class Sender:
    """Sends jobs to an engine. Everything except the constructor and `begin` runs in the client's event loop."""

    def __init__(
        self,
        spec: LanguageModelSpec,
        jobs: Jobs,
        replies: ReplyCache,
        payments: Payments,
        *,
        model_sha256: str,
        backoff_s: float,
    ) -> None:
        self.spec, self.replies, self.health = spec, replies, Health(spec.patience_s)
        self._jobs, self._payments, self._backoff_s = jobs, payments, backoff_s
        self._remarks = payments.remarks
        self._claims = Claims(replies.database.path.parent)
        self._model_sha256 = model_sha256

    def begin(self, engine: Engine) -> None:
        """Prepares for a new event loop."""
        self._engine = engine
        self._slots = asyncio.Semaphore(self.spec.in_flight)
        self._probing = asyncio.Lock()

    async def run(self, job: Job) -> None:
        """Sets the job's future to the reply or to the error that ended it, and removes the job."""
        outcome: Reply | BaseException = CancelledError()
        try:
            outcome = await self._reply(job)
        except LatentglossError as e:
            if isinstance(e, LanguageModelError) and job.waiting > 0:  # without callers, it belongs to an earlier run
                self.health.stop(e)
            outcome = e
        except Exception as e:  # a defect here must reach the caller instead of the event loop's log
            outcome = e
        finally:
            self._jobs.remove(job)
            if isinstance(outcome, Reply):
                job.future.set_result(outcome)
            else:
                job.future.set_exception(outcome)

    async def _reply(self, job: Job) -> Reply:
        """The reply, from the server or, if another process sends the request, from the cache. Raises as `_send`."""
        pause = CLAIMED_S
        while True:
            async with self._slots:
                if self._claims.take(job.key):
                    try:
                        # Another process may have received the reply since this one last read the cache.
                        return self.replies.get(job.key) or await self._send(job)
                    finally:
                        self._claims.release(job.key)
            self.health.raise_if_stopped()
            if not self._jobs.send_or_drop(job):
                raise CancelledError
            job.sent = False
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, CLAIMED_MOST_S)

    async def _send(self, job: Job) -> Reply:
        """The server's reply, or one of status `llm_error` with the reason.

        Raises LanguageModelError if the server answers nothing or the budget is spent, CancelledError if no caller
        waits for the job any longer.
        """
        tries = Tries()
        while True:
            while (pause := self.health.not_before - time.monotonic()) > 0:
                await asyncio.sleep(pause * random.uniform(1.0, 1.1))
            self.health.raise_if_stopped()
            if not self._jobs.send_or_drop(job):
                raise CancelledError
            try:
                reply = await self._attempt(job)
            except Failure as e:
                job.sent = False
                tries.count(e)
                given_up = await self._given_up(job, e, tries)
                if given_up is not None:
                    return given_up
                pause = min(self._backoff_s * 2 ** (tries.most - 1), BACKOFF_MOST_S) * random.uniform(0.5, 1.5)
                if e.kind == "busy":
                    self.health.pause(e.wait_s or 0.0)
                await asyncio.sleep(max(pause, e.wait_s or 0.0))
            else:
                self.health.good(probing.form(job.request))
                return reply

    async def _given_up(self, job: Job, failure: Failure, tries: Tries) -> Reply | None:
        """The reply `llm_error` if the request is given up; None if it is tried again.

        Raises LanguageModelError if the run ends.
        """
        found = self.health.verdict(failure, tries, probing.form(job.request))
        if found is None:
            return None
        if not found.ends:
            return Reply("llm_error", found.reason)
        todo = ""
        if found.doubtful:
            since = time.monotonic()
            async with self._probing:  # several failing requests share one probe
                if self.health.answered.get(probing.form(job.request), 0.0) > since or await self._answers(job):
                    return Reply("llm_error", found.reason)
                if failure.kind == "rejected":
                    todo = await self._refused_part(job)
        if found.again:
            return None
        raise LanguageModelError(
            f"{self.spec.name} {found.ends}",
            expected=found.expected,
            todo=f"{todo or found.todo}, then run again: replies that arrived are kept and not requested again",
        ) from None

    async def _answers(self, job: Job) -> bool:
        """Whether the server answers a short request in the form of the failing one."""
        self.health.raise_if_stopped()
        if not await self._probed(job, probing.probe(job.request)):
            return False
        self.health.good(probing.form(job.request))
        return True

    async def _refused_part(self, job: Job) -> str:
        """What to do about the part of a request's form that the server refuses; empty if there is no such part."""
        for todo, plainer in probing.plainer(job.request):
            if await self._probed(job, plainer):
                return todo
        return ""

    async def _probed(self, job: Job, request: Request) -> bool:
        """Whether the server answers a short request, which is charged like the failing one."""
        try:
            await self._attempt(Job(request_key(self._model_sha256, request), request, job.charged))
        except Failure:
            return False
        return True

    async def _attempt(self, job: Job) -> Reply:
        """Sends the request once. A reply is in the store, and paid, when this returns. Raises Failure."""
        request = as_sent(self.spec, job.request)
        reserved = await self._payments.reserve(request, job.charged, self.health.raise_if_stopped)
        billed = True  # an attempt that is cancelled midway may be billed
        answered = False
        try:
            local = self.spec.engine != "openai_compatible"
            try:
                async with asyncio.timeout(None if local else self.spec.timeout_s):
                    reply = await self._engine.answer(request)
            except TimeoutError:
                raise Failure("timeout", f"no whole answer in {self.spec.timeout_s:g} s") from None
            reply = self._payments.priced(checked(reply, job.prompt_tokens), reserved)
            self._keep(job, reply, reserved)
            answered = True
            return reply
        except Failure as e:
            billed = e.billed
            raise
        finally:
            self._payments.settle(reserved, answered=answered, billed=billed)

    def _keep(self, job: Job, reply: Reply, reserved: Reservation | None) -> None:
        """Writes a reply, its cost, and what is odd about it, in one transaction."""
        with self.replies.database.transaction() as transaction:
            self.replies.put(transaction, job.key, reply)
            entry = None if reserved is None else reserved.entry
            self._payments.ledger.answered(transaction, entry, self.spec.name, job.charged, Cost.paid(reply))
            self._remarks.of_reply(transaction, reply, None if reserved is None else reserved.most)
