"""Changed bits in stored vectors: found wherever a vector is read, and named."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
from click.testing import CliRunner
from vectors_world import D, Hashed, keys, of_contexts, table

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.embeddings import row_checks, vector_table
from latentgloss.embeddings.lance import LanceTables
from latentgloss.embeddings.row_checks import table_damage
from latentgloss.embeddings.search_index import SearchIndex
from latentgloss.embeddings.search_writer import explanation_rows, writing
from latentgloss.embeddings.vectors import TextVectors
from latentgloss.errors import StoreError
from latentgloss.lineage.trace import trace
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

SIGN, EXPONENT, MANTISSA, LAST = 31, 23, 22, 0
"""Bits of a float32 number."""


def unit(n: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def flip(folder: Path, vector: np.ndarray, bit: int, place: int = 1) -> None:
    """Changes one bit of one number of a stored vector, in each data file that holds it."""
    row = np.ascontiguousarray(vector, dtype=np.float32).tobytes()
    found = 0
    for path in sorted(folder.rglob("*.lance")):
        if path.is_file() and (at := (data := bytearray(path.read_bytes())).find(row)) >= 0:
            data[at + 4 * place + bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            found += 1
    assert found


@pytest.mark.parametrize("bit", [SIGN, EXPONENT, MANTISSA, 12, LAST])
def test_a_changed_bit_is_refused_by_row_and_leaves_the_others(tmp_path: Path, bit: int) -> None:
    vectors = unit(60)
    table(tmp_path).add(keys(*range(60)), vectors)
    tables = LanceTables(tmp_path)
    assert table_damage(tables, "t") is None
    flip(tmp_path / "t.lance", vectors[7], bit)
    kept = table(tmp_path)
    with pytest.raises(StoreError, match=r"t\.lance: 1 vectors.*: row 7\. Expected.*latentgloss index rebuild"):
        kept.get(keys(3, 7, 9))
    np.testing.assert_array_equal(kept.get(keys(*range(7))), vectors[:7])
    for reader in (tables, LanceTables(tmp_path)):
        assert "row 7" in str(table_damage(reader, "t"))


def test_a_context_and_a_text_are_named(tmp_path: Path) -> None:
    tables, embedder = LanceTables(tmp_path), Hashed()
    tokens = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.uint32)
    contexts, texts = of_contexts(tables, embedder, tokens), TextVectors(tables, embedder, "document", "")
    second, pear = contexts.get(np.array([0, 1, 2]))[1], texts.get(["an apple", "a pear"])[1]
    flip(tables.path(contexts.table.name), second, SIGN)
    flip(tables.path(texts.table.name), pear, LAST)
    with pytest.raises(StoreError, match=r"contexts-.*: context 1\."):
        contexts.get(np.array([2, 1]))
    assert texts.get(["an apple"]).shape == (1, D)
    with pytest.raises(StoreError, match=r"texts-.*: text 'a pear'"):
        texts.get(["a pear", "an apple"])


def without_checks(tmp_path: Path, vectors: np.ndarray) -> None:
    """The table `t` as versions before checksums wrote it."""
    tables, kept = LanceTables(tmp_path), table(tmp_path)
    old = pa.schema(list(vector_table._schema(D))[:2])
    made = tables.create("t", old, kept.facts)
    rows = vector_table._rows(np.arange(len(vectors), dtype=np.uint64), vectors).drop_columns(["check"])
    made.merge_insert("key").when_not_matched_insert_all().execute(rows)


def test_a_table_from_before_checksums_is_used_and_checked_by_norm(tmp_path: Path) -> None:
    vectors, new = unit(40), unit(3, seed=1)
    without_checks(tmp_path, vectors)
    kept = table(tmp_path)
    assert len(kept.missing(keys(*range(40)))) == 0
    np.testing.assert_array_equal(kept.get(keys(5, 6)), vectors[5:7])
    assert table_damage(LanceTables(tmp_path), "t") is None
    kept.add(keys(100, 101, 102), new)  # new rows have checksums, old rows none
    np.testing.assert_array_equal(kept.get(keys(6, 101)), np.stack([vectors[6], new[1]]))
    flip(tmp_path / "t.lance", new[1], SIGN)
    flip(tmp_path / "t.lance", vectors[6], EXPONENT)
    for key in (6, 101):
        with pytest.raises(StoreError, match=f"row {key}"):
            table(tmp_path).get(keys(key))
    assert "row 6" in str(table_damage(LanceTables(tmp_path), "t"))


def test_a_sound_table_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path).add(keys(1, 2), unit(2))
    read: list[int] = []
    real = row_checks.damaged_rows
    monkeypatch.setattr(row_checks, "damaged_rows", lambda rows: read.append(len(rows)) or real(rows))
    for _ in range(3):
        assert table_damage(LanceTables(tmp_path), "t") is None
    assert read == [2]
    table(tmp_path).add(keys(3), unit(1))
    assert table_damage(LanceTables(tmp_path), "t") is None
    assert sum(read) == 2 + 3


def test_the_checksum_is_that_of_key_and_vector() -> None:
    vector = unit(1)
    assert row_checks.checksums([2**64 - 1], vector) == [zlib.crc32(b"\xff" * 8 + vector[0].tobytes())]
    assert row_checks.checksums(["é"], vector) == [zlib.crc32("é".encode() + vector[0].tobytes())]


# In a workspace ---------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return tiny.computed_workspace(tmp_path)


def again(workspace: Workspace) -> Workspace:
    return Workspace.open(workspace.settings.folder / "latentgloss.toml")


def judged(workspace: Workspace) -> Any:
    scores = workspace.store.current("embedding_scores", tiny.SPARSIFY)
    assert scores is not None
    rows = scores.read(schema.JUDGEMENTS)
    return rows.filter(latent=rows["latent"][0])


def run(workspace: Workspace, *args: str) -> Any:
    return CliRunner().invoke(cli, ["--config", str(workspace.settings.folder / "latentgloss.toml"), *args])


def test_status_lineage_and_scores_refuse_a_changed_vector_and_rebuild_mends_it(workspace: Workspace) -> None:
    rows = judged(workspace)
    latent, context = rows["latent"][0], rows["context"][0]
    assert {s.state for s in workspace.states()} == {"fresh"}
    root = trace(workspace, tiny.SPARSIFY, latent, scorer="embedding", verify=True)
    assert root.broken() == []
    checks = [check for node in root.walk() for check in node.checks if "from its vectors" in check.what]
    assert checks and all(check.ok for check in checks)
    version = workspace.store.current("tokenized_corpus", "tiny")
    assert version is not None
    vectors = workspace.context_vectors("tiny", workspace.corpus_of(version), "tiny")
    name = vectors.table.name
    flip(workspace.lance.path(name), vectors.stored(np.array([context]))[0], SIGN)

    states = {(s.asset, s.partition): s for s in again(workspace).states()}
    assert states["context_embeddings", "tiny"].state == "failed"
    assert name in states["context_embeddings", "tiny"].because
    assert states["embedding_scores", tiny.SPARSIFY].state == "fresh"
    (outcome,) = again(workspace).materialise("context_embeddings", ["tiny"], tiny.runner("context_embeddings"))
    assert outcome.status == "failed" and "index rebuild" in str(outcome.error)
    root = trace(again(workspace), tiny.SPARSIFY, latent, scorer="embedding", verify=True)
    (failed,) = [check for node in root.walk() for check in node.failed]
    assert f"context {context}" in failed.found
    with pytest.raises(StoreError, match=f"{name}.*context {context}"):
        vectors.get(np.array([context]))

    assert run(workspace, "index", "rebuild").exit_code == 0
    assert vectors.get(np.array([context])).shape[0] == 1  # made again
    states = {(s.asset, s.partition): s for s in again(workspace).states()}
    assert {s.state for s in states.values()} == {"fresh"}


def test_a_search_refuses_a_hit_whose_vector_changed(workspace: Workspace) -> None:
    found = json.loads(run(workspace, "search", tiny.words()[0][0], "--mode", "text", "--limit", "1", "--json").stdout)
    table = workspace.lance.open("search", {})
    assert table is not None
    row = table.search().where(f"explanation = '{found[0]['explanation']}'").limit(1).to_arrow()
    flip(workspace.lance.path("search"), row_checks.matrix(row["vector"])[0], EXPONENT)
    result = run(workspace, "search", tiny.words()[0][0], "--mode", "text")
    assert result.exit_code == 1 and "search.lance" in result.stderr and "index rebuild" in result.stderr
    state = next(s for s in again(workspace).states() if s.asset == "search_index")
    assert state.state == "failed" and "search.lance" in state.because
    assert run(workspace, "index", "rebuild").exit_code == 0
    assert run(workspace, "search", tiny.words()[0][0], "--mode", "text").exit_code == 0


def test_a_search_index_from_before_checksums_is_searched_and_written_to(workspace: Workspace) -> None:
    table = workspace.lance.open("search", {})
    assert table is not None
    table.drop_columns(["check"])
    assert run(workspace, "search", tiny.words()[0][0]).exit_code == 0
    assert {s.state for s in again(workspace).states()} == {"fresh"}
    index = SearchIndex(workspace.lance, workspace.lance.told("search")["embedder"])
    with writing(index, replace=False) as writer:
        assert writer.table is not None
        before = index.table().count_rows()
        inputs = {
            stage: version
            for stage in ("explanations", "activation_cache")
            if (version := workspace.store.current(stage, tiny.SPARSIFY)) is not None
        }
        rows = explanation_rows(tiny.SPARSIFY, inputs)
        vectors = workspace.text_vectors("tiny", "document").get(rows["explanation"].to_list())
        writer.put(tiny.SPARSIFY, rows, vectors, "f" * 16)
        assert index.table().count_rows() == before and "check" in index.table().schema.names
    assert run(workspace, "index", "rebuild").exit_code == 0
    opened = workspace.lance.open("search", {})
    assert opened is not None and "check" in opened.schema.names
