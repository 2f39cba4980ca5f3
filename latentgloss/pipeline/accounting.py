"""The stage, partition and run that requests to language models are charged to, kept per thread."""

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
    """Enters requests that this thread starts inside the block in the ledger under this stage and partition.

    `run` identifies partitions that are computed together: once one of them has found the server unreachable, the
    others do not try it again.
    """
    tokens = _purpose.set((stage, partition)), _run.set(run)
    try:
        yield
    finally:
        _purpose.reset(tokens[0])
        _run.reset(tokens[1])


def purpose() -> tuple[str, str]:
    """The stage and partition that requests of this thread are charged to; two empty strings outside `charged_to`."""
    return _purpose.get()


def run_of_now() -> Hashable:
    """The run that requests of this thread belong to; None if `charged_to` was given none."""
    return _run.get()
