"""Formats of corpus files: how the documents of one file are read.

    .txt                    one document
    .jsonl, .ndjson         one document per line, a JSON object
    .json                   a list of JSON objects, or one object per line; the file is read as a whole
    .parquet                one document per row

Text formats may be compressed (`.gz`, `.zst`). What belongs here: reading a file of each format, finding the text in a
row (`Rows`), and errors that name file and place. In memory is one document at a time (one batch for Parquet, one file
for .json). Writes nothing.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentgloss.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


TEXT, LINES, LIST, PARQUET = ".txt", (".jsonl", ".ndjson"), ".json", ".parquet"
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of compressed files, with Arrow's name of the compression."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus source."""

    name: str
    """Name within the source, free of the machine's paths: `json.decoder.JSONDecoder`, `a/b.jsonl:12`."""
    text: str
    problem: str = ""
    """Why there is no text, if a row could not be read and is to be skipped."""


@dataclass(frozen=True)
class Rows:
    """How a row becomes a document."""

    column: str
    """The column with the text; `doc.text` is entry `text` of column `doc`, unless a column has that whole name."""
    skip: bool = False
    """Whether a row without a text becomes a document with a `problem`, instead of an error."""

    def document(self, name: str, row: Callable[[], Any], where: str) -> Document:
        """The document of a row. `row` returns it, or raises CorpusError. `where`: file and line, for messages."""
        try:
            text = _text(row(), self.column, where)
            if self.skip:
                check_unicode(text, where)
            return Document(name, text)
        except CorpusError as e:
            if not self.skip:
                raise
            return Document(name, "", e.found)


def check_unicode(text: str, where: str) -> None:
    """Raises CorpusError if a text cannot be encoded in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise CorpusError(
            f"{where} holds half a surrogate pair at character {e.start}",
            expected="text that UTF-8 can represent",
            todo="repair the text where it was cut or escaped",
        ) from e


def suffixes() -> str:
    """The suffixes of files that are read, in words."""
    text = (TEXT, *LINES, LIST)
    return f"{', '.join(text)} (each also with {' or '.join(COMPRESSED)}) or {PARQUET}"


def _format(path: Path) -> tuple[str, str | None] | None:
    """(format, compression) of a file, from its name; None if it is of another kind."""
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), None)
    plain = name.removesuffix(compression or "")
    found = next((s for s in (TEXT, *LINES, LIST, PARQUET) if plain.endswith(s)), None)
    if found is None or (found == PARQUET and compression):
        return None
    return found, COMPRESSED[compression] if compression else None


def suffix_of(path: Path) -> tuple[str, str | None]:
    """(format, compression) of a file. Raises CorpusError if it is of another kind."""
    found = _format(path)
    if found is None:
        raise CorpusError(
            f"{path} is of a kind that cannot be read",
            expected=f"a file ending in {suffixes()}",
            todo="convert the file or correct `corpus.source`",
        )
    return found


def readable(path: Path) -> bool:
    """Whether a file in a folder is read. A .json file is, if it holds a list; others describe data sets."""
    found = _format(path)
    if found is None or found[0] != LIST:
        return found is not None
    try:
        with _open(path, found[1]) as stream:
            return _starts_with(stream, b"[")
    except (OSError, EOFError, zlib.error):
        return True  # the error is raised when the file is read


def _open(path: Path, compression: str | None) -> io.BufferedReader:
    if compression == "gzip":
        return io.BufferedReader(gzip.open(path))
    import pyarrow as pa

    # Arrow detects a truncated zstd stream; the package zstandard reads it as a shorter file.
    return io.BufferedReader(pa.input_stream(path, compression=compression))


def _starts_with(stream: io.BufferedReader, what: bytes) -> bool:
    """Whether the first character of a stream that is no white space is this one; nothing is consumed."""
    return stream.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(what)


def documents(path: Path, name: str, rows: Rows) -> Iterator[Document]:
    """The documents of one file, whose name in the source is `name`. Raises CorpusError."""
    kind, compression = suffix_of(path)
    try:
        if kind == PARQUET:
            yield from _parquet(path, name, rows)
            return
        with _open(path, compression) as stream:
            if kind == TEXT:
                yield Document(name, _decode(stream.read(), path, 0).removeprefix("\ufeff"))
            elif kind == LIST and not _starts_with(stream, b"{"):
                yield from _json_list(stream.read(), path, name, rows)
            else:
                yield from _json_lines(stream, path, name, rows)
    except (OSError, EOFError, zlib.error) as e:
        raise CorpusError(f"{path} cannot be read ({e})", todo="check that the file is complete and readable") from e


def _decode(data: bytes, path: Path, offset: int) -> str:
    """UTF-8 text; `offset` is where the data begin in the file. Raises CorpusError, which names the bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise CorpusError(
            f"{path} is not UTF-8: byte {data[e.start]:#04x} at offset {offset + e.start}",
            expected="text in UTF-8",
            todo="convert the file, for example with `iconv -f LATIN1 -t UTF-8`",
        ) from e


