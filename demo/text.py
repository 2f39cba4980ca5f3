"""Text the demo's SAEs are trained on: documentation that is already on the machine.

Docstrings and descriptions of the standard library and of every installed package, and Python's own reference topics
(`pydoc_data.topics`). No download. The text depends on what is installed; `README.md` records what was.
A whole top-level package is either training or held-out text, so that the held-out figures are measured on packages
the SAEs never saw.
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
HELD_OUT_SHARE = 0.08


@dataclass(frozen=True)
class Document:
    package: str
    text: str

    @property
    def held_out(self) -> bool:
        """Decided by the package's name alone: documents of one package never fall on both sides."""
        digest = hashlib.sha256(b"latentgloss-demo:" + self.package.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="strict"))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return  # test data of some packages is deliberately not Python
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _python_files(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"tests", "test", "idlelib", "site-packages", "_vendor"} & set(parts):
            continue
        yield parts[0].removesuffix(".py"), path


def documents(package_cap: int, seed: int) -> list[Document]:
    """All documents, exact duplicates removed, at most `package_cap` characters of a package, shuffled."""
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
