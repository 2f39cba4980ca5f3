"""Removing versions while a run commits: what became current since it was listed stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from latentgloss import schema
from latentgloss.pipeline import gc
from latentgloss.store import LocalFiles, Store

if TYPE_CHECKING:
    from pathlib import Path

    from latentgloss.store import Version

SAE = "m/layers.0/s"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(LocalFiles(tmp_path / "data"))


def commit(store: Store, number: int, stage: str = "explanations", inputs: tuple[Version, ...] = ()) -> Version:
    """A version whose recipe holds `number`; committing the same number again finds the same version."""
    frame = schema.NEGATIVES.frame(
        [{"latent": number, "split": "test", "context": 1, "order": 0, "stratum": "random", "document": 1}]
    )
    with store.draft(stage, SAE, {"number": number}) as draft:
        draft.block("000000", {"number": number}, (schema.NEGATIVES,), lambda: {"negatives": frame})
        return draft.commit(inputs=[v.pin for v in inputs], run_id="", facts={})


def another(store: Store) -> Store:
    """The same store as another process sees it."""
    return Store(LocalFiles(store.files.root))


def test_a_version_made_current_after_the_list_stays(store: Store) -> None:
    old, new = commit(store, 1), commit(store, 2)
    listed = gc.unused(store)
    assert [item.key for item in listed] == [old.key]
    commit(another(store), 1)  # a run goes back to the old settings
    assert [gc.remove_unused(store, item) for item in listed] == [False]
    current = another(store).current("explanations", SAE)
    assert current is not None and current.key == old.key
    assert current.read(schema.NEGATIVES)["latent"].to_list() == [1]
    assert [item.key for item in gc.unused(store)] == [new.key]


def test_a_version_completed_while_pointers_are_read_is_not_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, 1)
    followed = gc.reachable

    def while_a_run_commits(store: Store, partition: str = "") -> set[str]:
        reached = followed(store, partition)
        commit(another(store), 2)
        return reached

    monkeypatch.setattr(gc, "reachable", while_a_run_commits)
    assert gc.unused(store) == []
    assert another(store).current("explanations", SAE) is not None


def test_a_version_that_a_new_one_was_made_from_stays(store: Store) -> None:
    old = commit(store, 1)
    commit(store, 2)
    listed = gc.unused(store)
    scores = commit(another(store), 3, "detection_scores", (old,))  # begun while `old` was current
    assert [gc.remove_unused(store, item) for item in listed] == [False]
    assert gc.reachable(another(store)) >= {old.key, scores.key}


@pytest.mark.parametrize("stage", ["tokenized_corpus", "explanations"])
def test_what_nothing_refers_to_goes(store: Store, stage: str) -> None:
    old, new = commit(store, 1, stage), commit(store, 2, stage)
    assert [gc.remove_unused(store, item) for item in gc.unused(store)] == [True]
    assert store.version(stage, SAE, old.manifest.fingerprint) is None
    assert not store.files.path(old.key).exists()
    assert store.current(stage, SAE) == new


def test_a_damaged_version_that_was_repaired_since_it_was_listed_stays(store: Store) -> None:
    version = commit(store, 1)
    path = store.files.path(f"{version.key}/negatives/000000.parquet")
    original = path.read_bytes()
    path.write_bytes(original[:-1])
    (listed,) = gc.broken(store, "explanations", SAE)
    path.write_bytes(original)
    assert not gc.remove_broken(store, listed)
    assert another(store).current("explanations", SAE) is not None
    path.write_bytes(original[:-1])
    assert gc.remove_broken(store, listed)
    assert another(store).current("explanations", SAE) is None


def test_a_damaged_pointer_that_was_written_again_stays(store: Store) -> None:
    commit(store, 1)
    pointer = store.files.path(f"explanations/{SAE}/current.json")
    pointer.write_text("{")
    (listed,) = gc.broken(store, "explanations", SAE)
    commit(another(store), 1)
    assert not gc.remove_broken(store, listed)
    assert store.current("explanations", SAE) is not None
    pointer.write_text("{")
    assert gc.remove_broken(store, listed) and not pointer.exists()


def test_another_process_notices_that_a_version_is_gone(store: Store) -> None:
    version, reader = commit(store, 1), another(store)
    assert reader.version("explanations", SAE, version.manifest.fingerprint) is not None
    commit(store, 2)
    for item in gc.unused(store):
        gc.remove_unused(store, item)
    assert reader.version("explanations", SAE, version.manifest.fingerprint) is None
