"""Hops of a lineage, and reading the store so that damage is a finding of a hop instead of an exception.

What belongs here: `Node` and `Reader`. Which hop leads to which is in `lineage.py`, what is recomputed at each in
`lineage_checks.py`. Reads the store; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.errors import StoreError
from latentgloss.lineage import checks
from latentgloss.lineage.checks import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latentgloss.schema import Table
    from latentgloss.store import Store, Version


@dataclass
class Node:
    """One hop. `sha256`: of the rows themselves for rows, of the manifest for a version, of the files for sources."""

    kind: str
    id: str
    sha256: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: list[Node] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.ok is False]

    def walk(self) -> Iterator[Node]:
        yield self
        for node in self.inputs:
            yield from node.walk()

    def broken(self) -> list[Node]:
        """Hops that do not verify, this one's first."""
        return [node for node in self.walk() if node.failed]

    def reference(self) -> Node:
        """The same hop where it is met again: without what is above it."""
        return Node(self.kind, self.id, self.sha256, {"again": True})

    def as_json(self) -> dict[str, Any]:
        """Stable keys: kind, id, sha256, facts, inputs; checks where something was recomputed."""
        data: dict[str, Any] = {"kind": self.kind, "id": self.id, "sha256": self.sha256, "facts": self.facts}
        if self.checks:
            data["checks"] = [vars(check) for check in self.checks]
        return {**data, "inputs": [node.as_json() for node in self.inputs]}


class Reader:
    """Opens versions and reads rows for one walk. What is met twice is opened, read and checked once."""

    def __init__(self, store: Store, verify: bool) -> None:
        self.store, self.verify = store, verify
        self._known: dict[str, Node] = {}
        self._tables: dict[tuple[str, str, str], tuple[pl.DataFrame | None, list[Check]]] = {}

    def version(self, version: Version) -> Node:
        """Node of a version: what made it, and the versions it pins."""
        m = version.manifest

        def make() -> Node:
            facts = {
                "stage_version": m.recipe["version"],
                "settings": m.recipe["settings"],
                "run_id": m.run_id,
                "created": m.created,
                "packages": m.packages,
                "data_version": m.data_version,
            }
            pins = [
                Node("pin", f"{p['stage']}/{p['partition']}/{p['fingerprint']}", p["data_version"]) for p in m.inputs
            ]
            found = checks.manifest_checks(self.store, version) if self.verify else []
            return Node("version", version.key, checks.manifest_checksum(m), facts, pins, found)

        return self.once(version.key, make)

    def pinned(self, version: Version | None, stage: str, into: Node) -> Version | None:
        """The version of a stage that `version` pins; its node becomes an input of `into`."""
        if version is None:
            return None
        pin = next((p for p in version.manifest.inputs if p["stage"] == stage), None)
        if pin is None:
            into.checks.append(Check(f"pin of {stage}", False, f"none in {version.key}"))
            return None
        return self.open(pin, into)

    def open(self, pin: dict[str, str], into: Node) -> Version | None:
        key = f"{pin['stage']}/{pin['partition']}/{pin['fingerprint']}"
        try:
            found = self.store.version(pin["stage"], pin["partition"], pin["fingerprint"])
            if found is None:
                raise StoreError(
                    f"{key}, which {into.kind} {into.id} comes from, is gone from the store",
                    todo="materialise it again",
                )
        except StoreError as e:
            if not self.verify:
                raise
            damage = Check("manifest", False, e.found)
            into.inputs.append(self.once(key, lambda: Node("version", key, checks=[damage])))
            return None
        into.inputs.append(self.version(found))
        return found

    def rows(self, version: Version | None, table: Table, block: str, into: Node) -> pl.DataFrame | None:
        """One block of a table; None if it cannot be trusted. The checks are added to `into`."""
        if version is None or block not in version.manifest.blocks:
            return None
        key = (version.key, table.name, block)
        if key not in self._tables:
            self._tables[key] = self._read(version, table, block)
        frame, found = self._tables[key]
        into.checks += found
        return frame

    def _read(self, version: Version, table: Table, block: str) -> tuple[pl.DataFrame | None, list[Check]]:
        if not self.verify:
            return version.read(table, block), []
        name = f"{table.name}/{block}.parquet"
        file = checks.file_check(version, name)
        if not file.ok:
            return None, [file]
        frame = pl.read_parquet(self.store.files.path(f"{version.key}/{name}"))
        return frame, [file, checks.content_check(version, table, block, frame)]

    def once(self, key: str, make: Callable[[], Node]) -> Node:
        """The node `make` makes, the first time; a reference to it after that."""
        if key in self._known:
            return self._known[key].reference()
        self._known[key] = node = make()
        return node
