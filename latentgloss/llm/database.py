"""One SQLite file per store for data that must be on disk at once: replies, and what they cost.

What belongs here: creating and opening the file, one connection per process, transactions, and turning SQLite's errors
into errors that name the file. `reply_cache.py` and `ledger.py` read and write the tables. Reads and writes
`language_models/replies.sqlite` below the store's root. Why it is SQLite, and what it guarantees, is in
docs/decisions/0010-reply-cache.md.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentgloss.errors import StoreError
from latentgloss.store.local import LocalFiles, disk_full, is_disk_full

if TYPE_CHECKING:
    from collections.abc import Iterator


FOLDER, FILE = "language_models", "replies.sqlite"
"""The file's place below the store's root."""

VERSION = 1
"""Version of the tables. A file of another version is refused and never altered."""

BUSY_S = 60.0
"""How long a writer waits for another process's transaction. A transaction takes well under a millisecond."""

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "beegfs", "ceph", "gpfs", "9p"})

_TABLES = """
CREATE TABLE reply (
    id INTEGER PRIMARY KEY,  -- rows are appended; only the index on the key is written at random
    key BLOB NOT NULL UNIQUE,
    body BLOB NOT NULL
);
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,  -- seconds since 1970
    model TEXT NOT NULL,
    stage TEXT NOT NULL,
    partition TEXT NOT NULL,
    paid INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('sent', 'answered', 'unanswered')),
    prompt_tokens INTEGER NOT NULL,
    cached_prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    usd REAL NOT NULL
);
CREATE TABLE account (one INTEGER PRIMARY KEY CHECK (one = 1), tokens INTEGER NOT NULL, usd REAL NOT NULL);
INSERT INTO account VALUES (1, 0, 0);
CREATE TRIGGER entered AFTER INSERT ON ledger WHEN new.paid BEGIN
    UPDATE account SET tokens = tokens + new.prompt_tokens + new.completion_tokens, usd = usd + new.usd;
END;
CREATE TRIGGER settled AFTER UPDATE ON ledger WHEN new.paid BEGIN
    UPDATE account SET usd = usd + new.usd - old.usd,
        tokens = tokens + new.prompt_tokens + new.completion_tokens - old.prompt_tokens - old.completion_tokens;
END;
CREATE TRIGGER withdrawn AFTER DELETE ON ledger WHEN old.paid BEGIN
    UPDATE account SET tokens = tokens - old.prompt_tokens - old.completion_tokens, usd = usd - old.usd;
END;
"""


class Database:
    """The file, for all threads of this process. It is opened on first use and reopened after a fork."""

    def __init__(self, store_root: Path) -> None:
        self.path = store_root / FOLDER / FILE
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A block whose changes are made all or not at all, and are visible to every process after it.

        Raises StoreError.
        """
        with self._lock, self._explained():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows that a query finds, including those of other processes. Creates no file. Raises StoreError."""
        if self._connection is None and not self.path.is_file():
            return []
        with self._lock, self._explained():
            return self._open().execute(query, values).fetchall()

    def close(self) -> None:
        """Closes the connection. The next use opens a new one."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._process != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Only one process at a time may create the tables and choose the journal.
            with LocalFiles(self.path.parent.parent).lock(FOLDER):
                self._connection = self._connected()
            self._process = os.getpid()
        return self._connection

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # A write-ahead log needs shared memory between its processes, which a network file system does not have.
            network = file_system(self.path.parent) in _NETWORK
            connection.execute(f"PRAGMA journal_mode = {'DELETE' if network else 'WAL'}")
            connection.execute(f"PRAGMA synchronous = {'FULL' if network else 'NORMAL'}")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise StoreError(
                    f"{self.path} has version {version}",
                    expected=f"version {VERSION}",
                    todo="use the release of latentgloss that wrote it, or move it away and pay for its replies again",
                )
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            if is_disk_full(e) or "disk is full" in str(e):
                raise disk_full(self.path) from e
            raise StoreError(
                f"{self.path}: {e}",
                expected="the store's database of replies, readable and writable",
                todo="see docs/language_models.md on damaged files; `sqlite3 FILE .recover` copies every reply that is "
                "readable",
            ) from e


def file_system(folder: Path) -> str:
    """Type of the file system that holds a folder (`ext4`, `nfs4`); empty if the system does not report it."""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    path, best, kind = folder.resolve(), Path(), ""
    for line in mounts:
        _, where, found, *_ = line.split(" ")
        place = Path(where.replace("\\040", " "))
        if path.is_relative_to(place) and len(place.parts) >= len(best.parts):
            best, kind = place, found
    return kind
