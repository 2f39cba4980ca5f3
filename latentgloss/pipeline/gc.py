"""Finds and removes versions that nothing refers to and versions that are damaged.

A pointer (`current.json`) refers to a version; a version refers to the versions that its manifest pins and to the
corpus that its `resolved.json` names. Versions that can be reached from a pointer are kept, so the lineage of every
current result stays readable. Unfinished versions (without a manifest) are kept too, because a killed run resumes from
them.

What is removed is first listed and then checked again, each under its partition's lock, because a run may make a listed
version current in between. A run in progress can also read a version after its pointer has moved on, so run `gc` when
no stage is running.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentgloss.errors import StoreError
from latentgloss.pipeline.graph import STAGES
from latentgloss.store.version import CURRENT, MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from latentgloss.store import Store


@dataclass(frozen=True)
class Removable:
    """A version that can be removed, or a damaged pointer if `fingerprint` is empty."""

    stage: str
    partition: str
    fingerprint: str
    bytes: int
    """Bytes freed when the whole list is removed; a file shared with a version that is kept frees nothing."""
    why: str
    """Why it can be removed."""
    keep: tuple[str, ...] = ()
    """Files that verify; they are kept as finished blocks from which the next run resumes."""

    @property
    def key(self) -> str:
        """stage/partition/fingerprint, the version's folder in the store."""
        return f"{self.stage}/{self.partition}/{self.fingerprint}"


def stored_partitions(store: Store, stage: str) -> list[str]:
    """Partitions of a stage that have a pointer or a complete version, readable or not; sorted."""
    return sorted({*store.partitions(stage), *(key.rpartition("/")[0] for key in _complete(store, stage))})


def reachable(store: Store, partition: str = "") -> set[str]:
    """Keys of all versions that can be reached from a pointer, directly or through other versions.

    `partition`: only pointers from which versions of this partition can be reached are followed: its own, that of its
    model, and those of the model's SAEs. Raises StoreError if a manifest on the way is damaged, because the versions it
    refers to are then unknown.
    """
    reached: set[str] = set()
    waiting = [
        version
        for stage in STAGES
        for name in (_related(store, stage, partition) if partition else store.partitions(stage))
        if (version := store.current(stage, name)) is not None
    ]
    while waiting:
        version = waiting.pop()
        if version.key in reached:
            continue
        reached.add(version.key)
        pins = list(version.manifest.inputs)
        if "resolved.json" in version.manifest.files:
            pins.append(version.json("resolved.json")["corpus"])
        for pin in pins:
            pinned = store.version(pin["stage"], pin["partition"], pin["fingerprint"])
            if pinned is not None:
                waiting.append(pinned)
    return reached


def unused(store: Store) -> list[Removable]:
    """Complete versions that cannot be reached from any pointer. Raises StoreError as `reachable` does."""
    # Listed before the pointers are followed: a version that a run completes from now on is not in the list.
    keys = [f"{stage}/{key}" for stage in STAGES for key in _complete(store, stage)]
    reached = reachable(store)
    candidates = [key for key in keys if key not in reached]
    sizes = _freed(store, candidates)
    return [Removable(*_split(key), bytes=sizes[key], why="nothing refers to it") for key in candidates]


def broken(store: Store, stage: str, partition: str) -> list[Removable]:
    """Versions of a partition that do not verify, and its pointer if that is damaged.

    Only the current version keeps files: those that verify remain as finished blocks.
    """
    pointer, current_key = _pointer(store, stage, partition)
    keys = [f"{stage}/{key}" for key in _complete(store, stage) if key.rpartition("/")[0] == partition]
    found = [pointer, *(_damaged(store, key, key == current_key) for key in keys)]
    return [item for item in found if item is not None]


def _pointer(store: Store, stage: str, partition: str) -> tuple[Removable | None, str | None]:
    """The partition's pointer if it is damaged, and the key of the version that it names if it is not."""
    try:
        current = store.current(stage, partition)
    except StoreError as e:
        return Removable(stage, partition, "", 0, e.found), None
    return None, current.key if current else None


