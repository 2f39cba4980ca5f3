"""The nodes of a lineage (hops), and reading the store so that damage becomes a failed check instead of an exception.

What belongs here: `Node`, `Reader`, and helpers for the rows of a node. `trace.py`, `samples.py` and `sources.py` walk
from node to node; the `*_checks.py` modules recompute what a node holds. Reads the store; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.errors import StoreError
from latentgloss.lineage import manifest_checks
from latentgloss.lineage.checks import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latentgloss.schema import Table
    from latentgloss.store import Store, Version


@dataclass
class Node:
    """One hop of a lineage."""

    kind: str
    """What it is, such as `score`, `version` or `document`."""
    id: str
    sha256: str = ""
    """Hash of the rows, of a version's manifest, or of a source's files."""
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: list[Node] = field(default_factory=list)
    """The hops it comes from."""
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """Checks that found a difference."""
        return [check for check in self.checks if check.ok is False]

    def walk(self) -> Iterator[Node]:
        """This hop and all hops below it, depth first."""
        yield self
        for node in self.inputs:
            yield from node.walk()

    def broken(self) -> list[Node]:
        """Hops with a failed check, in the order of `walk`."""
        return [node for node in self.walk() if node.failed]

    def reference(self) -> Node:
        """The same hop without its inputs, for places where it occurs again."""
        return Node(self.kind, self.id, self.sha256, {"again": True})

    def as_json(self) -> dict[str, Any]:
        """The tree with stable keys: kind, id, sha256, facts, inputs, and checks if anything was recomputed."""
        data: dict[str, Any] = {"kind": self.kind, "id": self.id, "sha256": self.sha256, "facts": self.facts}
        if self.checks:
            data["checks"] = [vars(check) for check in self.checks]
        return {**data, "inputs": [node.as_json() for node in self.inputs]}


class Reader:
    """Opens versions and reads rows for one walk, each only once. `verify`: also checks what it reads."""

    def __init__(self, store: Store, verify: bool) -> None:
        self.store, self.verify = store, verify
        self._known: dict[str, Node] = {}
        self._tables: dict[tuple[str, str, str], tuple[pl.DataFrame | None, list[Check]]] = {}

    def version(self, version: Version) -> Node:
        """The node of a version: its recipe, its run, and the versions it pins."""
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
            found = manifest_checks.manifest_checks(self.store, version) if self.verify else []
            return Node("version", version.key, manifest_checks.manifest_checksum(m), facts, pins, found)

        return self.once(version.key, make)

    def pinned(self, version: Version | None, stage: str, into: Node) -> Version | None:
        """The version of a stage that `version` pins; its node becomes an input of `into`.

        None if `version` is None; None and a failed check if nothing is pinned or the pinned version is damaged.
        """
        if version is None:
            return None
        pin = next((p for p in version.manifest.inputs if p["stage"] == stage), None)
        if pin is None:
            into.checks.append(Check(f"pin of {stage}", False, f"none in {version.key}"))
            return None
        return self.open(pin, into)

    def open(self, pin: dict[str, str], into: Node) -> Version | None:
        """The version that a pin names; its node becomes an input of `into`.

        Raises StoreError if it is missing or damaged; with `verify` returns None and adds a failed check instead.
        """
        key = f"{pin['stage']}/{pin['partition']}/{pin['fingerprint']}"
        try:
            found = self.store.version(pin["stage"], pin["partition"], pin["fingerprint"])
            if found is None:
                raise StoreError(
                    f"{key}, which {into.kind} {into.id} comes from, is no longer in the store",
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
        """One block of a table; None if there is no such block or it cannot be read. Adds the checks to `into`.

        Raises StoreError if it is damaged, unless `verify`.
        """
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
        file = manifest_checks.file_check(version, name)
        if not file.ok:
            return None, [file]
        frame = pl.read_parquet(self.store.files.path(f"{version.key}/{name}"))
        return frame, [file, manifest_checks.content_check(version, table, block, frame)]

    def once(self, key: str, make: Callable[[], Node]) -> Node:
        """The node that `make` returns on the first call with this key, a reference to it on later calls."""
        if key in self._known:
            return self._known[key].reference()
        self._known[key] = node = make()
        return node


def of_latent(frame: pl.DataFrame | None, latent: int) -> pl.DataFrame | None:
    """The rows of one latent; None if there is no frame."""
    return None if frame is None else frame.filter(pl.col("latent") == latent)


def counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    """Number of rows by value of a column, sorted by value."""
    return dict(frame[column].value_counts().sort(column).iter_rows())
