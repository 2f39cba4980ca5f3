"""A runner that gives stage runs worker processes; runs of the same model share them.

What belongs here: starting and stopping the processes. The stage decides what they compute and passes them everything
they need, because they share no memory with this process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, TypeVar

from latentgloss.errors import InputError
from latentgloss.pipeline.failures import attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from latentgloss.pipeline.stage_run import Runner, StageRun

R = TypeVar("R")


def with_processes(
    compute: Callable[[StageRun[R], Executor | None], None],
    prepare: Callable[..., None],
    arguments: Callable[[StageRun[R]], tuple[Any, ...]],
) -> Runner[R]:
    """A runner like `stage_run.one_by_one` that also passes `compute` a pool of worker processes.

    Each process runs `prepare(*arguments(run))` first, with the first run of the model. `compute` gets None instead of
    a pool if one process is to be used (setting `machine.workers`; by default the number of cores).
    """

    def runner(runs: Sequence[StageRun[R]]) -> Iterator[StageRun[R]]:
        for _, group in groupby(sorted(runs, key=lambda run: run.model.name), key=lambda run: run.model.name):
            same_model = list(group)
            with contextlib.ExitStack() as stack:
                pool: list[Executor | None] = []

                def start(first: StageRun[R] = same_model[0], stack: contextlib.ExitStack = stack) -> None:
                    pool.append(stack.enter_context(_processes(first, prepare, arguments)))  # noqa: B023

                error = attempt(start)
                for run in same_model:
                    run.start()
                    with run.charged():
                        run.error = error or attempt(partial(compute, run, *pool))
                    yield run

    return runner


@contextlib.contextmanager
def _processes(
    run: StageRun[R], prepare: Callable[..., None], arguments: Callable[[StageRun[R]], tuple[Any, ...]]
) -> Iterator[Executor | None]:
    n = run.settings.machine.workers or os.cpu_count() or 1
    if n == 1:
        yield None
        return
    with worker_pool(n, prepare, arguments(run)) as pool:
        yield pool


def worker_pool(n: int, prepare: Callable[..., None], arguments: tuple[Any, ...]) -> ProcessPoolExecutor:
    """A pool of `n` processes that run `prepare(*arguments)` first, and end when this process ends, however it ends."""
    # Not fork, because the model's threads may be running in this process and a forked child would wait for them for
    # ever.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(n, spawn, _start, (prepare, *arguments))


def check_not_starting() -> None:
    """Raises InputError in a worker process that is only starting, and for that runs the user's program again.

    Without this it would wait for the lock of the partition that its parent is computing, and its parent for it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(
            "a worker process that was starting has come to a call that computes, because it runs the program again",
            expected='the call below `if __name__ == "__main__":`',
            todo="put it there, or set workers = 1 under [machine]",
        )


def _start(prepare: Callable[..., None], *arguments: Any) -> None:
    """Runs in a worker process before anything else."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    prepare(*arguments)


def _end_with_parent() -> None:
    """Waits until the parent process has ended, then ends this one.

    A process that is killed with signal 9 cannot stop its workers, and a worker would wait for its next task for ever.
    The signal that Linux offers for this (PR_SET_PDEATHSIG) is not used, because it is sent when the *thread* that
    started the worker ends, and a pool outlives such threads.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
