"""Sources: where documents come from (`python-docs`, local files, the Hugging Face hub).

What belongs here: turning the `corpus.source` of a model's registry entry into a stream of named texts, in an order
that does not depend on where the files are. Reads files only: docstrings of the standard library are parsed, its
modules are not imported. In memory is one document at a time (one batch for Parquet). Writes nothing. What becomes of
the texts is in `corpus/building.py`.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import json
import os
import sys
import sysconfig
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from latentgloss.errors import CorpusError
from latentgloss.store.digests import file_sha256, json_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentgloss.store.digests import DigestCache


SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".parquet")
SOURCES = "python-docs, path:FILE_OR_FOLDER or hf:ORG/NAME@REVISION"

_TOPICS = "pydoc_data.topics"
_NOT_DOCUMENTATION = {"test", "tests", "idlelib", "site-packages", "dist-packages"}
"""Folders that are left out: fixtures, the user interface of IDLE, and packages that are not Python's own."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus source."""

    name: str
    """Name within the source, free of the machine's paths: `json.decoder.JSONDecoder`, `a/b.jsonl:12`."""
    text: str


def iter_documents(source: str, text_column: str = "text", folder: Path = Path()) -> Iterator[Document]:
    """Yields every document of `source` in a fixed order.

    - `python-docs`: one document per topic of `help()`, then the docstring of every public module, class, function and
      method of the running interpreter's standard library (about 430k SmolLM2 tokens in 3.11).
    - `path:X`: X is a file, or a folder that is searched for files with any of `SUFFIXES`, hidden files left out. A
      relative path starts at `folder`. A .txt file is one document. Each line of .jsonl and each row of .parquet is one
      document, with its text in `text_column`.
    - `hf:org/name@revision`, optionally with `?config=…&split=…` (default split: `train`): streamed by the package
      `datasets`.

    A document with an empty text is yielded too, and the corpus records it. Raises CorpusError, which names the file
    and the line, row or byte.
    """
    if source == "python-docs":
        yield from _python_docs()
    elif source.startswith("path:"):
        root, files = _files(source, folder)
        for file in files:
            yield from _file(file, file.relative_to(root).as_posix(), text_column)
    elif source.startswith("hf:"):
        yield from _hub(source, text_column)
    else:
        raise _unknown(source)


def source_identity(source: str, folder: Path, digests: DigestCache) -> dict[str, Any]:
    """What decides the texts of `source`, for the corpus's recipe: hashes of contents and relative names, no paths.

    An `hf:` source is identified by its address and revision. Raises CorpusError.
    """
    if source == "python-docs":
        sha256 = json_sha256({name: file_sha256(path) for name, path in _modules()})
    elif source.startswith("path:"):
        root, files = _files(source, folder)
        sha256 = digests.tree_sha256(files, root)
    elif source.startswith("hf:"):
        dataset, revision, options = _hub_address(source)
        return {"kind": "hf", "dataset": dataset, "revision": revision, **options}
    else:
        raise _unknown(source)
    return {"kind": source.partition(":")[0], "sha256": sha256}


def _unknown(source: str) -> CorpusError:
    return CorpusError(f"corpus source {source!r} is unknown", expected=SOURCES, todo="correct `corpus.source`")


