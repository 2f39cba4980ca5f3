"""Checksums of the vectors in LanceDB tables: each row has one, and it is compared whenever the vector is read.

What belongs here: computing and comparing checksums, and checking a whole table. LanceDB notices files that are
truncated, but not a bit that changed in a vector; such a bit would change scores without a sign.

Column `check` is the CRC-32 of a row's key and vector. Rows that older versions wrote have none. Of these only the norm
is compared, because every embedder gives vectors of unit norm. This finds most changed bits, but not a changed sign.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from latentgloss.embeddings.lance import MEND
from latentgloss.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float32

    from latentgloss.embeddings.lance import LanceTables
    from latentgloss.store import Version


VECTORS, INDEX = "vectors.json", "index.json"
"""Files in which versions of the stages of `embeddings` record their tables."""
CHECK = "check"
"""Name of the column."""
FIELD = pa.field(CHECK, pa.uint32())
NORM = 1e-4
"""Largest accepted distance of a vector's norm from 1, for rows without a checksum. Norms are exact to about 1e-6."""


def checksums(keys: Sequence[int] | Sequence[str], vectors: Float32[np.ndarray, "rows dimension"]) -> list[int]:
    """The checksum of each row. `keys`: numbers below 2**64, or texts."""
    data = np.ascontiguousarray(vectors, dtype="<f4")
    return [zlib.crc32(row, zlib.crc32(_bytes(keys[i]))) for i, row in enumerate(data)]


def _bytes(key: int | str) -> bytes:
    return key.encode("utf-8", "surrogatepass") if isinstance(key, str) else int(key).to_bytes(8, "little")


def with_column(table: Any) -> None:
    """Adds the column to a table that an older version made; its rows keep no checksum. Hold the table's lock."""
    if CHECK not in table.schema.names:
        table.add_columns(FIELD)


def damaged_rows(rows: pa.Table) -> list[int]:
    """Numbers of the rows whose vector is not the one that was written. Columns: key, vector and, if any, check."""
    keys, vectors = rows["key"].to_pylist(), matrix(rows["vector"])
    stored = rows[CHECK].to_pylist() if CHECK in rows.schema.names else [None] * len(keys)
    wrong = [i for i, found in enumerate(checksums(keys, vectors)) if stored[i] not in (None, found)]
    bare = [i for i, check in enumerate(stored) if check is None]
    with np.errstate(over="ignore", invalid="ignore"):
        far = ~(np.abs(np.linalg.norm(vectors[bare].astype(np.float64), axis=1) - 1) <= NORM)
    return sorted([*wrong, *np.array(bare, dtype=np.int64)[far].tolist()])


def refuse(path: Path, rows: Sequence[str]) -> StoreError:
    """The error for rows, named in words, whose vectors are not those that were written."""
    named = ", ".join(rows[:3]) + (", …" if len(rows) > 3 else "")
    return StoreError(
        f"{path}: {len(rows)} vectors are not those that were written: {named}",
        expected="vectors with the checksum that was stored beside them",
        todo=MEND,
    )


def table_damage(tables: LanceTables, name: str) -> StoreError | None:
    """Why a table cannot be used, from reading all of it; None if every vector is the one that was written.

    A table is read again only if a file of it changed since.
    """
    stamps = tables.stamps(name)
    found = tables.damaged.get(name)
    if found is not None and found[0] == stamps:
        return found[1]
    if tables.verified(name) == stamps:
        return None
    error = tables.damage(name, _check_batch)
    if error is None:
        tables.verify(name, stamps)
    else:
        tables.damaged[name] = stamps, error
    return error


def check_tables(tables: LanceTables, version: Version) -> None:
    """Raises StoreError if a table that a version of these stages records is damaged; a table that is gone is not.

    `version` may be of any stage. A table is read only if its files changed since it was last found sound.
    """
    files = version.manifest.files
    names = [r["table"] for r in version.json(VECTORS).values()] if VECTORS in files else []
    names += [version.json(INDEX)["table"]] if INDEX in files else []
    for name in names:
        if tables.exists(name) and (error := table_damage(tables, name)) is not None:
            raise error


def _check_batch(path: Path, batch: pa.Table) -> None:
    """Raises StoreError if vectors of the batch are damaged."""
    if "vector" in batch.schema.names:
        wrong = damaged_rows(batch)
        if wrong:
            keys = batch["key"].to_pylist()
            raise refuse(path, [f"row {keys[i]}" for i in wrong])


def matrix(column: pa.ChunkedArray) -> Float32[np.ndarray, "rows dimension"]:
    """A column of vectors as an array."""
    combined = column.combine_chunks()
    found: Float32[np.ndarray, "rows dimension"] = (
        combined.flatten()
        .to_numpy(zero_copy_only=False)
        .reshape(len(column), column.type.list_size)
        .astype(np.float32, copy=False)
    )
    return found
