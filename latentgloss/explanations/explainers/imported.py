"""The `imported` explainer: explanations that somebody else made, from a file.

Neuronpedia exports one JSON object per line, with `modelId`, `layer`, `index` (the latent, a number or a string),
`description`, `explanationModelName` and `typeName`; anything may be written as CSV with columns latent and
explanation. A file is of one SAE. Of several explanations of a latent that the settings let through the first is taken.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentgloss.errors import ExplainerError, SettingsError
from latentgloss.explanations.explainers.base import Explained
from latentgloss.llm.asking import storable
from latentgloss.store.digests import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.config.settings import ExplanationSettings, ImportedSettings
    from latentgloss.explanations.explainers.base import Evidence, Need, Tools
    from latentgloss.models.vocabulary import Vocabulary


VERSION = 1
LONGEST = 10_000
"""Characters of an explanation that is taken."""


@dataclass(frozen=True)
class Given:
    """An explanation as its file has it."""

    text: str
    model: str | None


def file_of(settings: ImportedSettings, tools: Tools) -> Path:
    """The file of a SAE. Raises SettingsError if the settings name none, or with a placeholder there is none of."""
    if settings.file is None:
        raise SettingsError(
            "explainer 'imported' needs a file and the settings name none",
            expected='`file = "imported/{sae}.jsonl"` or such under [explanations.imported]',
            todo="name it in latentgloss.toml",
        )
    model, hookpoint, sae = tools.partition.split("/")
    try:
        name = settings.file.format_map({"model": model, "hookpoint": hookpoint, "sae": sae})
    except (KeyError, ValueError, IndexError, AttributeError) as e:
        raise SettingsError(
            f"explanations.imported.file is {settings.file!r}",
            expected="a path with no placeholders but {model}, {hookpoint} and {sae}",
            todo="correct latentgloss.toml",
        ) from e
    return tools.folder / Path(name).expanduser()


class ImportedExplainer:
    """Explanations of a file; a latent it has none of is a row of status `not_imported`."""

    computes = False
    asks = False
    needs: frozenset[Need] = frozenset()

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        assert tools is not None  # it does not compute, so it is never made in a process without
        self.settings, self.path = settings.imported, file_of(settings.imported, tools)

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        path = file_of(settings.imported, tools)
        chosen = settings.imported.model_dump(mode="json", exclude={"file"})
        return {
            "explainer": "imported",
            "version": VERSION,
            "file": file_sha256(path) if path.is_file() else None,
            **chosen,
        }

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One row per latent. Raises ExplainerError if the file is not what it should be."""
        missing = f"there is no file {self.path.name} for this SAE" if not self.path.is_file() else ""
        given = {} if missing else read_file(self.path, self.settings)
        for one in evidence:
            found = given.get(one.latent)
            if found is None:
                reason = missing or f"{self.path.name} has no explanation of latent {one.latent}"
                yield Explained(one.latent, "not_imported", reason)
            elif not found.text or len(found.text) > LONGEST:
                reason = f"its explanation in {self.path.name} has {len(found.text)} characters"
                yield Explained(one.latent, "not_imported", reason, model=found.model)
            else:
                yield Explained(one.latent, "ok", "", found.text, model=found.model)


def read_file(path: Path, settings: ImportedSettings) -> dict[int, Given]:
    """Explanations by latent. Raises ExplainerError, naming the line, for what is no explanation of a latent."""
    name = path.name.removesuffix(".gz")
    if not name.endswith((".jsonl", ".csv")):
        raise ExplainerError(f"{path.name} is of no known kind", expected=".jsonl, .jsonl.gz or .csv")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, gzip.BadGzipFile) as e:
        raise ExplainerError(f"{path.name} cannot be read ({e})", expected="UTF-8 text", todo="get it again") from e
    rows = _jsonl(text, path.name) if name.endswith(".jsonl") else _csv(text, path.name)
    found: dict[int, Given] = {}
    sources: dict[tuple[str, str], None] = {}
    for line, row in rows:
        if settings.explained_by not in (None, row.get("explanationModelName")):
            continue
        if settings.type not in (None, row.get("typeName")):
            continue
        latent, words = row.get("index"), row.get("description")
        if isinstance(latent, str) and re.fullmatch(r"\s*[0-9]{1,10}\s*", latent):
            latent = int(latent)
        if isinstance(latent, bool) or not isinstance(latent, int) or latent < 0 or not isinstance(words, str):
            raise ExplainerError(
                f"line {line} of {path.name} has latent {latent!r} and explanation {words!r}"[:300],
                expected="a number from 0 on, and a text",
                todo="correct the line, or take it out",
            )
        sources[str(row.get("modelId")), str(row.get("layer"))] = None
        by = row.get("explanationModelName")
        found.setdefault(latent, Given(" ".join(storable(words).split()), by if isinstance(by, str) and by else None))
    if len(sources) > 1:
        raise ExplainerError(
            f"{path.name} is of {len(sources)} SAEs: {', '.join('/'.join(s) for s in list(sources)[:3])}",
            expected="one (modelId, layer) per file",
            todo="make one file of each",
        )
    return found


def _jsonl(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ExplainerError(f"line {number} of {name} is no JSON ({e})", expected="a JSON object per line") from e
        if not isinstance(row, dict):
            raise ExplainerError(f"line {number} of {name} is no object", expected="a JSON object per line")
        yield number, row


def _csv(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not {"latent", "explanation"} <= set(reader.fieldnames or ()):
            raise ExplainerError(
                f"{name} has columns {reader.fieldnames}", expected="latent and explanation", todo="name them so"
            )
        for row in reader:
            yield reader.line_num, {"index": row["latent"], "description": row["explanation"]}
    except csv.Error as e:
        raise ExplainerError(f"line {reader.line_num} of {name} is no CSV ({e})", expected="quoted as CSV is") from e
