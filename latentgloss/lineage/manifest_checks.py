"""What `lineage --verify` recomputes of a stored version: manifest, pins, files and content hashes.

What belongs here: comparisons of stored hashes with the bytes and rows they stand for, without relying on any digest
that was remembered earlier. Reads store files; writes nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.errors import StoreError
from latentgloss.lineage.checks import Check, equal
from latentgloss.pipeline.graph import STAGES
from latentgloss.store.blocks import parts_of
from latentgloss.store.digests import file_sha256, frame_sha256, json_sha256
from latentgloss.store.version import MANIFEST, fingerprint

if TYPE_CHECKING:
    from latentgloss.schema import Table
    from latentgloss.store import Manifest, Store, Version


def manifest_checksum(manifest: Manifest) -> str:
    """The manifest's checksum, computed as it was when the manifest was written."""
    return json_sha256(asdict(manifest))


def manifest_checks(store: Store, version: Version) -> list[Check]:
    """Compares a manifest with itself and with its pins: checksum, fingerprint, parts, data version, inputs."""
    m = version.manifest
    data = json.loads(store.files.path(f"{version.key}/{MANIFEST}").read_bytes())
    stored = data.pop("manifest_sha256")
    checks = [
        equal("manifest's checksum", json_sha256(data), stored),
        equal("hash of the recipe", fingerprint(m.recipe), m.fingerprint),
    ]
    computed = {
        part: json_sha256({name: block.parts[part] for name, block in sorted(m.blocks.items()) if part in block.parts})
        for part in sorted({part for block in m.blocks.values() for part in block.parts})
    }
    checks += [
        equal("parts from the blocks", computed, {part: m.parts.get(part) for part in computed}),
        equal("data version from the parts", json_sha256(m.parts), m.data_version),
    ]
    return checks + [_pin_check(store, pin) for pin in m.inputs] + _recipe_inputs(store, m)


def _pin_check(store: Store, pin: dict[str, str]) -> Check:
    """Compares the data version of a pinned version with the one in the pin."""
    what = f"pin of {pin['stage']} {pin['partition']}"
    try:
        pinned = store.version(pin["stage"], pin["partition"], pin["fingerprint"])
    except StoreError as e:
        return Check(what, False, e.found, pin["data_version"])
    return equal(what, pinned.manifest.data_version if pinned else "nothing", pin["data_version"])


def _recipe_inputs(store: Store, m: Manifest) -> list[Check]:
    """Compares the input contents in the recipe with those of the pinned versions."""
    stage = STAGES.get(m.stage)
    if stage is None or stage.version != m.recipe["version"]:
        installed = stage.version if stage else "unknown"
        why = f"made by version {m.recipe['version']} of the stage; the installed version is {installed}"
        return [Check("recipe's inputs", None, why)]
    checks = []
    settings = m.recipe["settings"]
    for upstream in stage.inputs:
        if not upstream.used(settings) or (upstream.optional and upstream.stage not in m.recipe["inputs"]):
            continue
        found: dict[str, str] = {}
        for pin in m.inputs:
            try:
                pinned = store.version(pin["stage"], pin["partition"], pin["fingerprint"])
            except StoreError:
                return []  # the check of that pin reports it
            if pinned is not None and pin["stage"] == upstream.stage:
                found[pin["partition"]] = pinned.content(upstream.parts_used(settings))
        stored = m.recipe["inputs"].get(upstream.stage)
        content = next(iter(found.values())) if len(found) == 1 and isinstance(stored, str) else found
        checks.append(equal(f"recipe's input {upstream.stage}", content, stored))
    return checks


def file_check(version: Version, name: str) -> Check:
    """Compares the SHA-256 of a version's file, read again, with the manifest's."""
    expected = version.manifest.files.get(name)
    path = version.files.path(f"{version.key}/{name}")
    what = f"file {version.key}/{name}"
    if expected is None:
        return Check(what, False, "the manifest has no such file")
    try:
        return equal(what, file_sha256(path), expected["sha256"])
    except OSError as e:
        return Check(what, False, e.strerror or str(e), expected["sha256"])


def content_check(version: Version, table: Table, block: str, frame: pl.DataFrame) -> Check:
    """Compares the content hashes of one table of a block with the manifest's."""
    parts = version.manifest.blocks[block].parts
    stored = {k: v for k, v in parts.items() if k == table.name or k.endswith(f":{table.name}")}
    return equal(f"content of {table.name}/{block}", parts_of(table, frame), stored)


def part_check(version: Version, name: str) -> Check:
    """Compares the content hash of a file that is a part by itself (corpus) with the manifest's."""
    path = version.files.path(f"{version.key}/{name}")
    found = frame_sha256(pl.read_parquet(path)) if path.suffix == ".parquet" else file_sha256(path)
    return equal(f"content of {name}", found, version.manifest.parts.get(path.stem))


def resolved_checks(version: Version, resolved: dict[str, Any]) -> list[Check]:
    """Compares `resolved.json` with the recipe and the parts of its manifest, and its corpus with the pin."""
    m = version.manifest
    external = {key: resolved.get(key) for key in m.recipe["external"]}
    cache = {key: value for key, value in external.items() if key != "latents"}
    corpus = next((pin for pin in m.inputs if pin["stage"] == "tokenized_corpus"), None)
    return [
        equal("dependencies in resolved.json, as in the recipe", external, m.recipe["external"]),
        equal("corpus in resolved.json, as pinned", resolved["corpus"], corpus),
        equal(
            "part `cache`",
            json_sha256({**cache, "corpus": resolved["corpus"]["data_version"]}),
            m.parts.get("cache"),
        ),
        equal("part `latents`", json_sha256(external["latents"]), m.parts.get("latents")),
    ]
