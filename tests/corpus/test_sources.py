"""corpus/sources.py: every kind of source, and every way in which one can be wrong."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pytest

from latentgloss.corpus import sources
from latentgloss.corpus.sources import Document, iter_documents, source_identity
from latentgloss.errors import CorpusError
from latentgloss.store.digests import DigestCache

if TYPE_CHECKING:
    from pathlib import Path

BRANCHES = '''"""Module."""
try:
    def f():
        """One."""
except E:
    def f():
        """Two."""
if x:
    pass
else:
    class C:
        """Class."""
        def _hidden(self):
            """No."""
        async def m(self):
            """Method."""
            def inner():
                """Inner."""
match x:
    case 1:
        def g():
            """Case."""
'''
ROWS = ["first text", "", "third: žluťoučký 🙂"]


def read(source: str, folder: Path, text_column: str = "text") -> list[Document]:
    return list(iter_documents(source, text_column, folder))


def lines(rows: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: row, "n": 1}, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


@pytest.fixture(scope="module")
def python_docs() -> list[Document]:
    before = set(sys.modules)
    documents = list(iter_documents("python-docs"))
    assert not {"this", "antigravity", "turtle", "idlelib"} & (set(sys.modules) - before), "source is read, not run"
    return documents


def test_python_docs_are_the_public_documentation_of_this_interpreter(python_docs: list[Document]) -> None:
    texts = {document.name: document.text for document in python_docs}
    assert len(texts) == len(python_docs), "names are unique"
    assert texts["json.decoder.JSONDecoder.decode"] == inspect.getdoc(json.JSONDecoder.decode)
    assert texts["json"] == inspect.getdoc(json)
    assert "assert" in texts["pydoc_data.topics.assert"]
    assert len(texts) > 4000
    names = [name for name in texts if not name.startswith("pydoc_data.topics.")]
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]
    assert not [name for name in names if name.startswith(("idlelib", "test.", "unittest.test", "site-packages"))]
    assert names[0] == "abc"


def test_python_docs_are_in_nfc(python_docs: list[Document]) -> None:
    """`compared_as_before` relies on it."""
    assert [d.name for d in python_docs if not unicodedata.is_normalized("NFC", d.text)] == []


def test_python_docs_do_not_depend_on_where_python_is(
    python_docs: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sources._standard_library()
    kept = ("json", "pydoc_data")
    for package in kept:
        shutil.copytree(original / package, tmp_path / "elsewhere" / package)
    (tmp_path / "elsewhere" / "site-packages").mkdir()
    (tmp_path / "elsewhere" / "site-packages" / "json.py").write_text('"""Not Python\'s own."""')
    (tmp_path / "elsewhere" / "sitecustomize.py").write_text('"""Nor this."""')
    monkeypatch.setattr(sources, "_standard_library", lambda: tmp_path / "elsewhere")
    assert read("python-docs", tmp_path) == [d for d in python_docs if d.name.split(".")[0] in kept]


def test_definitions_in_branches_keep_names_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text(BRANCHES)
    monkeypatch.setattr(sources, "_standard_library", lambda: tmp_path)
    assert [(d.name, d.text) for d in iter_documents("python-docs")] == [
        ("json", "Module."),
        ("json.f", "One."),
        ("json.f#2", "Two."),
        ("json.C", "Class."),
        ("json.C.m", "Method."),
        ("json.C.m.inner", "Inner."),
        ("json.g", "Case."),
    ]


