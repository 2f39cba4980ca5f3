"""Requests in flight: each with its reply to come, and how many callers wait for it.

What belongs here: the record of one request in flight, the table of all of them, and the one lock around both. Equal
requests of one process share a job. A job that has no waiting caller left is dropped before it is sent. Nothing is
read or written here.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentgloss.protocols import Reply

if TYPE_CHECKING:
    from latentgloss.protocols import Request


@dataclass(eq=False)
class Job:
    """One request in flight."""

    key: bytes
    """The request's key in the reply cache."""
    request: Request
    charged: tuple[str, str]
    """Stage and partition under which the ledger enters the request."""
    waiting: int = 1
    """Callers that wait for the reply."""
    prompt_tokens: int | None = None
    """Tokens of the prompt as counted before it is sent; None if they were not counted."""
    sent: bool = False
    """Whether an attempt is in progress."""
    future: Future[Reply] = field(default_factory=Future)


class Jobs:
    """The jobs of one client, by key. May be used from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Hold it to combine several calls. It is reentrant because the garbage collector may close an iterator of
        replies, which leaves its jobs, while this thread holds the lock."""
        self._by_key: dict[bytes, Job] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def join(self, key: bytes) -> Job | None:
        """The job with this key, for which one more caller waits from now on; None if there is no such job."""
        with self.lock:
            job = self._by_key.get(key)
            if job is not None:
                job.waiting += 1
            return job

    def add(self, job: Job) -> None:
        """Adds a new job."""
        with self.lock:
            self._by_key[job.key] = job

    def remove(self, job: Job) -> None:
        """Removes a job, unless a new job with the same key has replaced it."""
        with self.lock:
            if self._by_key.get(job.key) is job:
                del self._by_key[job.key]

    def leave(self, job: Job) -> None:
        """One caller no longer waits for the job."""
        with self.lock:
            job.waiting -= 1

    def leave_all(self) -> None:
        """No caller waits for any job any longer."""
        with self.lock:
            for job in self._by_key.values():
                job.waiting = 0

    def send_or_drop(self, job: Job) -> bool:
        """Marks the job as sent and returns True if a caller waits for it; otherwise removes it from the table.

        No caller can join a job after it is removed.
        """
        with self.lock:
            job.sent = job.waiting > 0
            if not job.sent:
                self._by_key.pop(job.key, None)
            return job.sent
