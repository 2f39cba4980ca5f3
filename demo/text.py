"""The text on which the demo's SAEs are trained: documentation that is already on the machine.

It consists of docstrings of the standard library and of every installed package, the descriptions of these packages,
and Python's own reference topics (`pydoc_data.topics`). Nothing is downloaded. The text depends on what is installed;
`README.md` records what it was.

A whole top-level package is either training text or held-out text, so the held-out figures are measured on packages
that the SAEs have not seen.
"""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

MIN_CHARACTERS = 80
"""Shorter texts are left out."""
HELD_OUT_SHARE = 0.08
"""Share of packages that are held out."""


@dataclass(frozen=True)
class Document:
    """One text, and the top-level package that it belongs to."""

    package: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the text is held out, decided by the package's name alone: a package is never divided."""
        digest = hashlib.sha256(b"latentgloss-demo:" + self.package.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def _docstrings(path: Path) -> Iterator[str]:
    """All docstrings of a Python file; none if it cannot be parsed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="strict"))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return  # some packages contain test data that is deliberately not valid Python
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _python_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(top-level package, file) of the Python files under `root`, without tests and vendored packages."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"tests", "test", "idlelib", "site-packages", "_vendor"} & set(parts):
            continue
        yield parts[0].removesuffix(".py"), path


def documents(package_cap: int, seed: int) -> list[Document]:
    """All documents in random order, without exact duplicates and texts below `MIN_CHARACTERS`.

    No further document of a package is taken once its documents have `package_cap` characters.
    """
    found: list[Document] = [Document("pydoc_topics", text.strip()) for text in topics.values()]
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    for root in roots:
        for package, path in _python_files(root):
            found.extend(Document(package, text) for text in _docstrings(path))
    for distribution in sorted(distributions(), key=lambda d: str(d.name)):
        description = distribution.metadata.json.get("description")
        if isinstance(description, str):
            found.append(Document(str(distribution.name).lower().replace("-", "_"), description.strip()))

    order = random.Random(seed)
    order.shuffle(found)
    seen: set[str] = set()
    taken: dict[str, int] = defaultdict(int)
    kept: list[Document] = []
    for document in found:
        if len(document.text) < MIN_CHARACTERS or document.text in seen:
            continue
        if taken[document.package] >= package_cap:
            continue
        seen.add(document.text)
        taken[document.package] += len(document.text)
        kept.append(document)
    return kept
