"""The store: immutable versions named by their recipe, so that only what is stale is computed.

    <stage>/<partition>/<fingerprint>/manifest.json       written last: no manifest, no version
    <stage>/<partition>/<fingerprint>/<table>/<block>.parquet
    <stage>/<partition>/<fingerprint>/<file>
    <stage>/<partition>/current.json                      names one version, replaced atomically
    <stage>/<partition>/failed.json                       why the last attempt failed, if it did

- A *recipe* is everything that decides the content; its hash, the *fingerprint*, names the version.
- The *data version* is a hash of the content. Recipes downstream hold it, so an input recomputed to identical
  content makes nothing stale. Content falls into *parts* (a table's name, or the values of its `part` column),
  because a consumer of the explain split does not care what is in the test split.
- A *block* is what a stage computes at a time. It has a recipe of its own, kept in the footer of its Parquet
  files: a killed run resumes at the first missing block, and a new version takes over what did not change.

What does not belong here: what any table means (`schema.py`), what a recipe contains (`workspace.py`).
"""

from __future__ import annotations

import contextlib
import datetime
import json
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq

from latentgloss.errors import StoreError
from latentgloss.store.blocks import Block, Blocks, footer_of, parts_of
from latentgloss.store.digests import file_sha256, frame_sha256, json_sha256
from latentgloss.store.version import CURRENT, FAILED, MANIFEST, Manifest, Version, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from latentgloss.schema import Table
    from latentgloss.store.local import LocalFiles


class Store:
    def __init__(self, files: LocalFiles) -> None:
        self.files = files
        self._versions: dict[str, Version] = {}

    def version(self, stage: str, partition: str, fingerprint: str) -> Version | None:
        """A version by name, or None if it was never completed. Raises StoreError if its manifest is damaged."""
        key = f"{stage}/{partition}/{fingerprint}"
        if key not in self._versions:
            if not self.files.exists(f"{key}/{MANIFEST}"):
                return None
            self._versions[key] = Version(self.files, self._manifest(key))
        return self._versions[key]

    def _manifest(self, key: str) -> Manifest:
        path = self.files.path(f"{key}/{MANIFEST}")
        try:
            data = json.loads(path.read_bytes())
            if data.pop("manifest_sha256") != json_sha256(data):
                raise ValueError("its own checksum does not match")
            data["blocks"] = {name: Block(**entry) for name, entry in data["blocks"].items()}
            return Manifest(**data)
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as e:
            raise StoreError(
                f"{path} is damaged ({e})",
                expected="a manifest as it was written",
                todo=f"delete the folder {path.parent} and materialise it again",
            ) from e

    def current(self, stage: str, partition: str) -> Version | None:
        """The version `current.json` points to, or None."""
        pointer = f"{stage}/{partition}/{CURRENT}"
        if not self.files.exists(pointer):
            return None
        path = self.files.path(pointer)
        try:
            name = json.loads(path.read_bytes())["fingerprint"]
        except (ValueError, KeyError, TypeError) as e:
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
        m = version.manifest
        self.files.write(
            f"{m.stage}/{m.partition}/{CURRENT}",
            json.dumps({"fingerprint": m.fingerprint, "data_version": m.data_version}).encode(),
        )
        self.files.remove(f"{m.stage}/{m.partition}/{FAILED}")

    def adopt(self, version: Version) -> None:
        """Makes a version that is there already the current one."""
        where = f"{version.manifest.stage}/{version.manifest.partition}"
        with self.files.lock(where):
            self.files.sweep(where)
            self.point(version)

    def failure(self, stage: str, partition: str) -> dict[str, Any] | None:
        """Why the last attempt failed, if no later one succeeded."""
        key = f"{stage}/{partition}/{FAILED}"
        if not self.files.exists(key):
            return None
        path = self.files.path(key)
        try:
            note = {str(k): v for k, v in json.loads(path.read_bytes()).items()}
        except (ValueError, AttributeError) as e:
            raise StoreError(f"{path} is damaged ({e})", todo="delete it; it only says why a run failed") from e
        return note

    def fail(self, stage: str, partition: str, fingerprint: str, error: BaseException) -> None:
        note = {"fingerprint": fingerprint, "error": type(error).__name__, "message": str(error), "at": _now()}
        with contextlib.suppress(OSError, StoreError):  # a full disk must not hide the error it caused
            self.files.write(f"{stage}/{partition}/{FAILED}", json.dumps(note).encode())

    @contextlib.contextmanager
    def draft(self, stage: str, partition: str, recipe: dict[str, Any]) -> Iterator[Draft]:
        """A version in the making. Holds the partition's lock; finished blocks stay if it is abandoned."""
        with self.files.lock(f"{stage}/{partition}"):
            self.files.sweep(f"{stage}/{partition}")
            yield Draft(self, stage, partition, recipe)


