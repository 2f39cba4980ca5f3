"""Worker processes end with the process that started them, however that ends, and compute nothing while they start."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import tiny
from repository import ROOT

from latentgloss.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

PARENT = """
import fcntl, sys, threading, time
from pathlib import Path
from latentgloss.pipeline.processes import worker_pool

def prepare(kept):
    globals()["kept"] = kept

def work(path, busy):
    file = open(path, "w")
    fcntl.flock(file, fcntl.LOCK_EX)  # released when this process ends
    Path(path + ".started").touch()
    while True:
        if not busy:
            time.sleep(0.1)

if __name__ == "__main__":
    pool = worker_pool(2, prepare, (1,))
    # From a thread that ends while the workers go on.
    thread = threading.Thread(target=lambda: [pool.submit(work, name, name.endswith("0")) for name in sys.argv[1:]])
    thread.start()
    thread.join()
    print("submitted", flush=True)
    time.sleep(600)
"""


def held(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    locks = [tmp_path / "lock0", tmp_path / "lock1"]  # one worker computes, one waits
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script), *map(str, locks)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "submitted\n"
        until = time.monotonic() + 120
        while not all(lock.with_name(f"{lock.name}.started").exists() for lock in locks):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert [held(lock) for lock in locks] == [True, True]
        parent.send_signal(signal.SIGKILL)
        parent.wait(60)
        until = time.monotonic() + 60
        while any(held(lock) for lock in locks) and time.monotonic() < until:
            time.sleep(0.02)
        assert [held(lock) for lock in locks] == [False, False]


def test_a_worker_that_runs_the_program_again_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without `if __name__ == "__main__"`: its worker would wait for the lock that its parent holds."""
    workspace = tiny.tiny_workspace(tmp_path)
    # As `multiprocessing.spawn` marks a process while it runs the program of its parent.
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(InputError, match="__main__"):
        list(workspace.materialise("tokenized_corpus", ["tiny"], tiny.runner("tokenized_corpus")))
    monkeypatch.undo()
    assert workspace.store.current("tokenized_corpus", "tiny") is None
