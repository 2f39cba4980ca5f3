"""On whose account language models are asked: stage, partition and run."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


_purpose: ContextVar[tuple[str, str]] = ContextVar("purpose", default=("", ""))
_run: ContextVar[Hashable] = ContextVar("run", default=None)


@contextlib.contextmanager
def charged_to(stage: str, partition: str, run: Hashable = None) -> Iterator[None]:
    """Requests begun in here (in this thread) are entered in the ledger under this stage and partition.

    `run` tells what is asked for together: where one partition has found the server gone, the next does not try.
    """
    tokens = _purpose.set((stage, partition)), _run.set(run)
    try:
        yield
    finally:
        _purpose.reset(tokens[0])
        _run.reset(tokens[1])


def purpose() -> tuple[str, str]:
    """Stage and partition that requests are charged to now; empty where nobody said."""
    return _purpose.get()


def run_of_now() -> Hashable:
    """What requests are asked for together with; None where nobody said."""
    return _run.get()
