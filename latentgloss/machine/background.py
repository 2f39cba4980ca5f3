"""Doing on the host what can be done while a GPU computes: sorting, hashing and writing, in threads.

What belongs here: how much of it may wait at once, so that memory stays flat. What is done there is the caller's.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


THREADS = 8
"""Most threads, since each holds a shard."""


class BackgroundWorkers:
    """Threads that do what they are given; a context manager that waits for the last of it.

    On a CPU there are none, and what is given is done at once: the model would wait for its cores.
    """

    def __init__(self, device: str, threads: int | None = None) -> None:
        """`threads`: at most so many; None: one per core."""
        self.threads = 0 if device == "cpu" else min(threads or os.cpu_count() or 1, THREADS)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads else None
        self._waiting: deque[Future[None]] = deque()

    def do(self, action: Callable[[], None]) -> None:
        """Begins it as soon as a thread is free, and waits for that. Raises what an earlier one raised."""
        if self._pool is None:
            action()
            return
        while len(self._waiting) >= self.threads:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(action))

    def finish(self) -> None:
        """Waits for all of it. Raises what the first of them raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> BackgroundWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
