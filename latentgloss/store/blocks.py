"""Blocks on disk: the tables of some of a partition's latents.

What belongs here: writing a block, reading it, and the metadata in its files. Which blocks form a version is decided in
`draft.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq

from latentgloss.store.digests import frame_sha256, json_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latentgloss.schema import Table
    from latentgloss.store.local import LocalFiles


_FOOTER = "latentgloss"
"""Key in a Parquet footer under which a block's metadata is stored."""


@dataclass(frozen=True)
class Block:
    """One block of a version: its recipe's hash, its files, and the content hash of each part."""

    recipe: str
    files: list[str]
    parts: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    """What its computation took and counted. Facts stay with the block when another version takes it over, and are not
    part of its content."""


@dataclass(frozen=True)
class Blocks:
    """The folder of a version, in which its blocks are read and written. Small enough to send to another process."""

    files: LocalFiles
    key: str

    def write(
        self,
        name: str,
        recipe: Mapping[str, Any],
        tables: tuple[Table, ...],
        frames: Mapping[str, pl.DataFrame],
        facts: Mapping[str, Any] | None = None,
    ) -> Block:
        """Writes one file per table and returns the block; `Draft.add` then makes it part of the draft.

        Each file appears only when it is complete. Raises StoreError if a frame does not conform to its table or the
        disk is full.
        """
        digest = json_sha256(recipe)
        conformed = {table.name: table.conform(frames[table.name]) for table in tables}
        parts: dict[str, str] = {}
        for table in tables:
            parts |= parts_of(table, conformed[table.name])
        known = dict(facts or {})
        footer = json.dumps({"block": digest, "parts": parts, **({"facts": known} if known else {})})
        files = [f"{table.name}/{name}.parquet" for table in tables]
        for table, file in zip(tables, files, strict=True):
            with self.files.writing(f"{self.key}/{file}") as path:
                write_parquet(table, conformed[table.name], path, footer)
        return Block(digest, files, parts, known)

    def read(self, table: Table, block: str) -> pl.DataFrame:
        """Reads a table of one block that has been written."""
        return pl.read_parquet(self.files.path(f"{self.key}/{table.name}/{block}.parquet"))


def parts_of(table: Table, frame: pl.DataFrame) -> dict[str, str]:
    """Content hash of each part of a frame, by the part's name.

    There is one part per value of the table's `part` column, named after the value and the table (`explain:contexts`),
    because several tables of a block may have the same values. A table without a `part` column is one part, named after
    the table.
    """
    if table.part is None:
        return {table.name: frame_sha256(frame)}
    groups = frame.partition_by(table.part, as_dict=True, maintain_order=True)
    return {f"{value}:{table.name}": frame_sha256(group) for (value,), group in sorted(groups.items())}


def write_parquet(table: Table, frame: pl.DataFrame, path: Path, footer: str) -> None:
    """Writes a frame as Parquet with the table's encodings and row group size, and `footer` as block metadata."""
    # With pyarrow instead of Polars, because only pyarrow can set the encoding of each column.
    data = frame.to_arrow()
    data = data.replace_schema_metadata({**(data.schema.metadata or {}), _FOOTER: footer})
    encodings = {c.name: c.encoding for c in table.columns if c.encoding}
    pq.write_table(
        data,
        path,
        compression="zstd",
        row_group_size=table.row_group,
        use_dictionary=[c.name for c in table.columns if not c.encoding],
        column_encoding=encodings or None,
    )


def footer_of(path: Path) -> dict[str, Any]:
    """The block metadata in a Parquet footer; empty if the file is missing, not regular, truncated or has none."""
    if not path.is_file():  # opening a named pipe would wait for ever
        return {}
    try:
        raw = (pq.read_metadata(path).metadata or {}).get(_FOOTER.encode())
        return dict(json.loads(raw)) if raw else {}
    except (OSError, ValueError):
        return {}
