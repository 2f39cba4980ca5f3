"""One immutable version of a stage's partition, and its manifest."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.errors import StoreError
from latentgloss.store.blocks import Block
from latentgloss.store.digests import SHORT, file_sha256, json_sha256, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from latentgloss.schema import Table
    from latentgloss.store.local import LocalFiles


MANIFEST, CURRENT, FAILED = "manifest.json", "current.json", "failed.json"


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """The hash that names the version made by a recipe."""
    return json_sha256(recipe)[:SHORT]


def now() -> str:
    """The current time as manifests record it: UTC, ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Manifest:
    """What a version is and where it came from. It is written once and never changed."""

    stage: str
    partition: str
    fingerprint: str
    """Hash of the recipe; names the version."""
    recipe: dict[str, Any]
    """Everything that decides the content."""
    data_version: str
    """Hash of the content."""
    parts: dict[str, str]
    """Content hash of each part."""
    inputs: list[dict[str, str]]
    """The versions that were read: stage, partition, fingerprint and data_version of each."""
    files: dict[str, dict[str, Any]]
    """Per file: bytes, sha256 and, for tables, rows."""
    blocks: dict[str, Block]
    created: str
    """When it was committed (see `now`)."""
    run_id: str
    """The Dagster run that made it; empty outside Dagster."""
    packages: dict[str, str]
    """Versions of the packages that decide how it was computed and written (`draft.PACKAGES`)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts, seconds, tokens and cost, for people to read. Facts are in no recipe."""


class Version:
    """One immutable version. Every file is checked against the manifest before it is first used."""

    def __init__(self, files: LocalFiles, manifest: Manifest, checked: Iterable[str] = ()) -> None:
        """`checked`: names of files that need no check, because they have just been written."""
        self.files, self.manifest = files, manifest
        self._checked = set(checked)

    @property
    def key(self) -> str:
        """The version's folder in the store."""
        return f"{self.manifest.stage}/{self.manifest.partition}/{self.manifest.fingerprint}"

    @property
    def pin(self) -> dict[str, str]:
        """How manifests of later stages refer to this version."""
        m = self.manifest
        return {
            "stage": m.stage,
            "partition": m.partition,
            "fingerprint": m.fingerprint,
            "data_version": m.data_version,
        }

    def path(self, name: str) -> Path:
        """Local path of a file, after checking its size and sha256.

        Raises StoreError naming the file if it is not in the manifest, missing, truncated or altered.
        """
        expected = self.manifest.files.get(name)
        path = self.files.path(f"{self.key}/{name}")
        if expected is None:
            raise StoreError(f"{path} is not in the manifest of {self.key}", todo="name a file that the manifest lists")
        if name not in self._checked:
            self._check(path, expected)
            self._checked.add(name)
        return path

    def _check(self, path: Path, expected: dict[str, Any]) -> None:
        repair = (
            f"run `latentgloss gc --broken {self.manifest.stage} {self.manifest.partition}` and materialise it again"
        )
        if not path.is_file():
            raise StoreError(f"{path} is missing", expected=f"{expected['bytes']} bytes", todo=repair)
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise StoreError(f"{path} has {size} bytes", expected=f"{expected['bytes']} bytes", todo=repair)
        digest = file_sha256(path)
        if digest != expected["sha256"]:
            raise StoreError(f"{path} has sha256 {digest}", expected=expected["sha256"], todo=repair)

    def incomplete(self) -> str:
        """The first file that is missing or of another size, in words; empty if there is none. Reads no file."""
        folder = self.files.path(self.key)
        for name, expected in self.manifest.files.items():
            stamp = stamp_of(folder / name)
            if stamp is None:
                return f"file {name} is missing"
            if stamp.size != expected["bytes"]:
                return f"file {name} has {stamp.size} bytes instead of {expected['bytes']}"
        return ""

    def verify(self) -> Iterator[tuple[str, StoreError | None]]:
        """Checks every file again and yields (name, error or None) for each."""
        for name, expected in self.manifest.files.items():
            try:
                self._check(self.files.path(f"{self.key}/{name}"), expected)
                yield name, None
            except StoreError as e:
                yield name, e

    def tables(self, table: str, block: str | None = None) -> list[Path]:
        """Parquet files of a table, checked and in order; only that of `block` if it is given."""
        names = [n for n in self.manifest.files if n.startswith(f"{table}/")]
        if block is not None:
            names = [n for n in names if n == f"{table}/{block}.parquet"]
        return [self.path(name) for name in names]

    def scan(self, table: Table, block: str | None = None) -> pl.LazyFrame:
        """Lazy frame over a table, or over one block of it. Raises StoreError as `path` does."""
        paths = self.tables(table.name, block)
        return pl.scan_parquet(paths) if paths else table.empty().lazy()

    def read(self, table: Table, block: str | None = None) -> pl.DataFrame:
        """A table, or one block of it, in memory. Raises StoreError as `path` does."""
        return self.scan(table, block).collect()

    def json(self, name: str) -> Any:
        """Content of a JSON file of the version. Raises StoreError as `path` does."""
        return json.loads(self.path(name).read_bytes())

    def content(self, parts: tuple[str, ...] = (), block: str | None = None) -> str:
        """Content hash of the named parts (all parts if none is named), of one block if `block` is given."""
        if block is not None:
            entry = self.manifest.blocks.get(block)
            have = entry.parts if entry else {}
        else:
            have = self.manifest.parts
        if parts:
            have = {name: value for name, value in have.items() if name.split(":")[0] in parts}
        return json_sha256(have)
