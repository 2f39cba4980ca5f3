"""Vectors kept in real LanceDB tables: each once, refusals, interrupted writes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository import ROOT
from vectors_world import D, Hashed, keys, of_contexts, table

from latentgloss.embeddings import vector_table
from latentgloss.embeddings.lance import LanceTables
from latentgloss.embeddings.vector_table import VectorTable, refusal
from latentgloss.embeddings.vectors import TextVectors
from latentgloss.errors import EmbedderError, StoreError


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=12), min_size=1, max_size=5), seed=st.integers(0, 9)
)
def test_what_was_added_is_got_in_any_order_and_each_key_once(tmp_path: Path, batches: Any, seed: int) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    kept, expected = table(tmp_path), {}
    draw = np.random.default_rng(seed)
    for batch in batches:
        wanted = np.array(batch, dtype=np.uint64)
        missing = kept.missing(wanted)
        assert missing.tolist() == [k for k in dict.fromkeys(batch) if k not in expected]
        new = draw.standard_normal((len(missing), D)).astype(np.float32)
        if len(missing):
            kept.add(missing, new)
        expected |= dict(zip(missing.tolist(), new, strict=True))
        got = table(tmp_path).get(wanted[::-1])
        assert len(got) == len(batch)
        for key, vector in zip(batch[::-1], got, strict=True):
            np.testing.assert_array_equal(vector, expected[key])
    assert len(kept) == len(expected)


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    kept = table(tmp_path)
    kept.add(keys(1, 2), np.eye(2, D, dtype=np.float32))
    kept.add(keys(2, 3), np.ones((2, D), np.float32))
    np.testing.assert_array_equal(kept.get(keys(2)), [[0, 1, 0, 0]])
    assert len(kept) == 3


def test_a_key_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    kept = table(tmp_path)
    with pytest.raises(KeyError):
        kept.get(keys(1))
    kept.add(keys(1), np.ones((1, D), np.float32))
    with pytest.raises(KeyError, match="1 of 2"):
        kept.get(keys(1, 7))


def test_many_writes_are_joined_and_readers_go_on(tmp_path: Path) -> None:
    writer, reader = table(tmp_path), table(tmp_path)
    for i in range(2 * vector_table.PIECES + 3):
        writer.add(keys(i), np.full((1, D), i, np.float32))
        if i % 10 == 0:
            np.testing.assert_array_equal(reader.get(keys(i, 0))[:, 0], [i, 0])
    assert len(list((tmp_path / "t.lance" / "data").iterdir())) < 3 * vector_table.PIECES
    np.testing.assert_array_equal(reader.get(np.arange(40, dtype=np.uint64))[:, 1], np.arange(40))


def test_a_table_of_another_embedder_or_dimension_is_refused_by_name(tmp_path: Path) -> None:
    table(tmp_path).add(keys(1), np.ones((1, D), np.float32))
    other = VectorTable(LanceTables(tmp_path), "t", {"embedder": "b"})
    for action in (lambda: other.missing(keys(1)), lambda: other.get(keys(1))):
        with pytest.raises(StoreError, match=r"t\.lance was made with embedder 'a'.*embedder 'b'.*index rebuild"):
            action()
    with pytest.raises(StoreError, match=r"t\.lance was made with dimension 4.*dimension 5.*index rebuild"):
        table(tmp_path).add(keys(2), np.ones((1, 5), np.float32))
    with pytest.raises(EmbedderError, match="not finite"):
        table(tmp_path).add(keys(2), np.full((1, D), np.nan, np.float32))


def test_what_is_there_is_refused_by_an_embedder_of_another_dimension(tmp_path: Path) -> None:
    tables, wide = LanceTables(tmp_path), Hashed(5)
    assert TextVectors(tables, Hashed(4), "document", "").get(["one"]).shape == (1, 4)
    wrong = r"was made with dimension 4\. Expected: dimension 5\. What to do: run `latentgloss index rebuild`"
    kept = TextVectors(tables, wide, "document", "")
    for action in (lambda: kept.get(["one"]), lambda: kept.ensure(["one"]), lambda: kept.get(["two"])):
        with pytest.raises(StoreError, match=wrong):
            action()
    assert wide.asked == []
    # A model is not loaded to compare; it is before anything is written.
    wide.loaded = False
    assert kept.ensure(["one"]) == 0
    with pytest.raises(StoreError, match=wrong):
        kept.get(["two"])


def test_tables_nobody_can_use_are_told_from_those_in_order(tmp_path: Path) -> None:
    tables, embedder = LanceTables(tmp_path), Hashed()
    kept = TextVectors(tables, embedder, "document", "")
    kept.ensure(["one"])
    name = kept.table.name
    assert refusal(tables, name, [Hashed(version="2"), embedder]) is None
    assert "was made with dimension 4" in str(refusal(tables, name, [Hashed(5)]))
    for wrong in ({"format": "0"}, {"embedder": "another's"}):
        tables.drop(name)
        tables.create(name, vector_table._schema(D), {**kept.table.facts, **wrong})
        with pytest.raises(StoreError, match="was made with"):
            kept.ensure(["one"])
        assert "do not match its name" in str(refusal(tables, name, [embedder]))


def test_a_folder_from_an_interrupted_creation_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "t.lance" / "data").mkdir(parents=True)
    (tmp_path / "t.lance" / "data" / "0101.lance").write_bytes(b"half")
    (tmp_path / "t.lance" / "_versions").mkdir()
    kept = table(tmp_path)
    assert kept.missing(keys(1)).tolist() == [1]
    kept.add(keys(1), np.ones((1, D), np.float32))
    assert len(table(tmp_path)) == 1
    assert not (tmp_path / "t.lance" / "data" / "0101.lance").exists()


def test_data_of_an_interrupted_write_is_ignored(tmp_path: Path) -> None:
    table(tmp_path).add(keys(1), np.ones((1, D), np.float32))
    (tmp_path / "t.lance" / "data" / "0101.lance").write_bytes(b"half")
    kept = table(tmp_path)
    kept.add(keys(2), np.ones((1, D), np.float32))
    assert kept.get(keys(1, 2)).shape == (2, D)


@pytest.mark.parametrize("what", ["data/*.lance", "_versions/*.manifest"])
def test_damage_is_refused_by_name(tmp_path: Path, what: str) -> None:
    table(tmp_path).add(keys(*range(50)), np.ones((50, D), np.float32))
    for path in (tmp_path / "t.lance").glob(what):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match=r"t\.lance cannot be read.*latentgloss index rebuild"):
        table(tmp_path).get(keys(1))
    assert isinstance(LanceTables(tmp_path).damage("t"), StoreError)


def test_each_distinct_window_is_embedded_once(tmp_path: Path) -> None:
    tables, embedder = LanceTables(tmp_path), Hashed()
    tokens = np.array([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4]], dtype=np.uint32)
    kept = of_contexts(tables, embedder, tokens)
    assert kept.ensure(np.array([0, 1, 2, 0])) == 2
    assert embedder.asked == ["1 2", "3 4"]
    got = kept.get(np.array([4, 3, 2, 2]))
    assert embedder.asked == ["1 2", "3 4", "5 6"]
    np.testing.assert_array_equal(got, Hashed().documents(["3 4", "5 6", "1 2", "1 2"]))
    # Another corpus of the same tokenizer: what it shares is there already.
    assert of_contexts(tables, embedder, tokens[[3, 1]] + 0).ensure(np.array([0, 1])) == 0
    assert kept.distinct(np.arange(5)) == 3


def test_a_stopped_run_loses_one_batch(tmp_path: Path) -> None:
    tables, embedder = LanceTables(tmp_path), Hashed()
    tokens = np.arange(40, dtype=np.uint32).reshape(20, 2)
    seen: list[int] = []

    def progress(done: int, total: int | None, unit: str) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        of_contexts(tables, embedder, tokens, batch=4, progress=progress).ensure(np.arange(20))
    assert seen == [4, 8, 12]
    assert of_contexts(tables, embedder, tokens, batch=4).ensure(np.arange(20)) == 8
    assert len(embedder.asked) == 20


def test_kill_9_loses_no_batch_that_was_reported(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT), str(ROOT / "tests")]!r}
import numpy as np
from pathlib import Path
from test_vectors import Hashed, LanceTables, of_contexts
tokens = np.arange(200_000, dtype=np.uint32).reshape(-1, 2)
progress = lambda done, total, unit: print(done, flush=True)
of_contexts(LanceTables(Path({str(tmp_path)!r})), Hashed(), tokens, batch=64, progress=progress).ensure(
    np.arange(len(tokens)))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reported = [int(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        reported += [int(line) for line in process.stdout if line.endswith("\n")]
    tokens = np.arange(200_000, dtype=np.uint32).reshape(-1, 2)[: reported[-1] + 64]
    again = Hashed()
    kept = of_contexts(LanceTables(tmp_path), again, tokens, batch=64)
    assert reported[-1] <= len(kept.table) < 100_000
    assert kept.ensure(np.arange(len(tokens))) <= 64
    np.testing.assert_array_equal(kept.get(np.array([3, 70])), Hashed().documents(["6 7", "140 141"]))


def test_texts_are_keyed_by_prefix_and_wording(tmp_path: Path) -> None:
    tables, embedder = LanceTables(tmp_path), Hashed(prefix="query: ")
    documents = TextVectors(tables, embedder, "document", "")
    queries = TextVectors(tables, embedder, "query", "query: ")
    a = documents.get(["one", "two", "one"])
    assert embedder.asked == ["one", "two"]
    np.testing.assert_array_equal(a[0], a[2])
    b = queries.get(["one"])
    assert embedder.asked[-1] == "query: one"
    assert not np.array_equal(a[0], b[0])
    assert documents.table.name == queries.table.name
    bare = Hashed()
    assert TextVectors(tables, bare, "document", "").ensure(["\ud800", "x"]) == 2
    assert TextVectors(tables, bare, "query", "").ensure(["x"]) == 0
