"""What is done beside a GPU: all of it, so many at once, and errors that reach who asked for it."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from latentgloss.machine.background import BackgroundWorkers


def test_on_a_cpu_it_is_done_at_once_and_here() -> None:
    found: list[int] = []
    with BackgroundWorkers("cpu", 4) as beside:
        beside.do(lambda: found.append(threading.get_ident()))
        assert found == [threading.get_ident()]


def test_beside_a_gpu_no_more_than_the_threads_are_under_way() -> None:
    lock, under_way, most, done = threading.Lock(), 0, 0, 0
    together = threading.Barrier(3, timeout=30)

    def action() -> None:
        nonlocal under_way, most, done
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait()
        with lock:
            under_way -= 1
            done += 1

    with BackgroundWorkers("cuda", 3) as beside:
        for _ in range(12):
            beside.do(action)
        beside.finish()
        assert (most, done) == (3, 12)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_is_raised_where_it_was_asked_for(device: str) -> None:
    def fail(number: int) -> None:
        raise ValueError(str(number))

    def both() -> None:
        with BackgroundWorkers(device, 2) as beside:
            beside.do(lambda: None)
            beside.do(partial(fail, 7))
            beside.finish()

    with pytest.raises(ValueError, match="7"):
        both()


def test_what_has_begun_is_waited_for_after_an_error() -> None:
    """It writes files."""
    done: list[int] = []

    def interrupted() -> None:
        with BackgroundWorkers("cuda", 1) as beside:
            beside.do(lambda: (time.sleep(0.2), done.append(1))[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert done == [1]
