"""Blocks: the tables of some latents, as they lie on disk.

What belongs here: writing one, reading one, and what its files say of it. Which blocks make a version is `store.py`'s.
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


@dataclass(frozen=True)
class Block:
    """One block of a version: its recipe's hash, its files, and the content hash of each part."""

    recipe: str
    files: list[str]
    parts: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    """What is true of it whichever run takes it over, and no part of its content."""


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a version lie. Small: another process can write them."""

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
        """Each table's file appears whole; the block counts once the draft has it (`Draft.add`)."""
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
        """One block that is there."""
        return pl.read_parquet(self.files.path(f"{self.key}/{table.name}/{block}.parquet"))


def parts_of(table: Table, frame: pl.DataFrame) -> dict[str, str]:
    """Content hash per value of the table's `part` column (one part, named like the table, if it has none).

    Several tables of a block may share a part name: the table's name is in the key, `explain:contexts`.
    """
    if table.part is None:
        return {table.name: frame_sha256(frame)}
    groups = frame.partition_by(table.part, as_dict=True, maintain_order=True)
    return {f"{value}:{table.name}": frame_sha256(group) for (value,), group in sorted(groups.items())}


def write_parquet(table: Table, frame: pl.DataFrame, path: Path, footer: str) -> None:
    # pyarrow rather than Polars: only it lets a column choose its encoding.
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
    """What `Draft.block` wrote into a Parquet footer; empty if the file is absent or was cut short."""
    try:
        raw = (pq.read_metadata(path).metadata or {}).get(_FOOTER.encode())
        return dict(json.loads(raw)) if raw else {}
    except (OSError, ValueError):
        return {}