def _damaged(store: Store, key: str, is_current: bool) -> Removable | None:
    """A version if it does not verify, else None."""
    try:
        version = store.version(*_split(key))
    except StoreError as e:
        return Removable(*_split(key), bytes=_freed(store, [key])[key], why=e.found)
    if version is None:
        return None
    checked = dict(version.verify())
    errors = [e for e in checked.values() if e is not None]
    if not errors:
        return None
    blocks = {name for block in version.manifest.blocks.values() for name in block.files}
    keep = tuple(n for n, e in checked.items() if e is None and n in blocks) if is_current else ()
    return Removable(*_split(key), bytes=_freed(store, [key], leave=keep)[key], why=errors[0].found, keep=keep)


def remove_unused(store: Store, item: Removable) -> bool:
    """Removes a version that `unused` listed, unless a pointer reaches it by now; returns whether it was removed.

    Raises StoreError as `reachable` does.
    """
    with store.files.lock(f"{item.stage}/{item.partition}"):
        if item.key in reachable(store, item.partition):
            return False
        _delete(store, item)
    return True


def remove_broken(store: Store, item: Removable) -> bool:
    """Removes a version or pointer that `broken` listed, unless it is whole by now; returns whether it was removed."""
    with store.files.lock(f"{item.stage}/{item.partition}"):
        store.forget(item.key)
        pointer, current_key = _pointer(store, item.stage, item.partition)
        found = _damaged(store, item.key, item.key == current_key) if item.fingerprint else pointer
        if found is None:
            return False
        if pointer is not None or item.key == current_key:  # it is damaged itself, or names the damaged version
            store.files.remove(f"{item.stage}/{item.partition}/{CURRENT}")
        if item.fingerprint:
            _delete(store, found)
    return True


def _delete(store: Store, item: Removable) -> None:
    """Removes a version. The manifest goes first, so an interrupted removal leaves no valid version."""
    store.files.remove(f"{item.key}/{MANIFEST}")
    store.forget(item.key)
    if not item.keep:
        store.files.remove(item.key)
        return
    kept = {store.files.path(f"{item.key}/{name}") for name in item.keep}
    for path in _files(store, item.key):
        if path not in kept:
            path.unlink()


def _related(store: Store, stage: str, partition: str) -> list[str]:
    """Partitions with a pointer whose lineage can hold versions of `partition`."""
    below = [key.removeprefix(f"{stage}/") for key in store.files.find(CURRENT, f"{stage}/{partition}")]
    return [partition.partition("/")[0], *below]


def _complete(store: Store, stage: str) -> list[str]:
    """partition/fingerprint of every complete version of a stage."""
    return [key.removeprefix(f"{stage}/") for key in store.files.find(MANIFEST, stage)]


def _split(key: str) -> tuple[str, str, str]:
    stage, _, rest = key.partition("/")
    partition, _, fingerprint = rest.rpartition("/")
    return stage, partition, fingerprint


def _files(store: Store, key: str) -> list[Path]:
    return [path for path in store.files.path(key).rglob("*") if path.is_file()]


def _freed(store: Store, keys: Iterable[str], leave: Iterable[str] = ()) -> dict[str, int]:
    """Bytes freed per key when all `keys` are removed, except the files named in `leave`.

    Versions share files as hard links; a file's size counts for the key that holds its last link.
    """
    freed: dict[str, int] = {}
    links: dict[tuple[int, int], int] = {}
    for key in keys:
        freed[key] = 0
        kept = {store.files.path(f"{key}/{name}") for name in leave}
        for path in _files(store, key):
            if path in kept:
                continue
            stat = path.stat()
            inode = (stat.st_dev, stat.st_ino)
            links[inode] = links.get(inode, 0) + 1
            if links[inode] == stat.st_nlink:
                freed[key] += stat.st_size
    return freed
