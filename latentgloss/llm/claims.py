"""Which requests are under way, told to the store's other processes, so that equal ones are sent once.

What belongs here: taking a claim and giving it back. A claim is a lock on one byte of the file `claims` beside the
replies, at a place that the request's key says: nothing is written, the kernel gives it back when a process dies (kill
-9 included), and there is no time after which it lapses. Requests of one place by chance (62 bits) wait for each other.
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
    """The file, open as long as this process holds a claim in it."""

    descriptor: int
    process: int
    held: set[int] = field(default_factory=set)


# Of the process: to the kernel the process is the holder, whichever of its threads asks, and closing any descriptor of
# the file gives back everything the process holds in it.
_files: dict[Path, _File] = {}
_lock = threading.Lock()


class Claims:
    """Claims on requests by key, against everybody else with the same folder, in this process or another."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def take(self, key: bytes) -> bool:
        """Whether nobody else has it, and it is taken from now on. Never waits."""
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
                pass  # a file system without locks: at worst two processes pay for the same reply
            file.held.add(place)
            return True

    def release(self, key: bytes) -> None:
        """Gives back what was taken."""
        place = _place(key)
        with _lock:
            file = self._file()
            file.held.discard(place)
            with contextlib.suppress(OSError):
                fcntl.lockf(file.descriptor, fcntl.LOCK_UN, 1, place)
            self._close_if_idle(file)

    def _file(self) -> _File:
        file = _files.get(self.path)
        if file is None or file.process != os.getpid():  # a forked child has none of its parent's claims
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            file = _files[self.path] = _File(descriptor, os.getpid())
        return file

    def _close_if_idle(self, file: _File) -> None:
        if not file.held:
            del _files[self.path]
            os.close(file.descriptor)


def _place(key: bytes) -> int:
    return int.from_bytes(key[:8], "big") >> 2
