"""Sources: where documents come from (`python-docs`, local files, the Hugging Face hub).

What belongs here: turning the `corpus.source` of a model's registry entry into a stream of named texts, in an order
that does not depend on where the files are. Reads files only: docstrings of the standard library are parsed, its
modules are not imported. Writes nothing. How a file is read is in `corpus/formats.py`, what becomes of the texts in
`corpus/building.py`.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
import sysconfig
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from latentgloss.config.toml import user_path
from latentgloss.corpus import formats
from latentgloss.corpus.formats import Document, Rows
from latentgloss.errors import CorpusError
from latentgloss.store.digests import file_sha256, json_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentgloss.store.digests import DigestCache


SCANNED = 4 * 2**30
"""Most bytes of files in which text outside Unicode's NFC is looked for."""
SOURCES = "python-docs, path:FILE_OR_FOLDER or hf:ORG/NAME@REVISION"

_TOPICS = "pydoc_data.topics"
_NOT_DOCUMENTATION = {"test", "tests", "idlelib", "site-packages", "dist-packages"}
"""Folders that are left out: fixtures, the user interface of IDLE, and packages that are not Python's own."""


def iter_documents(
    source: str, text_column: str = "text", folder: Path = Path(), *, skip: bool = False
) -> Iterator[Document]:
    """Yields every document of `source` in a fixed order.

    - `python-docs`: one document per topic of `help()`, then the docstring of every public module, class, function and
      method of the running interpreter's standard library (about 430k SmolLM2 tokens in 3.11).
    - `path:X`: X is a file, or a folder that is searched for files with any of the suffixes in `formats.py`, hidden
      files left out. A relative path starts at `folder`. A .txt file is one document. Each row of the other formats is
      one document, with its text in `text_column`.
    - `hf:org/name@revision`, optionally with `?config=…&split=…` (default split: `train`): streamed by the package
      `datasets`.

    A document with an empty text is yielded too, and the corpus records it. Raises CorpusError, which names the file
    and the line, row or byte. `skip`: a row that has no text that can be read is yielded with the reason
    (`Document.problem`) instead of raising; a file that cannot be read raises all the same.
    """
    if source == "python-docs":
        yield from _python_docs()
    elif source.startswith("path:"):
        root, files = _files(source, folder)
        for file in files:
            yield from formats.documents(file, file.relative_to(root).as_posix(), Rows(text_column, skip))
    elif source.startswith("hf:"):
        yield from _hub(source, Rows(text_column, skip))
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


def compared_as_before(source: str, folder: Path, text_column: str, digests: DigestCache) -> bool:
    """Whether duplicates among the documents of `source` are the same as before texts were compared in Unicode's NFC.

    True if every text is in NFC already, so that results from before stay fresh. All texts are read once, and the
    answer is remembered by the files' content. False where that would take too long (an `hf:` source, or files of more
    than `SCANNED` bytes): such a corpus is made again, and what is made from it stays fresh if its content is the same.
    """
    if source == "python-docs":
        return True  # a test reads all of it
    if not source.startswith("path:"):
        return False
    root, files = _files(source, folder)
    if sum(file.stat().st_size for file in files) > SCANNED:
        return False
    key = f"nfc {text_column} {digests.tree_sha256(files, root)}"

    def scan() -> bool:
        try:
            texts = (document.text for document in iter_documents(source, text_column, folder, skip=True))
            return all(unicodedata.is_normalized("NFC", text) for text in texts)
        except CorpusError:
            return True  # what follows cannot be read, and never could

    return digests.remember(key, scan)


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
    path = _local(source, folder)
    if path.is_file():
        formats.suffix_of(path)
        return path.parent, [path]
    if not path.is_dir():
        raise CorpusError(f"corpus {source!r}: {path} does not exist", todo="correct `corpus.source`")
    read, others = _in_folder(path)
    if not read:
        raise CorpusError(
            f"corpus {source!r}: {path} has no file to read" + (f", only {_listed(path, others)}" if others else ""),
            expected=f"files ending in {formats.suffixes()}; a .json file in a folder holds a list of rows",
            todo="correct `corpus.source`, or convert the files",
        )
    return path, read


def _local(source: str, folder: Path) -> Path:
    return (folder / user_path(source.removeprefix("path:"), CorpusError)).resolve()


def _in_folder(path: Path) -> tuple[list[Path], list[Path]]:
    """(files that are read, files that are passed over), each by relative name; hidden files are in neither."""
    visible = [
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    visible.sort(key=lambda file: file.relative_to(path).as_posix())
    read = {file: formats.readable(file) for file in visible}
    return [file for file in visible if read[file]], [file for file in visible if not read[file]]


def passed_over(source: str, folder: Path = Path()) -> str:
    """The files in the folder of a `path:` source that are not read, in words; empty if there are none."""
    path = _local(source, folder) if source.startswith("path:") else None
    others = _in_folder(path)[1] if path is not None and path.is_dir() else []
    return _listed(path, others) if path is not None and others else ""


def _listed(root: Path, files: list[Path]) -> str:
    names = ", ".join(file.relative_to(root).as_posix() for file in files[:5])
    return f"{len(files)} files of other kinds ({names}{', …' if len(files) > 5 else ''})"


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


def _hub(source: str, column: Rows) -> Iterator[Document]:
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
            yield column.document(f"{dataset}/{split}:{number}", lambda row=row: row, f"{source}:{number}")  # type: ignore[misc]
    except CorpusError:
        raise
    except Exception as e:  # `datasets` raises errors of many libraries; their messages are shown
        raise CorpusError(f"corpus {source!r} cannot be read after row {number} ({type(e).__name__}: {e})") from e
