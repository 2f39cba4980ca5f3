"""The store: versions, blocks, content hashes, damage, interruptions, a full disk."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentgloss import schema
from latentgloss.errors import StoreError
from latentgloss.store import LocalFiles, Store
from latentgloss.store.blocks import footer_of
from latentgloss.store.digests import frame_sha256

RECIPE = {"stage": "sampled_contexts", "version": "1", "settings": {"length": 32}}


@pytest.fixture
def store(tmp_path):
    return Store(LocalFiles(tmp_path / "store"))


def negatives(latents, split="test", context=0):
    return schema.NEGATIVES.frame(
        {"latent": i, "split": split, "context": context + i, "order": 0, "stratum": "random", "document": 1}
        for i in latents
    )


def write(store, recipe, blocks, partition="m/layers.0/s"):
    """A version with one block per entry of `blocks` (name -> frame); returns it and the blocks computed."""
    with store.draft("sampled_negatives", partition, recipe) as draft:
        for name, frame in blocks.items():
            content = {"rows": frame_sha256(frame)}
            draft.block(name, content, (schema.NEGATIVES,), lambda frame=frame: {"negatives": frame})
        version = draft.commit(inputs=[], run_id="run", facts={"n": 1})
    return version, draft.computed


def test_a_version_is_found_by_its_recipe_and_reads_back(store):
    version, computed = write(store, RECIPE, {"000000": negatives(range(3))})
    assert computed == ["000000"]
    again = Store(store.files).current("sampled_negatives", "m/layers.0/s")
    assert again is not None
    assert again.manifest == version.manifest
    assert again.read(schema.NEGATIVES).equals(negatives(range(3)))
    assert store.partitions("sampled_negatives") == ["m/layers.0/s"]


def test_without_a_manifest_there_is_no_version(store):
    with store.draft("sampled_negatives", "p", RECIPE) as draft:
        draft.block("000000", {}, (schema.NEGATIVES,), lambda: {"negatives": negatives([1])})
    assert store.current("sampled_negatives", "p") is None
    assert store.versions("sampled_negatives", "p") == []


def test_a_run_resumes_at_the_first_missing_block(store):
    with store.draft("sampled_negatives", "p", RECIPE) as draft:
        draft.block(
            "000000", {"rows": frame_sha256(negatives([1]))}, (schema.NEGATIVES,), lambda: {"negatives": negatives([1])}
        )
    _, computed = write(store, RECIPE, {"000000": negatives([1]), "000001": negatives([300])}, "p")
    assert computed == ["000001"]


def test_a_new_version_takes_over_unchanged_blocks(store):
    first, _ = write(store, RECIPE, {"000000": negatives([1]), "000001": negatives([300])})
    second, computed = write(store, {**RECIPE, "version": "2"}, {"000000": negatives([1]), "000001": negatives([301])})
    assert computed == ["000001"]
    assert first.manifest.fingerprint != second.manifest.fingerprint
    assert first.read(schema.NEGATIVES).height == second.read(schema.NEGATIVES).height == 2  # both stay readable


def test_a_damaged_block_is_not_taken_over(store):
    first, _ = write(store, RECIPE, {"000000": negatives([1])})
    flip(store.files.path(f"{first.key}/negatives/000000.parquet"))
    _, computed = write(Store(store.files), {**RECIPE, "version": "2"}, {"000000": negatives([1])})
    assert computed == ["000000"]


def flip(path, at=-20):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.unlink()  # blocks may be hard links: damage one name, not both
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_files_are_refused_by_name(store, damage):
    version, _ = write(store, RECIPE, {"000000": negatives([1])})
    path = store.files.path(f"{version.key}/negatives/000000.parquet")
    if damage == "flip":
        flip(path)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    reader = Store(store.files).current("sampled_negatives", "m/layers.0/s")
    with pytest.raises(StoreError, match=r"000000\.parquet") as caught:
        reader.read(schema.NEGATIVES)
    assert "materialise it again" in str(caught.value)


def test_a_damaged_manifest_or_pointer_is_refused_by_name(store):
    version, _ = write(store, RECIPE, {"000000": negatives([1])})
    path = store.files.path(f"{version.key}/manifest.json")
    original = path.read_text()
    path.write_text(original.replace('"run_id": "run"', '"run_id": "ran"'))
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        Store(store.files).current("sampled_negatives", "m/layers.0/s")
    path.unlink()
    with pytest.raises(StoreError, match="has no manifest"):
        Store(store.files).current("sampled_negatives", "m/layers.0/s")
    store.files.path("sampled_negatives/m/layers.0/s/current.json").write_text("{")
    with pytest.raises(StoreError, match=r"current.json is damaged"):
        Store(store.files).current("sampled_negatives", "m/layers.0/s")


def test_a_pipe_in_the_place_of_a_block_is_not_waited_for(store):
    """The run would otherwise hang in a library that no signal reaches."""
    version, _ = write(store, RECIPE, {"000000": negatives(range(3))})
    folder = store.files.path(version.key)
    (path,) = folder.rglob("*.parquet")
    path.unlink()
    os.mkfifo(path)
    found = Store(store.files).current("sampled_negatives", "m/layers.0/s")
    assert found is not None and found.incomplete()
    with pytest.raises(StoreError, match="is missing"):
        found.read(schema.NEGATIVES)
    assert footer_of(path) == {}
    again, computed = write(Store(store.files), RECIPE, {"000000": negatives(range(3))})
    assert computed == ["000000"]
    assert again.read(schema.NEGATIVES).equals(negatives(range(3)))


@pytest.mark.parametrize("content", ["", "7", "[]", "{}", '"x"', "null", "[" * 200_000, '{"a":' * 100_000])
@pytest.mark.parametrize("file", ["manifest.json", "current.json", "failed.json"])
def test_json_of_the_store_that_is_something_else_is_refused_by_name(store, file, content):
    version, _ = write(store, RECIPE, {"000000": negatives(range(3))})
    folder = store.files.path(version.key)
    path = (folder if file == "manifest.json" else folder.parent) / file
    path.write_text(content)
    opened = Store(store.files)
    with pytest.raises(StoreError, match=f"{file} is damaged"):
        (opened.failure if file == "failed.json" else opened.current)("sampled_negatives", "m/layers.0/s")


def test_content_is_hashed_per_split(store):
    both = pl.concat([negatives([1], "explain"), negatives([1], "test")])
    more = pl.concat([negatives([1], "explain"), negatives([1, 2], "test")])
    first, _ = write(store, RECIPE, {"000000": both})
    second, _ = write(store, {**RECIPE, "more": 1}, {"000000": more})
    assert first.content(("explain",)) == second.content(("explain",))
    assert first.content(("test",)) != second.content(("test",))
    assert first.content(("explain",), "000000") == second.content(("explain",), "000000")
    assert first.manifest.data_version != second.manifest.data_version


def test_identical_content_has_one_data_version_whatever_the_recipe(store):
    first, _ = write(store, RECIPE, {"000000": negatives([1])})
    second, _ = write(store, {**RECIPE, "other": True}, {"000000": negatives([1])})
    assert first.manifest.fingerprint != second.manifest.fingerprint
    assert first.manifest.data_version == second.manifest.data_version


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(store, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("latentgloss.store.blocks.pq.write_table", full)
    with store.draft("sampled_negatives", "p", RECIPE) as draft, pytest.raises(StoreError, match="disk is full"):
        draft.block("000000", {}, (schema.NEGATIVES,), lambda: {"negatives": negatives([1])})
    assert not [p for p in store.files.root.rglob("*") if p.is_file() and p.name != ".lock"]


def test_a_failure_is_kept_until_a_success(store):
    store.fail("sampled_negatives", "m/layers.0/s", "f", StoreError("it broke"))
    assert store.failure("sampled_negatives", "m/layers.0/s")["message"] == "it broke."
    write(store, RECIPE, {"000000": negatives([1])})
    assert store.failure("sampled_negatives", "m/layers.0/s") is None


def test_files_of_a_folder_appear_together_or_not_at_all(store):
    with store.draft("tokenized_corpus", "m", RECIPE) as draft:
        with pytest.raises(RuntimeError):
            write_half(draft)
        with draft.folder() as folder:
            np.save(folder / "tokens.npy", np.arange(4))
        version = draft.commit(inputs=[], run_id="", facts={})
    assert sorted(p.name for p in store.files.path(version.key).iterdir()) == ["manifest.json", "tokens.npy"]
    assert set(version.manifest.parts) == {"tokens"}


def write_half(draft):
    with draft.folder() as folder:
        (folder / "half.npy").write_bytes(b"1")
        raise RuntimeError


def test_a_table_is_written_as_declared_or_not_at_all():
    with pytest.raises(StoreError, match="columns"):
        schema.NEGATIVES.conform(negatives([1]).drop("order"))
    with pytest.raises(StoreError, match="empty values in 'stratum'"):
        schema.NEGATIVES.conform(negatives([1]).with_columns(stratum=pl.lit(None, dtype=pl.String)))


values = st.one_of(st.none(), st.integers(0, 9))
frames = st.lists(st.tuples(values, st.lists(st.integers(0, 3), max_size=3), st.one_of(st.none(), st.text(max_size=3))))


def frame_of(rows):
    columns = {"a": pl.UInt32, "b": pl.List(pl.UInt8), "c": pl.String}
    return pl.DataFrame(rows, schema=columns, orient="row")


@given(frames, frames)
def test_the_content_hash_tells_frames_apart_and_ignores_chunks(left, right):
    one, two = frame_of(left), frame_of(right)
    assert (frame_sha256(one) == frame_sha256(two)) == one.equals(two)
    split = pl.concat([one[: len(left) // 2], one[len(left) // 2 :]], rechunk=False)
    assert frame_sha256(split) == frame_sha256(one)


def test_a_manifest_says_what_was_written(store):
    version, _ = write(store, RECIPE, {"000000": negatives(range(5))})
    data = json.loads(store.files.path(f"{version.key}/manifest.json").read_text())
    assert data["files"]["negatives/000000.parquet"]["rows"] == 5
    assert data["recipe"] == RECIPE
    assert data["packages"]["polars"] == pl.__version__


@pytest.mark.parametrize("damage", ["remove", "truncate", "empty", "folder"])
def test_a_version_with_missing_files_is_incomplete_and_is_made_again(store, damage):
    frames = {"000000": negatives([1]), "000001": negatives([300])}
    version, _ = write(store, RECIPE, frames)
    fingerprint = version.manifest.fingerprint
    assert version.incomplete() == ""
    assert store.adopt("sampled_negatives", "m/layers.0/s", fingerprint) is not None
    path = store.files.path(f"{version.key}/negatives/000001.parquet")
    data = path.read_bytes()
    path.unlink()
    if damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.touch()
    elif damage == "folder":
        path.mkdir()
    assert "000001.parquet" in version.incomplete()
    assert store.adopt("sampled_negatives", "m/layers.0/s", fingerprint) is None
    if damage == "folder":
        path.rmdir()
    again, computed = write(store, RECIPE, frames)
    assert computed == ["000001"] and again.incomplete() == ""
    assert again.manifest.data_version == version.manifest.data_version
    reader = Store(store.files).current("sampled_negatives", "m/layers.0/s")
    assert reader.read(schema.NEGATIVES)["latent"].to_list() == [1, 300]
