"""Storage on a local disk: the adapter between the store and the file system.

What belongs here: writing and replacing files atomically, locking a partition, and access to a file as a local path.
The rest of the store does not depend on the kind of storage.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from typing import TYPE_CHECKING

from latentgloss.errors import StoreError
from latentgloss.store.digests import FileStamp, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_UNSAFE = re.compile(r"/\.{0,2}/|[\x00-\x1f\x7f\\]")
"""Finds in '/key/' what no key may contain."""


class LocalFiles:
    """A folder on a local POSIX file system. Keys are paths relative to it, with '/' as separator."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Local path of a key, which need not exist. Raises StoreError for a key that could leave the folder."""
        if _UNSAFE.search(f"/{key}/"):
            raise StoreError(
                f"{key[:200]!r} is not a key of the store",
                expected="names separated by '/', none of them empty, '.' or '..', without control characters",
                todo="correct the name of the partition; `latentgloss saes list` lists those that exist",
            )
        return self.root / key

    def exists(self, key: str) -> bool:
        """Whether the key is an existing file."""
        return self.path(key).is_file()

    def stamp(self, key: str) -> FileStamp | None:
        """What tells whether a file was replaced, or None if there is no such file."""
        return stamp_of(self.path(key))

    def names(self, key: str) -> list[str]:
        """Names of the entries of a folder, sorted; empty if it does not exist."""
        try:
            return sorted(path.name for path in self.path(key).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def find(self, name: str, below: str) -> list[str]:
        """Keys of the folders below `below` that contain a file called `name`, sorted."""
        return sorted(p.parent.relative_to(self.root).as_posix() for p in self.path(below).rglob(name))

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A temporary local path; its complete file becomes `key` if the `with` statement ends without an error.

        The file is flushed to disk first (fsync). After an error nothing remains of it. Raises StoreError if the disk
        is full.
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
        """A temporary local folder; its files appear in folder `key` if the `with` statement ends without an error.

        They appear one by one, each complete and flushed to disk. Raises StoreError if the disk is full.
        """
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
        """Writes or replaces a file atomically. Raises StoreError if the disk is full."""
        with self.writing(key) as path:
            path.write_bytes(data)

    def copy(self, source: str, target: str) -> None:
        """Copies a file, by a hard link where possible, unless `target` exists. `source` must never change."""
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
        """Removes a file, or a folder with its contents, if it exists."""
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, key: str) -> None:
        """Removes incomplete files that a killed writer left below `key`. The caller must hold the lock of `key`."""
        for path in self.path(key).rglob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Waits for the exclusive lock of a key and holds it.

        The kernel releases the lock when the process dies, even after `kill -9`.
        """
        import fcntl

        path = self.path(key) / ".lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def is_disk_full(error: BaseException) -> bool:
    """True for ENOSPC and EDQUOT, even if a library (Polars, Arrow) reports them as an error of its own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return not isinstance(error, StoreError) and "no space left on device" in str(error).lower()


def disk_full(path: Path) -> StoreError:
    """The error for a file that could not be written because the disk is full."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return StoreError(
        f"the disk is full: {path} could not be written ({free / 2**20:.0f} MiB free)",
        todo="free some space (`latentgloss gc` lists unreferenced versions) and run again; finished blocks are kept",
    )
