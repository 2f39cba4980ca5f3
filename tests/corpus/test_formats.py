"""corpus/formats.py: every format, nested columns, rows that are skipped, and files that are passed over."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pytest
import tiny

from latentgloss import schema
from latentgloss.corpus.sources import Document, compared_as_before, iter_documents, passed_over, source_identity
from latentgloss.errors import CorpusError
from latentgloss.store.digests import DigestCache
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

ROWS = ["first text", "", "third: žluťoučký 🙂"]


def read(source: str, folder: Path, text_column: str = "text", *, skip: bool = False) -> list[Document]:
    return list(iter_documents(source, text_column, folder, skip=skip))


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def gz(data: bytes) -> bytes:
    return gzip.compress(data[:20], mtime=0) + gzip.compress(data[20:])  # two members, as `cat a.gz b.gz` makes


TABLE = lines([{"text": row} for row in ROWS])
LIST = json.dumps([{"text": row} for row in ROWS], indent=1).encode()
BOM = b"\xef\xbb\xbf"
FILES = {
    "a.ndjson": TABLE,
    "b.jsonl.gz": gz(TABLE),
    "c.ndjson.zst": zstd(TABLE),
    "d.json": BOM + b"\n " + LIST,
    "e.json.gz": gz(LIST),
    "f.JSONL.GZ": gz(BOM + TABLE),
}


def test_every_format_gives_the_same_texts_alone_and_in_a_folder(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        assert read(f"path:{name}", tmp_path) == [Document(f"{name}:{i}", text) for i, text in enumerate(ROWS, 1)]
    (tmp_path / "g.txt.gz").write_bytes(gz("Text, größer als zwanzig Zeichen".encode()))
    found = read("path:.", tmp_path)
    assert [d.name for d in found] == [f"{name}:{i}" for name in sorted(FILES) for i in (1, 2, 3)] + ["g.txt.gz"]
    assert found[-1].text == "Text, größer als zwanzig Zeichen"
    assert passed_over("path:.", tmp_path) == ""


def test_a_json_file_of_lines_is_read_if_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(TABLE)
    assert [d.text for d in read("path:rows.json", tmp_path)] == ROWS


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(TABLE)
    (tmp_path / "dataset_info.json").write_text('{"splits": {}}')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.csv").write_text("text\nx\n")
    (tmp_path / ".hidden.csv").write_text("text\nx\n")
    assert len(read("path:.", tmp_path)) == 3
    assert passed_over("path:.", tmp_path) == "2 files of other kinds (dataset_info.json, more/b.csv)"
    assert passed_over("path:a.jsonl", tmp_path) == passed_over("python-docs") == ""
    with pytest.raises(CorpusError, match=r"no file to read, only 1 files of other kinds \(b\.csv\)"):
        read("path:more", tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", gzip.compress(TABLE, mtime=0)[:-9]),
        ("a.jsonl.gz", gzip.compress(TABLE, mtime=0)[:12] + b"\xff" * 40),
        ("a.txt.gz", b"no gzip"),
        ("a.json", b"[" * 100_000),
        ("a.json", b'[{"text": "x"}'),
        ("a.json", b'"text"'),
        ("a.json.gz", gzip.compress(LIST, mtime=0)[:-9]),
        ("a.parquet.gz", b""),
    ],
)
def test_a_file_that_is_cut_or_wrong_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    for skip in (False, True):
        with pytest.raises(CorpusError, match=name):
            read(f"path:{name}", tmp_path, skip=skip)


NESTED = [
    {"doc": {"text": "x", "id": 1}},
    {"doc": None},
    {"doc": {"text": None, "id": 2}},
    {"doc": {"text": "y", "id": 3}},
]


def test_a_nested_column_is_named_with_dots(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(NESTED))
    pl.DataFrame(NESTED).write_parquet(tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        assert [d.text for d in read(f"path:{name}", tmp_path, "doc.text")] == ["x", "", "", "y"]
        with pytest.raises(CorpusError, match=r"'doc\.txt'"):
            read(f"path:{name}", tmp_path, "doc.txt")
    with pytest.raises(CorpusError, match=r"one of its columns: 'doc', 'doc\.id', 'doc\.text'"):
        read("path:a.jsonl", tmp_path, "text")
    flat = [{"doc.text": "whole", "doc": {"text": "part"}}]
    (tmp_path / "c.jsonl").write_bytes(lines(flat))
    assert [d.text for d in read("path:c.jsonl", tmp_path, "doc.text")] == ["whole"]


BAD = b"""{"text": "good"}
{broken
[1]
{"txt": 1}
{"text": 3}

{"text": "\xff"}
{"text": "\\ud800"}
{"text": "end"}
"""


def test_rows_without_a_text_are_skipped_and_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(BAD)
    found = read("path:a.jsonl", tmp_path, skip=True)
    assert [d.text for d in found if not d.problem] == ["good", "end"]
    assert [d.name for d in found if d.problem] == [f"a.jsonl:{i}" for i in (2, 3, 4, 5, 7, 8)]
    for number, word in ((2, "not JSON"), (3, "list"), (4, "no column"), (5, "int"), (7, "UTF-8"), (8, "surrogate")):
        assert word in next(d.problem for d in found if d.name == f"a.jsonl:{number}")
    with pytest.raises(CorpusError, match=r"a\.jsonl:2"):
        read("path:a.jsonl", tmp_path)


# In a workspace ---------------------------------------------------------------------------------------------


def of_corpus(workspace: Workspace, extra: str = "") -> Workspace:
    """The workspace with more lines under [corpus] of its model."""
    path = workspace.settings.folder / "registry" / "models" / "tiny.toml"
    path.write_text(path.read_text() + extra)
    return Workspace.open(workspace.settings.folder / "latentgloss.toml")


def tokenized(workspace: Workspace) -> Any:
    (outcome,) = workspace.materialise("tokenized_corpus", ["tiny"], tiny.runner("tokenized_corpus"))
    return outcome


def test_skipped_rows_are_counted_and_other_recipes_stay(tmp_path: Path) -> None:
    workspace = tiny.tiny_workspace(tmp_path, n_documents=120)
    path = tmp_path / "corpus" / "documents.jsonl"
    before = workspace.recipe(tiny.STAGES["tokenized_corpus"], "tiny").content["external"]["corpus"]
    assert "on_error" not in before and set(before) == {
        "text_column",
        "tokens",
        "sequence_length",
        "prepend_bos",
        "separator",
    }
    path.write_bytes(path.read_bytes() + BAD)
    outcome = tokenized(workspace)
    assert outcome.status == "failed" and "documents.jsonl:122 is not JSON" in str(outcome.error)
    outcome = tokenized(of_corpus(workspace, 'on_error = "skip"\n'))
    assert outcome.status == "computed", outcome.error
    assert outcome.facts["documents"]["unreadable"] == 6
    assert len(outcome.facts["unreadable"]) == 5 and "documents.jsonl:122 is not JSON" in outcome.facts["unreadable"][0]
    table = pl.read_parquet(workspace.store.files.path(f"{outcome.version.key}/documents.parquet"))
    assert table["status"].to_list().count("unreadable") == 6 and set(schema.DOCUMENTS.schema) == set(table.columns)


def test_copies_of_one_text_are_said_to_be_duplicates(tmp_path: Path) -> None:
    workspace = tiny.tiny_workspace(tmp_path, n_documents=1)
    tiny.write_corpus(tmp_path / "corpus" / "documents.jsonl", tiny.documents(1) * 500 + [" "])
    error = str(tokenized(workspace).error)
    assert "501 documents were read, of which 499 are duplicates of others and 1 are empty" in error
    assert "there are 2 clusters" in error


def test_files_that_are_not_read_are_a_fact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workspace = tiny.tiny_workspace(tmp_path, n_documents=120)
    (tmp_path / "corpus" / "notes.csv").write_text("x")
    path = tmp_path / "registry" / "models" / "tiny.toml"
    path.write_text(path.read_text().replace("corpus/documents.jsonl", "corpus"))
    outcome = tokenized(Workspace.open(workspace.settings.folder / "latentgloss.toml"))
    assert outcome.facts["not read"] == "1 files of other kinds (notes.csv)" and "notes.csv" in caplog.text


COMPOSED, DECOMPOSED = "une \u00e9t\u00e9 en for\u00eat", "une e\u0301te\u0301 en fore\u0302t"


@pytest.mark.parametrize(
    ("text", "same"), [("plain", True), (COMPOSED, True), (DECOMPOSED, False), ("\u1112\u1161\u11ab", False)]
)
@pytest.mark.parametrize("escaped", [False, True])
def test_only_a_corpus_outside_nfc_is_made_again(tmp_path: Path, text: str, same: bool, escaped: bool) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=escaped) + "\n", encoding="utf-8")
    digests = DigestCache(tmp_path / "digests.json")
    assert compared_as_before("path:a.jsonl", tmp_path, "text", digests) == same
    assert (
        DigestCache(tmp_path / "digests.json").remember(
            f"nfc text {source_identity('path:a.jsonl', tmp_path, digests)['sha256']}", lambda: not same
        )
        == same
    )
    assert not compared_as_before("hf:org/name@main", tmp_path, "text", digests)
    assert compared_as_before("python-docs", tmp_path, "text", digests)


def test_the_recipe_says_how_texts_are_compared_only_where_it_matters(tmp_path: Path) -> None:
    workspace = tiny.tiny_workspace(tmp_path, n_documents=20)
    stage = tiny.STAGES["tokenized_corpus"]
    assert "comparison" not in workspace.recipe(stage, "tiny").content["external"]
    tiny.write_corpus(tmp_path / "corpus" / "documents.jsonl", [DECOMPOSED])
    assert workspace.recipe(stage, "tiny").content["external"]["comparison"] == "2"
