"""A version in the making: the blocks and files written so far, and the commit that turns them into a version.

What belongs here: reusing blocks that exist, adding new ones, and writing the manifest. How a block lies on disk is in
`blocks.py`; how finished versions are found is in `store.py`.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from functools import cache, cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl
import pyarrow.parquet as pq

from latentgloss.errors import StoreError
from latentgloss.store.blocks import Block, Blocks, footer_of, parts_of
from latentgloss.store.digests import file_sha256, frame_sha256, json_sha256
from latentgloss.store.version import MANIFEST, Manifest, Version, fingerprint, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from latentgloss.schema import Table
    from latentgloss.store.local import LocalFiles


PACKAGES = ("latentgloss", "numpy", "polars", "pyarrow", "scipy", "torch", "transformers", "lancedb")
"""Packages whose versions a manifest records."""


class Versions(Protocol):
    """What a draft needs of the store (`Store` in `store.py`)."""

    files: LocalFiles

    def version(self, stage: str, partition: str, fingerprint: str) -> Version | None:
        """A complete version by its fingerprint, or None."""

    def versions(self, stage: str, partition: str) -> list[Version]:
        """All complete versions of a partition, newest first."""
        ...

    def point(self, version: Version) -> None:
        """Makes a version the current one of its partition."""


class Draft:
    """Blocks and files of a version that has no manifest yet."""

    def __init__(self, store: Versions, stage: str, partition: str, recipe: dict[str, Any]) -> None:
        self.store, self.stage, self.partition, self.recipe = store, stage, partition, recipe
        self.fingerprint = fingerprint(recipe)
        self.blocks: dict[str, Block] = {}
        self.extra_files: list[str] = []
        self.extra_parts: dict[str, str] = {}
        self.computed: list[str] = []
        self.reused: list[str] = []

    @property
    def key(self) -> str:
        """The version's folder in the store."""
        return f"{self.stage}/{self.partition}/{self.fingerprint}"

    @property
    def own(self) -> Blocks:
        """Reads and writes blocks in the version's folder; also usable from another process."""
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
        """Reuses block `name` or computes and writes it; returns True if it was computed.

        `compute` returns one frame per table of `tables`, by table name.
        """
        if self.reuse(name, recipe, tables):
            return False
        self.put(name, recipe, tables, compute())
        return True

    def reuse(self, name: str, recipe: Mapping[str, Any], tables: tuple[Table, ...]) -> bool:
        """Adds an existing block with this recipe to the draft; returns False if there is none.

        The block is found in this version's folder, where a killed run left it, or is taken over from another version
        of the partition.
        """
        digest = json_sha256(recipe)
        found = self._resume(name, digest, tables) or self._take_over(name, digest, tables)
        if found is None:
            return False
        self.blocks[name] = found
        self.reused.append(name)
        return True

    def drop(self, name: str) -> None:
        """Removes a reused block from the draft, because `put` is going to write its files again."""
        del self.blocks[name]
        self.reused.remove(name)

    def put(
        self, name: str, recipe: Mapping[str, Any], tables: tuple[Table, ...], frames: Mapping[str, pl.DataFrame]
    ) -> None:
        """Writes a block and adds it to the draft.

        Each table's file appears only when it is complete; the block is added after all of them are written.
        """
        self.add(name, self.own.write(name, recipe, tables, frames))

    def add(self, name: str, block: Block) -> None:
        """Adds a block whose files have been written."""
        self.blocks[name] = block
        self.computed.append(name)

    def scan(self, table: Table) -> pl.LazyFrame:
        """Lazy frame over the blocks of `table` that the draft has so far."""
        paths = self.paths(table)
        return pl.scan_parquet(paths) if paths else table.empty().lazy()

    def paths(self, table: Table) -> list[Path]:
        """Files of the blocks of `table` that the draft has so far, in order."""
        names = sorted(f for b in self.blocks.values() for f in b.files if f.startswith(f"{table.name}/"))
        return [self.store.files.path(f"{self.key}/{name}") for name in names]

    def read(self, table: Table, block: str) -> pl.DataFrame:
        """Reads one block of the draft."""
        return self.own.read(table, block)

    def _resume(self, name: str, digest: str, tables: tuple[Table, ...]) -> Block | None:
        """The block as an earlier, killed run of this same version left it."""
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
        # Files from before the kill are used only if their content is unchanged since it was written.
        unchanged = parts == footer["parts"]
        return Block(digest, files, parts, footer.get("facts", {})) if unchanged else None

    def _take_over(self, name: str, digest: str, tables: tuple[Table, ...]) -> Block | None:
        """The same block from another version of this partition."""
        for sibling in self._siblings:
            block = sibling.manifest.blocks.get(name)
            if block is None or block.recipe != digest or sibling.key == self.key:
                continue
            try:
                for file in block.files:
                    sibling.path(file)  # checks the file, so that damage is not copied
                    self.store.files.remove(f"{self.key}/{file}")
                    self.store.files.copy(f"{sibling.key}/{file}", f"{self.key}/{file}")
            except StoreError:
                continue
            return block
        return None

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A temporary path whose file becomes file `name` of the version if the `with` statement ends without error."""
        with self.store.files.writing(f"{self.key}/{name}") as path:
            yield path
        self.extra_files.append(name)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A temporary folder. Its files become files of the version if the `with` statement ends without an error.

        Each file is a part of the content, named by its stem. A table is hashed by its content, any other file by its
        bytes.
        """
        with self.store.files.writing_folder(self.key) as path:
            yield path
            for file in sorted(path.iterdir()):
                self.extra_files.append(file.name)
                table = file.suffix == ".parquet"
                self.part(file.stem, frame_sha256(pl.read_parquet(file)) if table else file_sha256(file))

    def part(self, name: str, content: str) -> None:
        """Declares the content hash of a part that is not a table."""
        self.extra_parts[name] = content

    def commit(self, *, inputs: list[dict[str, str]], run_id: str, facts: Mapping[str, Any]) -> Version:
        """Writes the manifest, which makes the version exist, then makes it the current one.

        If another process made the same version while this one waited for the lock, that version is kept.
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
            created=now(),
            run_id=run_id,
            packages=_packages(),
            facts=dict(facts),
        )
        data = asdict(manifest)
        data["manifest_sha256"] = json_sha256(data)
        self.store.files.write(f"{self.key}/{MANIFEST}", json.dumps(data, indent=1).encode())
        version = Version(self.store.files, manifest, checked=names)
        self.store.point(version)
        return version

    def _describe(self, name: str) -> dict[str, Any]:
        path = self.store.files.path(f"{self.key}/{name}")
        entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        if name.endswith(".parquet"):
            entry["rows"] = pq.read_metadata(path).num_rows
        return entry


@cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
