"""Computing in several processes, which the works of one model share.

What belongs here: starting and ending them. What they are asked to do is the stage's; it hands them whatever it needs,
since nothing of this process is theirs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from latentgloss.work import attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from latentgloss.work import Runner, Work


def with_processes(
    compute: Callable[[Work, Executor | None], None],
    prepare: Callable[..., None],
    arguments: Callable[[Work], tuple[Any, ...]],
) -> Runner:
    """A runner like `work.one_by_one` whose works get processes in which `prepare` ran with `arguments`.

    None instead of processes where one is all there is to be (`machine.workers`).
    """

    def run(works: Sequence[Work]) -> Iterator[Work]:
        for _, group in groupby(sorted(works, key=lambda work: work.model.name), key=lambda work: work.model.name):
            together = list(group)
            with contextlib.ExitStack() as stack:
                pool: list[Executor | None] = []

                def start(first: Work = together[0], stack: contextlib.ExitStack = stack) -> None:
                    pool.append(stack.enter_context(_processes(first, prepare, arguments)))  # noqa: B023

                error = attempt(start)
                for work in together:
                    work.start()
                    with work.charged():
                        work.error = error or attempt(partial(compute, work, *pool))
                    yield work

    return run


@contextlib.contextmanager
def _processes(
    work: Work, prepare: Callable[..., None], arguments: Callable[[Work], tuple[Any, ...]]
) -> Iterator[Executor | None]:
    n = work.settings.machine.workers or os.cpu_count() or 1
    if n == 1:
        yield None
        return
    # Not fork: the model's threads may be alive in this process, and a forked child would wait for them for ever.
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), prepare, arguments(work)) as pool:
        yield pool
