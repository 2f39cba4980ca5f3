"""Threads for work on the host while a GPU computes: sorting, hashing and writing.

What belongs here: running the work, and a bound on how much of it can be pending, so that memory use stays constant.
The caller decides what the work is.
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
"""Maximum number of threads. It is limited because each thread holds a shard in memory."""


class BackgroundWorkers:
    """A context manager that runs actions in background threads and waits for them when it is left.

    If the model runs on the CPU there are no threads, because they would take cores from the model; each action then
    runs immediately in the caller's thread.
    """

    def __init__(self, device: str, threads: int | None = None) -> None:
        """`device`: where the model runs. `threads`: maximum number of threads; None means one per core."""
        self.threads = 0 if device == "cpu" else min(threads or os.cpu_count() or 1, THREADS)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads else None
        self._waiting: deque[Future[None]] = deque()

    def do(self, action: Callable[[], None]) -> None:
        """Waits for a free thread and starts an action in it. Raises the error of an earlier action that failed."""
        if self._pool is None:
            action()
            return
        while len(self._waiting) >= self.threads:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(action))

    def finish(self) -> None:
        """Waits for all actions. Raises the error of the first one that failed."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> BackgroundWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
