"""Has the next run ask again about rows for which a language model gave no usable reply (`latentgloss replies forget`).

What belongs here: finding such rows in the current versions, and the note that makes those versions stale. The note is
the file `ask_again.json` beside `current.json`; it names the version and the blocks to compute again. It holds for that
version alone, so it has served its purpose when the next version is current. No reply is deleted. Decision:
docs/decisions/0018-asking-again.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from latentgloss import schema
from latentgloss.errors import StoreError
from latentgloss.llm.reply_text import said
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage_run import UNUSABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from latentgloss.schema import Table
    from latentgloss.store import Store, Version
    from latentgloss.workspace.resources import Resources


NOTE = "ask_again.json"
TABLES: tuple[tuple[Table, str], ...] = ((schema.EXPLANATIONS, "model"), (schema.JUDGEMENTS, "judge"))
"""Tables with such rows, each with the column that names the language model."""


@dataclass(frozen=True)
class Unusable:
    """The rows of one version for which one language model gave no usable reply."""

    stage: str
    partition: str
    model: str
    rows: int
    """Explanations, or judgements of single contexts."""
    reason: str
    """The most frequent reason."""
    fingerprint: str
    """The version."""
    blocks: tuple[str, ...]
    """The blocks that hold the rows."""


def unusable(resources: Resources, partitions: Collection[str], models: Collection[str] = ()) -> Iterator[Unusable]:
    """What is unusable in the current versions of these SAEs, by stage, SAE and model, in the order of the stages.

    `models`: only these language models; empty: all. Raises StoreError if a version is damaged.
    """
    for stage in STAGES:
        if not resources.settings.asks(stage):
            continue
        for partition in sorted(partitions):
            version = resources.store.current(stage, partition)
            if version is not None:
                yield from _of_version(version, models)


def _of_version(version: Version, models: Collection[str]) -> Iterator[Unusable]:
    found: list[pl.DataFrame] = []
    for table, by in TABLES:
        blocks = [
            name for name, block in version.manifest.blocks.items() if f"{table.name}/{name}.parquet" in block.files
        ]
        for name in sorted(blocks):
            rows = version.read(table, name).filter(pl.col(by).is_not_null())
            if models:
                rows = rows.filter(pl.col(by).is_in(list(models)))
            bad = rows.filter(pl.col("status").is_in(UNUSABLE)).select(pl.col(by).alias("model"), "reason")
            found.append(bad.with_columns(block=pl.lit(name)))
            if table is schema.EXPLANATIONS:
                found.append(_with_leaks(rows).with_columns(block=pl.lit(name)))
    if not found or (every := pl.concat(found)).is_empty():
        return
    for (model,), rows in every.group_by("model", maintain_order=True):
        reason = rows["reason"].value_counts(sort=True)["reason"][0]
        made = version.manifest
        of_model = tuple(sorted(set(rows["block"])))
        yield Unusable(made.stage, made.partition, str(model), rows.height, reason, made.fingerprint, of_model)


def _with_leaks(rows: pl.DataFrame) -> pl.DataFrame:
    """Explanations in which an earlier release left a control token of the model."""
    written = rows.filter(pl.col("status") == "ok")
    leaks = [said(text) != text for text in written["explanation"]]
    reason = pl.lit("a control token in the explanation").alias("reason")
    return written.filter(pl.Series(leaks, dtype=pl.Boolean)).select("model", reason)


def forget(store: Store, found: Collection[Unusable]) -> None:
    """Makes the versions of these rows stale; the next run computes the blocks that hold the rows again."""
    of_version: dict[tuple[str, str, str], set[str]] = {}
    for item in found:
        of_version.setdefault((item.stage, item.partition, item.fingerprint), set()).update(item.blocks)
    for (stage, partition, fingerprint), blocks in of_version.items():
        version = store.current(stage, partition)
        if version is not None and version.manifest.fingerprint == fingerprint:
            note = {"fingerprint": fingerprint, "blocks": sorted(blocks | to_ask_again(store, version))}
            store.files.write(f"{stage}/{partition}/{NOTE}", json.dumps(note).encode())


def to_ask_again(store: Store, version: Version | None) -> frozenset[str]:
    """The blocks of a current version that the next run computes again; empty if there is no note about it.

    Raises StoreError if the note is damaged.
    """
    if version is None:
        return frozenset()
    key = f"{version.manifest.stage}/{version.manifest.partition}/{NOTE}"
    if not store.files.exists(key):
        return frozenset()
    path = store.files.path(key)
    try:
        note = json.loads(path.read_bytes())
        matches = note["fingerprint"] == version.manifest.fingerprint
        return frozenset(map(str, note["blocks"])) if matches else frozenset()
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise StoreError(f"{path} is damaged ({e})", todo="delete it and run `latentgloss replies forget` again") from e
