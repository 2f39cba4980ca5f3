"""Digests of files: whatever is done to a file, its digest is that of the bytes it has now."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from latentgloss.store import digests
from latentgloss.store.digests import LARGE, DigestCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def another_file(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    keep_time(path, new)
    new.replace(path)


def in_place(path: Path, data: bytes) -> None:
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def by_link(path: Path, data: bytes) -> None:
    """As download caches do: the name is a link to a blob."""
    blob = path.with_name("blob")
    blob.write_bytes(data)
    keep_time(path, blob)
    path.unlink()
    path.symlink_to(blob)


def keep_time(path: Path, new: Path) -> None:
    stat = path.stat()
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def next_tick(path: Path) -> None:
    """Waits (milliseconds) until the file system's clock gives another time than the file's."""
    probe = path.with_name("probe")
    while not probe.exists() or probe.stat().st_ctime_ns <= path.stat().st_ctime_ns:
        probe.write_bytes(b"")


@pytest.mark.parametrize("replace", [another_file, in_place, by_link])
@pytest.mark.parametrize("settled", [-1, 10**18])
def test_a_file_replaced_with_the_same_size_and_time_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: Callable[[Path, bytes], None], settled: int
) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", settled)
    path, cache = tmp_path / "model.safetensors", DigestCache(tmp_path / "digests.json")
    for i in range(3):
        data = bytes([i]) * (LARGE + 1)
        if i:
            next_tick(path)
            replace(path, data)
        else:
            path.write_bytes(data)
        right = hashlib.sha256(data).hexdigest()
        assert cache.sha256(path) == right
        assert DigestCache(tmp_path / "digests.json").sha256(path) == right


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(LARGE))
    right = DigestCache(tmp_path / "digests.json").sha256(path)
    monkeypatch.setattr(digests, "file_sha256", lambda path: pytest.fail("read again"))
    assert DigestCache(tmp_path / "digests.json").sha256(path) == right


@pytest.mark.parametrize("saved", ["[]", "3", "{", '{"model.safetensors": 5}'])
def test_a_damaged_list_of_digests_is_made_anew(tmp_path: Path, saved: str) -> None:
    (tmp_path / "digests.json").write_text(saved)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(LARGE))
    assert DigestCache(tmp_path / "digests.json").sha256(path) == hashlib.sha256(bytes(LARGE)).hexdigest()


def test_an_entry_by_size_and_time_alone_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(LARGE))
    stat = path.stat()
    (tmp_path / "digests.json").write_text(f'{{"{path}": [{stat.st_size}, {stat.st_mtime_ns}, "old"]}}')
    assert DigestCache(tmp_path / "digests.json").sha256(path) == hashlib.sha256(bytes(LARGE)).hexdigest()
