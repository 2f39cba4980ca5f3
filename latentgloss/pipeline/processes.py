"""A runner that gives stage runs worker processes; runs of the same model share them.

What belongs here: starting and stopping the processes. The stage decides what they compute and passes them everything
they need, because they share no memory with this process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

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
    # Not fork, because the model's threads may be running in this process and a forked child would wait for them for
    # ever.
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), prepare, arguments(run)) as pool:
        yield pool
