"""One SQLite file per store for what must survive the moment it happens: replies, and what they cost.

What belongs here: opening the file, one connection per process, transactions, and turning what SQLite raises into
errors that name the file. Tables belong to `reply_cache.py` and `ledger.py`. Why SQLite, and what is promised:
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
"""Below the store's root."""

VERSION = 1
"""Of the tables. A file of another version is refused, never altered."""

BUSY_S = 60.0
"""How long a writer waits for another process's transaction; each lasts well under a millisecond."""

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
    """The file, for all threads of this process. Opened on first use; reopened after a fork."""

    def __init__(self, store_root: Path) -> None:
        self.path = store_root / FOLDER / FILE
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and visible to every process once left. Raises StoreError."""
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
        """What a query finds, other processes' rows included. Creates nothing. Raises StoreError."""
        if self._connection is None and not self.path.is_file():
            return []
        with self._lock, self._explained():
            return self._open().execute(query, values).fetchall()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._process != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Tables are made, and the journal is chosen, by one process at a time.
            with LocalFiles(self.path.parent.parent).lock(FOLDER):
                self._connection = self._connected()
            self._process = os.getpid()
        return self._connection

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # A write-ahead log is shared memory between processes of one machine: no such thing on a network.
            network = file_system(self.path.parent) in _NETWORK
            connection.execute(f"PRAGMA journal_mode = {'DELETE' if network else 'WAL'}")
            connection.execute(f"PRAGMA synchronous = {'FULL' if network else 'NORMAL'}")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise StoreError(
                    f"{self.path} is of version {version}",
                    expected=f"version {VERSION}",
                    todo="use the release of latentgloss that wrote it, or move the file away and pay for replies anew",
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
                todo="see docs/language_models.md on damaged files; no reply that can be read is lost by copying "
                "with `sqlite3 FILE .recover`",
            ) from e


def file_system(folder: Path) -> str:
    """Type of the file system a folder is on (`ext4`, `nfs4`), or empty where the system does not say."""
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