class Draft:
    """Blocks and files of a version that has no manifest yet."""

    def __init__(self, store: Store, stage: str, partition: str, recipe: dict[str, Any]) -> None:
        self.store, self.stage, self.partition, self.recipe = store, stage, partition, recipe
        self.fingerprint = fingerprint(recipe)
        self.blocks: dict[str, Block] = {}
        self.extra_files: list[str] = []
        self.extra_parts: dict[str, str] = {}
        self.computed: list[str] = []
        self.reused: list[str] = []

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.partition}/{self.fingerprint}"

    @property
    def own(self) -> Blocks:
        return Blocks(self.store.files, self.key)

    @cached_property
    def _siblings(self) -> list[Version]:
        return self.store.versions(self.stage, self.partition)

    def block(
        self,
        name: str,
        recipe: Mapping[str, Any],
        tables: tuple[Table, ...],
        compute: Callable[[], Mapping[str, pl.DataFrame]],
    ) -> bool:
        """Makes sure block `name` is there; returns True if it had to be computed.

        `compute` returns one frame per table of `tables`, by table name.
        """
        if self.reuse(name, recipe, tables):
            return False
        self.put(name, recipe, tables, compute())
        return True

    def reuse(self, name: str, recipe: Mapping[str, Any], tables: tuple[Table, ...]) -> bool:
        """True if the block exists already, here or in another version of this partition (then taken over)."""
        digest = json_sha256(recipe)
        found = self._resume(name, digest, tables) or self._take_over(name, digest, tables)
        if found is None:
            return False
        self.blocks[name] = found
        self.reused.append(name)
        return True

    def drop(self, name: str) -> None:
        """Does not count a block, whose files `put` is going to write anew."""
        del self.blocks[name]
        self.reused.remove(name)

    def put(
        self, name: str, recipe: Mapping[str, Any], tables: tuple[Table, ...], frames: Mapping[str, pl.DataFrame]
    ) -> None:
        """Writes a block: each table's file appears whole, and the block counts once all of them are there."""
        self.add(name, self.own.write(name, recipe, tables, frames))

    def add(self, name: str, block: Block) -> None:
        """Counts a block that has been written."""
        self.blocks[name] = block
        self.computed.append(name)

    def scan(self, table: Table) -> pl.LazyFrame:
        """Lazy frame over the blocks of `table` that are there so far."""
        paths = self.paths(table)
        return pl.scan_parquet(paths) if paths else table.empty().lazy()

    def paths(self, table: Table) -> list[Path]:
        """Files of the blocks of `table` that are there so far, in order."""
        names = sorted(f for b in self.blocks.values() for f in b.files if f.startswith(f"{table.name}/"))
        return [self.store.files.path(f"{self.key}/{name}") for name in names]

    def read(self, table: Table, block: str) -> pl.DataFrame:
        """One block that is there."""
        return self.own.read(table, block)

    def _resume(self, name: str, digest: str, tables: tuple[Table, ...]) -> Block | None:
        """The block as an earlier, killed run of this very version left it."""
        files = [f"{table.name}/{name}.parquet" for table in tables]
        footer: dict[str, Any] = {}
        parts: dict[str, str] = {}
        for table, file in zip(tables, files, strict=True):
            path = self.store.files.path(f"{self.key}/{file}")
            footer = footer_of(path)
            if footer.get("block") != digest:
                return None
            try:
                parts |= parts_of(table, pl.read_parquet(path))
            except (OSError, pl.exceptions.PolarsError):
                return None
        # What lay on the disk since the kill is believed only if it still is what was written.
        whole = parts == footer["parts"]
        return Block(digest, files, parts, footer.get("facts", {})) if whole else None

    def _take_over(self, name: str, digest: str, tables: tuple[Table, ...]) -> Block | None:
        """The same block from another version of this partition."""
        for sibling in self._siblings:
            block = sibling.manifest.blocks.get(name)
            if block is None or block.recipe != digest or sibling.key == self.key:
                continue
            try:
                for file in block.files:
                    sibling.path(file)  # checked: damage is not inherited
                    self.store.files.remove(f"{self.key}/{file}")
                    self.store.files.copy(f"{sibling.key}/{file}", f"{self.key}/{file}")
            except StoreError:
                continue
            return block
        return None

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A temporary path that becomes file `name` of the version on leaving without an error."""
        with self.store.files.writing(f"{self.key}/{name}") as path:
            yield path
        self.extra_files.append(name)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A temporary folder whose files become files of the version on leaving without an error.

        Each is a part of the content, named by its stem; tables are hashed by content.
        """
        with self.store.files.writing_folder(self.key) as path:
            yield path
            for file in sorted(path.iterdir()):
                self.extra_files.append(file.name)
                table = file.suffix == ".parquet"
                self.part(file.stem, frame_sha256(pl.read_parquet(file)) if table else file_sha256(file))

    def part(self, name: str, content: str) -> None:
        """Declares a content hash for something that is not a table."""
        self.extra_parts[name] = content

    def commit(self, *, inputs: list[dict[str, str]], run_id: str, facts: Mapping[str, Any]) -> Version:
        """Writes the manifest, then the pointer. From here on the version exists.

        If another process made the same version while this one waited for the lock, that one stays.
        """
        existing = self.store.version(self.stage, self.partition, self.fingerprint)
        if existing is not None:
            self.store.point(existing)
            return existing
        blocks = dict(sorted(self.blocks.items()))
        names = [*self.extra_files, *(file for block in blocks.values() for file in block.files)]
        parts: dict[str, str] = dict(self.extra_parts)
        for part in sorted({p for block in blocks.values() for p in block.parts}):
            parts[part] = json_sha256({n: b.parts[part] for n, b in blocks.items() if part in b.parts})
        manifest = Manifest(
            stage=self.stage,
            partition=self.partition,
            fingerprint=self.fingerprint,
            recipe=self.recipe,
            data_version=json_sha256(parts),
            parts=parts,
            inputs=inputs,
            files={name: self._describe(name) for name in names},
            blocks=blocks,
            created=_now(),
            run_id=run_id,
            packages=_packages(),
            facts=dict(facts),
        )
        data = asdict(manifest)
        data["manifest_sha256"] = json_sha256(data)
        self.store.files.write(f"{self.key}/{MANIFEST}", json.dumps(data, indent=1).encode())
        version = Version(self.store.files, manifest)
        version._checked.update(names)
        self.store._versions[self.key] = version
        self.store.point(version)
        return version

    def _describe(self, name: str) -> dict[str, Any]:
        path = self.store.files.path(f"{self.key}/{name}")
        entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        if name.endswith(".parquet"):
            entry["rows"] = pq.read_metadata(path).num_rows
        return entry


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _packages() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("latentgloss", "numpy", "polars", "pyarrow", "scipy", "torch", "transformers", "lancedb"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
