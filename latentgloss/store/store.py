"""The store: immutable versions named by their recipe, so that only stale results are computed.

    <stage>/<partition>/<fingerprint>/manifest.json       written last; without it there is no version
    <stage>/<partition>/<fingerprint>/<table>/<block>.parquet
    <stage>/<partition>/<fingerprint>/<file>
    <stage>/<partition>/current.json                      names one version, replaced atomically
    <stage>/<partition>/failed.json                       why the last attempt failed, if it did

- A *recipe* is everything that decides the content. Its hash, the *fingerprint*, names the version.
- The *data version* is a hash of the content. Recipes of later stages contain it, so an input that is recomputed to
  identical content makes nothing stale. The content is divided into *parts* (one per table, or one per value of the
  table's `part` column), so that a stage which reads only the explain split does not depend on the test split.
- A *block* is the unit in which a stage computes. Its own recipe is kept in the footer of its Parquet files. A killed
  run therefore resumes at the first missing block, and a new version takes over the blocks that did not change.

What does not belong here: the meaning of the tables (`latentgloss.schema`) and the content of recipes
(`latentgloss.workspace.recipes`).
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from latentgloss.errors import StoreError
from latentgloss.store.blocks import Block
from latentgloss.store.digests import json_sha256
from latentgloss.store.draft import Draft
from latentgloss.store.version import CURRENT, FAILED, MANIFEST, Manifest, Version, now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentgloss.store.digests import FileStamp
    from latentgloss.store.local import LocalFiles


class Store:
    """All versions of all partitions. A manifest is read once per instance, and again only if it was replaced."""

    def __init__(self, files: LocalFiles) -> None:
        self.files = files
        self._versions: dict[str, tuple[FileStamp, Version]] = {}

    def version(self, stage: str, partition: str, fingerprint: str) -> Version | None:
        """A version by its fingerprint, or None if it was never completed.

        Raises StoreError if its manifest is damaged.
        """
        key = f"{stage}/{partition}/{fingerprint}"
        # Another process may have removed or replaced the manifest since it was read.
        stamp = self.files.stamp(f"{key}/{MANIFEST}")
        if stamp is None:
            self.forget(key)
            return None
        known = self._versions.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        version = Version(self.files, self._manifest(key))
        self._versions[key] = stamp, version
        return version

    def forget(self, key: str) -> None:
        """Forgets a version, by its folder in the store, because its files were removed or replaced."""
        self._versions.pop(key, None)

    def _manifest(self, key: str) -> Manifest:
        path = self.files.path(f"{key}/{MANIFEST}")
        try:
            data = json.loads(path.read_bytes())
            if data.pop("manifest_sha256") != json_sha256(data):
                raise ValueError("its own checksum does not match")
            data["blocks"] = {name: Block(**entry) for name, entry in data["blocks"].items()}
            return Manifest(**data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise StoreError(
                f"{path} is damaged ({e})",
                expected="an unchanged manifest",
                todo=f"delete the folder {path.parent} and materialise the partition again",
            ) from e

    def current(self, stage: str, partition: str) -> Version | None:
        """The version that `current.json` names, or None if there is no such file.

        Raises StoreError if the file or the manifest is damaged, or if the version has no manifest.
        """
        pointer = f"{stage}/{partition}/{CURRENT}"
        if not self.files.exists(pointer):
            return None
        path = self.files.path(pointer)
        try:
            name = json.loads(path.read_bytes())["fingerprint"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise StoreError(f"{path} is damaged ({e})", todo="delete it and materialise the partition again") from e
        version = self.version(stage, partition, name)
        if version is None:
            raise StoreError(
                f"{path} points to {name!r}, which has no manifest",
                expected="a complete version",
                todo="delete current.json and materialise the partition again",
            )
        return version

    def versions(self, stage: str, partition: str) -> list[Version]:
        """All complete versions of a partition, newest first."""
        found = (self.version(stage, partition, name) for name in self.files.names(f"{stage}/{partition}"))
        return sorted((v for v in found if v), key=lambda v: v.manifest.created, reverse=True)

    def partitions(self, stage: str) -> list[str]:
        """Partitions of a stage that have a current version, sorted."""
        return [key.removeprefix(f"{stage}/") for key in self.files.find(CURRENT, stage)]

    def point(self, version: Version) -> None:
        """Makes a version the current one of its partition and forgets its last failure. The caller holds the lock."""
        m = version.manifest
        stamp = self.files.stamp(f"{version.key}/{MANIFEST}")
        if stamp is not None:
            self._versions[version.key] = stamp, version
        self.files.write(
            f"{m.stage}/{m.partition}/{CURRENT}",
            json.dumps({"fingerprint": m.fingerprint, "data_version": m.data_version}).encode(),
        )
        self.files.remove(f"{m.stage}/{m.partition}/{FAILED}")

    def adopt(self, stage: str, partition: str, fingerprint: str) -> Version | None:
        """Makes an existing version the current one, under the partition's lock, and returns it.

        Returns None if there is no such version or files of it are missing or of another size. Raises StoreError if its
        manifest is damaged.
        """
        if self.version(stage, partition, fingerprint) is None:
            return None
        with self.files.lock(f"{stage}/{partition}"):
            version = self.version(stage, partition, fingerprint)
            if version is None or version.incomplete():
                return None
            self.files.sweep(f"{stage}/{partition}")
            self.point(version)
            return version

    def failure(self, stage: str, partition: str) -> dict[str, Any] | None:
        """The record of the last attempt if it failed: fingerprint, error, message and time. None otherwise.

        Raises StoreError if the record is damaged.
        """
        key = f"{stage}/{partition}/{FAILED}"
        if not self.files.exists(key):
            return None
        path = self.files.path(key)
        try:
            note = {str(k): v for k, v in json.loads(path.read_bytes()).items()}
            note["fingerprint"], note["message"]
        except (ValueError, KeyError, AttributeError, RecursionError) as e:
            raise StoreError(f"{path} is damaged ({e})", todo="delete it; it only records why a run failed") from e
        return note

    def fail(self, stage: str, partition: str, fingerprint: str, error: BaseException) -> None:
        """Records why an attempt failed. If the record cannot be written, nothing is raised."""
        note = {"fingerprint": fingerprint, "error": type(error).__name__, "message": str(error), "at": now()}
        with contextlib.suppress(OSError, StoreError):  # a full disk must not hide the error it caused
            self.files.write(f"{stage}/{partition}/{FAILED}", json.dumps(note).encode())

    @contextlib.contextmanager
    def draft(self, stage: str, partition: str, recipe: dict[str, Any]) -> Iterator[Draft]:
        """A version in the making. Holds the partition's lock. Finished blocks stay on disk if it is not committed.

        If the version exists but files of it are missing, its manifest is removed, so that it is made again and takes
        over the blocks that are left.
        """
        with self.files.lock(f"{stage}/{partition}"):
            self.files.sweep(f"{stage}/{partition}")
            draft = Draft(self, stage, partition, recipe)
            existing = self.version(stage, partition, draft.fingerprint)
            if existing is not None and existing.incomplete():
                self.files.remove(f"{draft.key}/{MANIFEST}")
            yield draft
