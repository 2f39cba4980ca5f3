"""Where the store's bytes live: one adapter per kind of storage.

What belongs here: atomic writing, replacing the pointer to the current version, locking a partition, and getting
a file as a local path. The store above knows nothing of file systems.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from typing import TYPE_CHECKING

from latentgloss.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class LocalFiles:
    """A folder on a local (POSIX) file system. Keys are relative paths with '/'."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / key

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def names(self, key: str) -> list[str]:
        """Names directly below a folder, sorted; empty if it does not exist."""
        try:
            return sorted(path.name for path in self.path(key).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def find(self, name: str, below: str) -> list[str]:
        """Keys of the folders below `below` that hold a file called `name`, sorted."""
        return sorted(p.parent.relative_to(self.root).as_posix() for p in self.path(below).rglob(name))

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A temporary local path; on leaving without an error it becomes `key`, whole and durable.

        Raises StoreError if the disk is full. After any error nothing of it remains.
        """
        final = self.path(key)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
            temporary.replace(final)
        except BaseException as e:
            temporary.unlink(missing_ok=True)
            if is_disk_full(e):
                raise disk_full(final) from e
            raise

    @contextlib.contextmanager
    def writing_folder(self, key: str) -> Iterator[Path]:
        """A temporary local folder; on leaving without an error its files appear in folder `key`, each whole."""
        final = self.path(key)
        temporary = final / f".{uuid.uuid4().hex}.tmp"
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for path in sorted(temporary.iterdir()):
                with path.open("rb") as f:
                    os.fsync(f.fileno())
                path.replace(final / path.name)
        except BaseException as e:
            if is_disk_full(e):
                raise disk_full(final) from e
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write(self, key: str, data: bytes) -> None:
        with self.writing(key) as path:
            path.write_bytes(data)

    def copy(self, source: str, target: str) -> None:
        """`target` gets the content of `source`, which must never change; a hard link where possible."""
        final = self.path(target)
        final.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(self.path(source), final)
            except FileExistsError:
                raise
            except OSError:
                with self.writing(target) as path:
                    shutil.copyfile(self.path(source), path)

    def remove(self, key: str) -> None:
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, key: str) -> None:
        """Removes what a killed writer left half-written below `key`. Only while holding its lock."""
        for path in self.path(key).rglob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """One writer per key. The kernel releases it when the process dies, kill -9 included."""
        import fcntl

        path = self.path(key) / ".lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def is_disk_full(error: BaseException) -> bool:
    """True for ENOSPC / EDQUOT, also where a library (Polars, Arrow) reports them in its own words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return not isinstance(error, StoreError) and "no space left on device" in str(error).lower()


def disk_full(path: Path) -> StoreError:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return StoreError(
        f"the disk is full: {path} could not be written ({free / 2**20:.0f} MiB free)",
        todo="free some space (`latentgloss gc` lists what nothing refers to) and run again; finished blocks are kept",
    )