def _json_lines(lines: io.BufferedReader, path: Path, name: str, rows: Rows) -> Iterator[Document]:
    """One document per line; blank lines are skipped."""
    offset = 0
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"

        def read(line: bytes = line, offset: int = offset, where: str = where) -> Any:
            return _parsed(_decode(line, path, offset).removeprefix("\ufeff"), where, "one JSON object per line")

        offset += len(line)
        if line.removeprefix(b"\xef\xbb\xbf").strip():
            yield rows.document(f"{name}:{number}", read, where)


def _json_list(data: bytes, path: Path, name: str, rows: Rows) -> Iterator[Document]:
    """One document per object of a list."""
    content = _parsed(_decode(data, path, 0).removeprefix("\ufeff"), str(path), "a list of JSON objects")
    if not isinstance(content, list):
        raise _not_a_row(content, str(path), "a list of JSON objects")
    for number, row in enumerate(content, 1):
        yield rows.document(f"{name}:{number}", lambda row=row: row, f"{path}:{number}")  # type: ignore[misc]


def _parsed(content: str, where: str, expected: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as e:
        raise CorpusError(f"{where} is not JSON ({e})", expected=expected, todo="correct the line") from e


def _parquet(path: Path, name: str, rows: Rows) -> Iterator[Document]:
    """One document per row of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if rows.column not in names and rows.column.partition(".")[0] not in names:
                raise _no_column(rows.column, names, str(path))
            for batch in file.iter_batches(batch_size=1024, columns=[rows.column]):
                for row in batch.to_pylist():
                    number += 1
                    yield rows.document(f"{name}:{number}", lambda row=row: row, f"{path}:{number}")  # type: ignore[misc]
    except (pa.ArrowInvalid, UnicodeDecodeError) as e:
        raise CorpusError(
            f"{path} cannot be read after row {number} ({e})",
            expected="a Parquet file",
            todo="write or download the file again",
        ) from e


def _no_column(column: str, found: list[str], where: str) -> CorpusError:
    return CorpusError(
        f"{where} has no column {column!r}",
        expected=f"one of its columns: {', '.join(map(repr, sorted(found))) or 'none'}",
        todo="set `corpus.text_column`; `doc.text` names the entry `text` of a column `doc`",
    )


def _not_a_row(value: Any, where: str, expected: str) -> CorpusError:
    return CorpusError(
        f"{where} holds a value of type {type(value).__name__}", expected=expected, todo="correct the line"
    )


def _columns(row: dict[str, Any]) -> list[str]:
    """Names of a row's columns, with those one level down."""
    return [
        f"{name}.{inner}" if inner else name
        for name, value in row.items()
        for inner in ("", *(value if isinstance(value, dict) else ()))
    ]


def _text(row: Any, column: str, where: str) -> str:
    """The text of a row; a null is an empty text. Raises CorpusError if it is missing or not a string."""
    if not isinstance(row, dict):
        raise _not_a_row(row, where, "one JSON object per line")
    value: Any = row
    for key in (column,) if column in row else column.split("."):
        if value is None:
            break
        if not isinstance(value, dict) or key not in value:
            raise _no_column(column, _columns(row), where)
        value = value[key]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{where}: {column!r} holds a value of type {type(value).__name__}",
            expected="a string",
            todo="set `corpus.text_column` to the column with the text",
        )
    return value