def test_an_interpreter_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_standard_library", lambda: tmp_path)
    with pytest.raises(CorpusError, match="holds no Python source"):
        read("python-docs", tmp_path)


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "b.jsonl.zst").write_bytes(zstd(lines(ROWS[:1])) + zstd(lines(ROWS[1:])))  # two frames
    pl.DataFrame({"text": ROWS, "n": [1, 2, 3]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text(ROWS[2], encoding="utf-8-sig")
    for name in ("a.jsonl", "b.jsonl.zst", "c.parquet"):
        expected = [Document(f"{name}:{i}", text) for i, text in enumerate(ROWS, 1)]
        assert read(f"path:{name}", tmp_path) == expected
    assert read(f"path:{tmp_path / 'd.txt'}", tmp_path) == [Document("d.txt", ROWS[2])]


def test_folders_are_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("z.txt", "b/y.txt", "b/a.TXT", "b.txt", ".hidden/x.txt", "b/.x.txt", "notes.md"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(name)
    names = ["b.txt", "b/a.TXT", "b/y.txt", "z.txt"]
    assert read("path:texts", tmp_path) == [Document(name, name) for name in names]


def test_text_columns_nulls_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "x"}\n\n{"body": null}\n{"body": "last"}')
    assert [(d.name, d.text) for d in read("path:a.jsonl", tmp_path, "body")] == [
        ("a.jsonl:1", "x"),
        ("a.jsonl:3", ""),
        ("a.jsonl:4", "last"),
    ]
    pl.DataFrame({"body": ["x", None]}).write_parquet(tmp_path / "a.parquet")
    assert [d.text for d in read("path:a.parquet", tmp_path, "body")] == ["x", ""]


def test_files_are_streamed(tmp_path: Path) -> None:
    """A mistake in line 3 is met only after lines 1 and 2 were handed out."""
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:2]) + b"{broken\n")
    documents = iter_documents("path:a.jsonl", folder=tmp_path)
    assert [next(documents).text, next(documents).text] == ROWS[:2]
    with pytest.raises(CorpusError, match=r"a\.jsonl:3 is not JSON"):
        next(documents)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8: byte 0xe9 at offset 3.*iconv"),
        ("a.jsonl", lines(ROWS) + b'{"text": "\xff"}', r"byte 0xff at offset 108"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl:2 holds a value of type list"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl:1 has no column 'text'.*one of its columns: 'txt'"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: 'text' holds a value of type int"),
        ("a.jsonl.zst", b"not compressed", r"a\.jsonl\.zst cannot be read"),
        (
            "a.jsonl.zst",
            zstd(lines(ROWS))[:-8],
            r"a\.jsonl\.zst cannot be read",
        ),
        ("a.parquet", b"PAR1 no PAR1", r"a\.parquet cannot be read"),
        ("a.csv", b"text\nx\n", r"a\.csv is of a kind that cannot be read.*\.parquet"),
    ],
)
def test_bad_files_are_refused_by_name_and_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read(f"path:{name}", tmp_path)


def test_bad_parquet_columns_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"body": ["x"], "n": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"has no column 'text'.*'body', 'n'.*text_column"):
        read("path:a.parquet", tmp_path)
    with pytest.raises(CorpusError, match=r"a\.parquet:1: 'n' holds a value of type int"):
        read("path:a.parquet", tmp_path, "n")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("python_docs", "unknown.*python-docs, path:"),
        ("", "unknown"),
        ("path:nowhere", "nowhere does not exist"),
        ("path:.", "has no file to read.*\\.txt"),
        ("hf:org/name", "not complete.*REVISION"),
        ("hf:org/name@main?subset=x", "options that do not exist"),
    ],
)
def test_bad_sources_are_refused(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read(source, tmp_path)
    with pytest.raises(CorpusError, match=message):
        source_identity(source, tmp_path, DigestCache(tmp_path / "digests.json"))


def test_the_hub_needs_an_extra_or_reads_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `datasets`: what to install. With it: a dataset of that name, here one in the working directory."""
    if importlib.util.find_spec("datasets") is None:
        with pytest.raises(CorpusError, match=r"pip install 'latentgloss\[hf\]'"):
            read("hf:org/name@main", tmp_path)
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "train.jsonl").write_bytes(lines(ROWS))
    assert read("hf:org/name@main", tmp_path) == [Document(f"org/name/train:{i}", t) for i, t in enumerate(ROWS, 1)]
    with pytest.raises(CorpusError, match="has no column 'body'"):
        read("hf:org/name@main", tmp_path, "body")
    with pytest.raises(CorpusError, match="cannot be read after row 0"):
        read("hf:org/name@main?split=nope", tmp_path)


def test_identity_is_content_not_place(tmp_path: Path) -> None:
    digests = DigestCache(tmp_path / "digests.json")
    for folder in ("a", "b"):
        (tmp_path / folder / "texts").mkdir(parents=True)
        (tmp_path / folder / "texts" / "x.txt").write_text("x")
    identity = source_identity("path:texts", tmp_path / "a", digests)
    assert identity == source_identity("path:texts", tmp_path / "b", digests)
    (tmp_path / "b" / "texts" / "x.txt").write_text("changed")
    assert identity != source_identity("path:texts", tmp_path / "b", digests)
    assert source_identity("python-docs", tmp_path, digests) == source_identity("python-docs", tmp_path / "a", digests)
    assert source_identity("hf:org/name@abc?config=c", tmp_path, digests) == {
        "kind": "hf",
        "dataset": "org/name",
        "revision": "abc",
        "config": "c",
    }