def _python_docs() -> Iterator[Document]:
    """Topics of `help()` and docstrings of the standard library."""
    seen: Counter[str] = Counter()
    for module, path in _modules():
        tree = _parse(path)
        for name, text in _topics(tree) if module == _TOPICS else _docstrings(tree, module):
            seen[name] += 1  # definitions in branches of an `if` have one name
            yield Document(name if seen[name] == 1 else f"{name}#{seen[name]}", text)


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every public module of the standard library: the topics first, then by name.

    Raises CorpusError if the interpreter was installed without its sources.
    """
    root = _standard_library()
    modules = []
    for folder, subfolders, files in os.walk(root):
        inside = Path(folder).relative_to(root).parts
        # Other folders, installed packages above all, are not even entered: there may be a hundred thousand files.
        subfolders[:] = [name for name in subfolders if _is_documented((*inside, name))]
        for name in files:
            parts = inside if name == "__init__.py" else (*inside, name.removesuffix(".py"))
            if name.endswith(".py") and parts and _is_documented(parts):
                modules.append((".".join(parts), Path(folder, name)))
    if not modules:
        raise CorpusError(
            f"{root} holds no Python source",
            expected="the standard library of the running interpreter, as .py files",
            todo="use an interpreter installed with its sources, or another corpus source",
        )
    return sorted(modules, key=lambda module: (module[0] != _TOPICS, module[0]))


def _is_documented(parts: tuple[str, ...]) -> bool:
    """Whether a module or package is a public one of the standard library, by the parts of its dotted name.

    An installation may have added modules to the folder; `stdlib_module_names` is the same on every platform.
    """
    return parts[0] in sys.stdlib_module_names and not any(
        part.startswith("_") or part in _NOT_DOCUMENTATION for part in parts
    )


def _parse(path: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in strings of the standard library
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError) as e:
        raise CorpusError(f"{path} cannot be parsed ({e})", todo="repair the Python installation") from e


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, text) of every topic of `help()`, by name."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for name, text in sorted(ast.literal_eval(statement.value).items()):
                yield f"{_TOPICS}.{name}", inspect.cleandoc(text)


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of `node` and of the public definitions in it, in the order of the source."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text:
            yield name, text
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        children = getattr(node, field, None)
        for child in children if isinstance(children, list) else ():
            if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _docstrings(child, name)
            elif not child.name.startswith("_"):
                yield from _docstrings(child, f"{name}.{child.name}")


def _files(source: str, folder: Path) -> tuple[Path, list[Path]]:
    """(root, files by relative name) of a `path:` source. Raises CorpusError if there is no file to read."""
    path = (folder / Path(source.removeprefix("path:")).expanduser()).resolve()
    if path.is_file():
        _suffix(path)
        return path.parent, [path]
    if not path.is_dir():
        raise CorpusError(f"corpus {source!r}: {path} does not exist", todo="correct `corpus.source`")
    found = [
        file
        for file in path.rglob("*")
        if file.name.lower().endswith(SUFFIXES)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise CorpusError(
            f"corpus {source!r}: {path} has no file to read",
            expected=f"files ending in {_suffixes()}",
            todo="correct `corpus.source`",
        )
    return path, sorted(found, key=lambda file: file.relative_to(path).as_posix())


def _suffixes() -> str:
    return ", ".join(SUFFIXES)


def _suffix(path: Path) -> str:
    """The suffix of a file, one of `SUFFIXES`. Raises CorpusError for any other file."""
    for suffix in reversed(SUFFIXES):
        if path.name.lower().endswith(suffix):
            return suffix
    raise CorpusError(
        f"{path} is of a kind that cannot be read",
        expected=f"a file ending in {_suffixes()}",
        todo="convert the file or correct `corpus.source`",
    )


def _file(path: Path, name: str, text_column: str) -> Iterator[Document]:
    """The documents of one file, whose name in the source is `name`."""
    suffix = _suffix(path)
    try:
        if suffix == ".txt":
            yield Document(name, _decode(path.read_bytes(), path, 0).removeprefix("\ufeff"))
        elif suffix == ".parquet":
            yield from _parquet(path, name, text_column)
        else:
            import pyarrow as pa

            # Arrow detects a truncated zstd stream; the package zstandard reads it as a shorter file.
            with pa.input_stream(path, compression="zstd" if suffix == ".jsonl.zst" else None) as stream:
                yield from _json_lines(io.BufferedReader(stream), path, name, text_column)
    except OSError as e:
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


def _json_lines(lines: io.BufferedReader, path: Path, name: str, text_column: str) -> Iterator[Document]:
    """One document per line of a .jsonl file; blank lines are skipped."""
    offset = 0
    for number, line in enumerate(lines, 1):
        content = _decode(line, path, offset).removeprefix("\ufeff")
        offset += len(line)
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError as e:
            raise CorpusError(
                f"{path}:{number} is not JSON ({e})",
                expected="one JSON object per line",
                todo="correct the line",
            ) from e
        if not isinstance(row, dict):
            raise CorpusError(
                f"{path}:{number} holds a value of type {type(row).__name__}",
                expected="one JSON object per line",
                todo="correct the line",
            )
        yield Document(f"{name}:{number}", _text(row, text_column, f"{path}:{number}"))


def _parquet(path: Path, name: str, text_column: str) -> Iterator[Document]:
    """One document per row of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            if text_column not in file.schema_arrow.names:
                raise _no_column(text_column, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=1024, columns=[text_column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield Document(f"{name}:{number}", _text({text_column: value}, text_column, f"{path}:{number}"))
    except (pa.ArrowInvalid, UnicodeDecodeError) as e:
        raise CorpusError(
            f"{path} cannot be read after row {number} ({e})",
            expected="a Parquet file",
            todo="write or download the file again",
        ) from e


def _no_column(text_column: str, found: list[str], where: str) -> CorpusError:
    return CorpusError(
        f"{where} has no column {text_column!r}",
        expected=f"one of its columns: {', '.join(map(repr, sorted(found))) or 'none'}",
        todo="set `corpus.text_column`",
    )


def _text(row: dict[str, Any], text_column: str, where: str) -> str:
    """The text of a row; a null is an empty text. Raises CorpusError if the column is missing or not a string."""
    if text_column not in row:
        raise _no_column(text_column, list(row), where)
    value = row[text_column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{where}: {text_column!r} holds a value of type {type(value).__name__}",
            expected="a string",
            todo="set `corpus.text_column` to the column with the text",
        )
    return value


def _hub_address(source: str) -> tuple[str, str, dict[str, str]]:
    """(dataset, revision, options) of `hf:org/name@revision?config=…&split=…`."""
    address, _, query = source.removeprefix("hf:").partition("?")
    dataset, _, revision = address.partition("@")
    options = dict(parse_qsl(query))
    if not dataset or not revision or options.keys() - {"config", "split"}:
        raise CorpusError(
            f"corpus source {source!r} is not complete or has options that do not exist",
            expected="hf:ORG/NAME@REVISION, optionally ?config=NAME&split=NAME",
            todo="name a commit or tag, because without one the corpus may change under its results",
        )
    return dataset, revision, options


def _hub(source: str, text_column: str) -> Iterator[Document]:
    """The documents of an `hf:` source, streamed."""
    dataset, revision, options = _hub_address(source)
    if importlib.util.find_spec("datasets") is None:
        raise CorpusError(
            f"corpus {source!r} needs the package `datasets`, which is not installed",
            todo="run `pip install 'latentgloss[hf]'`, or name local files with `path:`",
        )
    from datasets import load_dataset

    split = options.get("split", "train")
    number = 0
    try:
        rows = load_dataset(dataset, options.get("config"), split=split, revision=revision, streaming=True)
        for number, row in enumerate(rows, 1):
            yield Document(f"{dataset}/{split}:{number}", _text(row, text_column, f"{source}:{number}"))
    except CorpusError:
        raise
    except Exception as e:  # `datasets` raises errors of many libraries; their messages are shown
        raise CorpusError(f"corpus {source!r} cannot be read after row {number} ({type(e).__name__}: {e})") from e
