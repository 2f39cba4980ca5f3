"""The commands `gc` and `doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny
from command_world import P, rows, run

from latentgloss.pipeline.gc import reachable
from latentgloss.store.version import MANIFEST
from latentgloss.workspace import Workspace

# gc ---------------------------------------------------------------------------------------------------------

FIRST = ["tokenized_corpus", "resolved_saes"]


def recomputed(root: Path, seed: int) -> Workspace:
    """The first stages, run with another seed of the splits."""
    (root / "latentgloss.toml").write_text(f"{tiny.SETTINGS}\n[corpus]\nseed = {seed}\n")
    workspace = Workspace.open(root / "latentgloss.toml")
    assert [o.error for o in tiny.run_all(workspace, FIRST) if o.error] == []
    return workspace


def manifests(root: Path) -> set[str]:
    return {p.parent.relative_to(root / "data").as_posix() for p in (root / "data").rglob(MANIFEST)}


def test_gc_removes_what_nothing_refers_to(bare: Path) -> None:
    recomputed(bare, 0)
    old = manifests(bare)
    recomputed(bare, 1)
    everything = manifests(bare)
    listed = rows(bare, "gc", "--dry-run")
    assert {f"{r['stage']}/{r['partition']}/{r['fingerprint']}" for r in listed["removed"]} == old
    assert listed["bytes"] > 0
    assert manifests(bare) == everything
    assert rows(bare, "gc")["removed"] == listed["removed"]
    assert manifests(bare) == everything - old
    assert not any((bare / "data" / key).exists() for key in old)
    assert rows(bare, "gc")["removed"] == []
    assert {row["state"] for row in rows(bare, "status") if row["asset"] in FIRST} == {"fresh"}


def test_gc_keeps_what_lineage_from_a_pointer_reaches(bare: Path) -> None:
    recomputed(bare, 0)
    old = manifests(bare)
    (bare / "latentgloss.toml").write_text(f"{tiny.SETTINGS}\n[corpus]\nseed = 1\n")
    workspace = Workspace.open(bare / "latentgloss.toml")
    tiny.run_all(workspace, FIRST[:1])  # the SAEs still stand on the old corpus
    assert rows(bare, "gc")["removed"] == []
    assert manifests(bare) > old
    assert reachable(Workspace.open(bare / "latentgloss.toml").store) == manifests(bare)


def test_gc_refuses_where_a_manifest_on_the_way_is_damaged(bare: Path) -> None:
    workspace = recomputed(bare, 0)
    recomputed(bare, 1)
    version = workspace.store.current("resolved_saes", P)
    assert version is not None
    (bare / "data" / version.key / MANIFEST).write_text("{}")
    before = manifests(bare)
    result = run(bare, "gc")
    assert result.exit_code == 1
    assert "manifest.json is damaged" in result.stderr
    assert manifests(bare) == before


@pytest.mark.parametrize("name", ["tokens.npy", MANIFEST, "../current.json"])
def test_gc_broken_makes_room_for_a_new_computation(bare: Path, name: str) -> None:
    workspace = recomputed(bare, 0)
    version = workspace.store.current("tokenized_corpus", tiny.MODEL)
    assert version is not None
    path = (bare / "data" / version.key / name).resolve()
    path.write_bytes(path.read_bytes()[:-10])
    assert rows(bare, "gc", "--broken", "tokenized_corpus", tiny.MODEL, "--dry-run")["removed"]
    assert path.exists()
    assert rows(bare, "gc", "--broken", "tokenized_corpus", tiny.MODEL)["removed"]
    again = Workspace.open(bare / "latentgloss.toml")
    outcomes = tiny.run_all(again, FIRST)
    assert [o.error for o in outcomes if o.error] == []
    repaired = again.store.current("tokenized_corpus", tiny.MODEL)
    assert repaired is not None
    assert repaired.manifest.data_version == version.manifest.data_version
    assert all(error is None for _, error in repaired.verify())


def test_gc_broken_leaves_what_verifies(bare: Path) -> None:
    recomputed(bare, 0)
    before = manifests(bare)
    assert rows(bare, "gc", "--broken", "tokenized_corpus", tiny.MODEL)["removed"] == []
    assert manifests(bare) == before


@pytest.mark.parametrize("args", [["tokenised", "tiny"], ["tokenized_corpus", "tinny"], ["tokenized_corpus", "../x"]])
def test_gc_broken_of_what_does_not_exist(bare: Path, args: list[str]) -> None:
    recomputed(bare, 0)
    result = run(bare, "gc", "--broken", *args)
    assert result.exit_code == 1
    assert "is unknown" in result.stderr


# doctor -----------------------------------------------------------------------------------------------------


def test_doctor(bare: Path) -> None:
    found = rows(bare, "doctor")
    assert set(found) == {"python", "platform", "packages", "devices", "settings", "registry", "store", "problems"}
    assert found["settings"] == str(bare / "latentgloss.toml")
    assert found["registry"] == {
        "root": str(bare / "registry"),
        "models": 1,
        "saes": len(tiny.SAES),
        "language_models": {},
        "problems": [],
    }
    assert found["store"]["writable"] is True
    assert found["store"]["free_bytes"] > 0
    assert found["packages"]["polars"]
    assert found["devices"][0].startswith("cpu")


def test_doctor_says_that_nothing_needs_attention(bare: Path) -> None:
    result = run(bare, "doctor")
    assert result.exit_code == 0 and "Nothing needs attention" in result.stdout and "saes check" in result.stdout


def test_doctor_without_torch(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert any("torch cannot be used" in device for device in rows(bare, "doctor")["devices"])


def test_doctor_finds_what_needs_attention(bare: Path) -> None:
    (bare / "registry" / "saes" / "typo.toml").write_text('modle = "tiny"\n')
    (bare / "data").write_text("a file where the store should be")
    result = run(bare, "doctor")
    assert result.exit_code == 1
    assert "Error: 2 things need attention:" in result.stderr and "typo.toml" in result.stderr
    assert "did you mean 'model'? What to do" in result.stderr and "'hookpoint' is missing" in result.stderr
    assert "cannot be written" in result.stderr


def test_doctor_goes_on_when_settings_are_wrong(bare: Path) -> None:
    (bare / "latentgloss.toml").write_text("stor = 'data'\n")
    result = run(bare, "doctor", "--json")
    assert result.exit_code == 1
    assert "did you mean 'store'?" in json.loads(result.stdout)["problems"][0]
    assert json.loads(result.stdout)["packages"]["numpy"]
