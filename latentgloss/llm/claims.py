"""Claims on requests in flight, shared by the processes of a store, so that equal requests are sent once.

What belongs here: taking a claim and releasing it. A claim is a lock on one byte of the file `claims` beside the
replies; 62 bits of the request's key are the byte's offset. Nothing is written to the file. The kernel releases the
lock when the process dies (kill -9 included), and a claim never expires. Two requests that share an offset by chance
wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


FILE = "claims"


@dataclass
class _File:
    """The claims file, which is open as long as this process holds a claim in it."""

    descriptor: int
    process: int
    held: set[int] = field(default_factory=set)


# One per process: for the kernel, the process holds a lock, whichever of its threads took it, and closing any
# descriptor of the file releases all locks of the process in it.
_files: dict[Path, _File] = {}
_lock = threading.Lock()


class Claims:
    """Claims on requests by key, among all users of the same folder in this process and in others."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def take(self, key: bytes) -> bool:
        """Takes the claim and returns True, or returns False if it is taken already. Never waits."""
        place = _place(key)
        with _lock:
            file = self._file()
            if place in file.held:
                return False
            try:
                fcntl.lockf(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):
                self._close_if_idle(file)
                return False
            except OSError:
                pass  # the file system has no locks, so two processes may pay for the same reply
            file.held.add(place)
            return True

    def release(self, key: bytes) -> None:
        """Releases a claim that `take` has taken."""
        place = _place(key)
        with _lock:
            file = self._file()
            file.held.discard(place)
            with contextlib.suppress(OSError):
                fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, place)
            self._close_if_idle(file)

    def _file(self) -> _File:
        file = _files.get(self.path)
        if file is None or file.process != os.getpid():  # a forked child does not inherit its parent's claims
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            file = _files[self.path] = _File(descriptor, os.getpid())
        return file

    def _close_if_idle(self, file: _File) -> None:
        if not file.held:
            del _files[self.path]
            os.close(file.descriptor)


def _place(key: bytes) -> int:
    """The offset of a key's byte: its first 62 bits."""
    return int.from_bytes(key[:8], "big") >> 2
