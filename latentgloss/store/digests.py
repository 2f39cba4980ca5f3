"""Hashes of JSON, of text, of files, and of the *content* of tables (not of their bytes on disk).

Because tables are hashed by content, an input that is recomputed to identical content leaves everything downstream
fresh, even if a newer Parquet writer produces different bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


SHORT = 16
"""Number of hex digits (64 bits) of a hash that serves as a folder or block name."""


def canonical(value: Any) -> str:
    """A value as JSON with sorted keys and no white space; floats are written as Python prints them.

    Raises ValueError if it contains NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_sha256(value: Any) -> str:
    """Hash of a value's canonical JSON. Raises ValueError as `canonical` does."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def text_sha256(text: str) -> str:
    """Hash of a text's UTF-8 bytes; lone surrogates are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_regular(path: Path) -> None:
    """Raises OSError for a named pipe, a socket or a device, because reading it might never end."""
    mode = path.stat().st_mode
    if not (S_ISREG(mode) or S_ISDIR(mode)):  # opening a folder fails with a reason of its own
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes. Raises OSError if it cannot be read, or is not a regular file."""
    check_regular(path)
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class FileStamp(NamedTuple):
    """What `stat` says about a regular file. It changes when the file is replaced or written to.

    Size and time of modification alone do not tell: another file can have the same, and both can be set. The time of
    change (`ctime`) cannot be set.
    """

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int


def stamp_of(path: Path) -> FileStamp | None:
    """A file's stamp, or None if there is no such regular file. Raises OSError if its folder cannot be read."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not S_ISREG(stat.st_mode):
        return None
    return FileStamp(stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)


LARGE = 2**20
"""Minimum size in bytes of the files whose digests are saved for other processes."""


SETTLED_NS = 2_000_000_000
"""Age in nanoseconds from which a file's stamp is trusted; a younger file can change without a new time of change."""


class DigestCache:
    """Digests of files, by path and `FileStamp`; those of large files are saved in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            known = {}
        self.known: dict[str, list[Any]] = known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> str:
        """Hash of a file's bytes. The file is read only if it has changed. Raises OSError if it cannot be read."""
        before = stamp_of(path)
        entry = self.known.get(str(path))
        if before is not None and isinstance(entry, list) and entry[:-1] == list(before):
            return str(entry[-1])
        began = time.time_ns()
        digest = file_sha256(path)
        stamp = stamp_of(path)
        if stamp is not None and stamp == before and began - stamp.ctime_ns > SETTLED_NS:
            self.known[str(path)] = [*stamp, digest]
            if stamp.size >= LARGE:  # hashing a small file is cheaper than saving its digest
                self._write()
        return digest

    def remember(self, key: str, compute: Callable[[], bool]) -> bool:
        """What `compute` returned when it was first called with this key, in this process or another."""
        entry = self.known.get(key)
        if not (isinstance(entry, list) and len(entry) == 1 and isinstance(entry[0], bool)):
            self.known[key] = entry = [compute()]
            self._write()
        return bool(entry[0])

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.known))
        temporary.replace(self.path)

    def tree_sha256(self, paths: Iterable[Path], root: Path) -> str:
        """Hash of several files: of their names relative to `root` and their contents."""
        return json_sha256({str(p.relative_to(root)): self.sha256(p) for p in sorted(paths)})


def frame_sha256(frame: pl.DataFrame) -> str:
    """Content hash of a frame: column names, dtypes, values and order of rows. It does not depend on chunking."""
    digest = hashlib.sha256()
    for series in frame.iter_columns():
        digest.update(f"{series.name}:{series.dtype}:{len(series)};".encode())
        _update(digest, series)
    return digest.hexdigest()


def _update(digest: Any, series: pl.Series) -> None:
    if series.null_count():
        digest.update(b"nulls")
        digest.update(np.packbits(series.is_null().to_numpy()).tobytes())
        series = series.drop_nulls()
    if isinstance(series.dtype, pl.List):
        lists = series.to_arrow(compat_level=_PLAIN)
        digest.update(_lengths(lists.offsets.to_numpy()))
        _update(digest, pl.Series(lists.flatten()))
    elif series.dtype == pl.String:
        texts = series.to_arrow(compat_level=_PLAIN)
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
        digest.update(_lengths(ends))
        digest.update(memoryview(data)[ends[0] : ends[-1]] if data is not None and len(ends) else b"")
    elif series.dtype == pl.Boolean:
        digest.update(np.packbits(series.to_numpy()).tobytes())
    else:
        digest.update(np.ascontiguousarray(series.to_numpy()).tobytes())


_PLAIN = pl.CompatLevel.oldest()
"""Arrow's layout of lists and texts as offsets into one array, which is read here without a copy per item."""


def _lengths(offsets: np.ndarray) -> bytes:
    """Lengths of lists, or of texts in bytes, as 32-bit numbers."""
    return np.diff(offsets).astype(np.uint32).tobytes()
