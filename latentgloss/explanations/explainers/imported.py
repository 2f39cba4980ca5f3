"""The `imported` explainer: explanations made elsewhere, from a file.

Two formats are read. Neuronpedia exports one JSON object per line, with `modelId`, `layer`, `index` (the latent, a
number or a string), `description`, `explanationModelName` and `typeName`. Explanations from any other source can be
written as CSV with the columns latent and explanation. A file is about one SAE. If several explanations of a latent
pass the filters in the settings, the first is used.
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

from latentgloss.config.toml import user_path
from latentgloss.errors import ExplainerError, SettingsError
from latentgloss.explanations.explainers.base import Explained
from latentgloss.llm.reply_text import storable
from latentgloss.store.digests import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latentgloss.config.settings import ExplanationSettings, ImportedSettings
    from latentgloss.explanations.explainers.base import Evidence, Need, Tools
    from latentgloss.models.vocabulary import Vocabulary


VERSION = 1
"""Version of how files are read; part of the recipe."""
LONGEST = 10_000
"""Most characters of an explanation; a longer one is not imported."""


@dataclass(frozen=True)
class Given:
    """An explanation as its file gives it."""

    text: str
    model: str | None
    """The model that wrote it, if the file says so."""


def file_of(settings: ImportedSettings, tools: Tools) -> Path:
    """The file of an SAE. Raises SettingsError if the settings name none, or use an unknown placeholder."""
    if settings.file is None:
        raise SettingsError(
            "explainer 'imported' needs a file, but the settings name none",
            expected='a path such as `file = "imported/{sae}.jsonl"` under [explanations.imported]',
            todo="name the file in latentgloss.toml",
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
    return tools.folder / user_path(name, SettingsError)


class ImportedExplainer:
    """Takes explanations from a file; a latent that is not in the file gets a row of status `not_imported`."""

    computes = False
    asks = False
    needs: frozenset[Need] = frozenset()

    def __init__(self, settings: ExplanationSettings, vocabulary: Vocabulary, tools: Tools | None = None) -> None:
        assert tools is not None  # they are missing only in processes, where this explainer never runs
        self.settings, self.path = settings.imported, file_of(settings.imported, tools)

    @staticmethod
    def identity(settings: ExplanationSettings, tools: Tools) -> dict[str, Any]:
        """Version, hash of the file (None if there is none) and filters."""
        path = file_of(settings.imported, tools)
        chosen = settings.imported.model_dump(mode="json", exclude={"file"})
        return {
            "explainer": "imported",
            "version": VERSION,
            "file": file_sha256(path) if path.is_file() else None,
            **chosen,
        }

    def explain(self, evidence: Iterable[Evidence]) -> Iterator[Explained]:
        """One row per latent, in order. Raises ExplainerError if the file cannot be used (`read_file`)."""
        missing = f"there is no file {self.path.name} for this SAE" if not self.path.is_file() else ""
        given = {} if missing else read_file(self.path, self.settings)
        for each in evidence:
            found = given.get(each.latent)
            if found is None:
                reason = missing or f"{self.path.name} has no explanation of latent {each.latent}"
                yield Explained(each.latent, "not_imported", reason)
            elif not found.text or len(found.text) > LONGEST:
                reason = f"its explanation in {self.path.name} has {len(found.text)} characters"
                yield Explained(each.latent, "not_imported", reason, model=found.model)
            else:
                yield Explained(each.latent, "ok", "", found.text, model=found.model)


def read_file(path: Path, settings: ImportedSettings) -> dict[int, Given]:
    """The explanations in a file, by latent.

    Raises ExplainerError if the file cannot be read, if a line is not an explanation of a latent (the message names the
    line), or if the file is about several SAEs.
    """
    name = path.name.removesuffix(".gz")
    if not name.endswith((".jsonl", ".csv")):
        raise ExplainerError(f"{path.name} has an unknown extension", expected=".jsonl, .jsonl.gz, .csv or .csv.gz")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, gzip.BadGzipFile) as e:
        raise ExplainerError(
            f"{path.name} cannot be read ({e})",
            expected="UTF-8 text, compressed with gzip if its name ends in .gz",
            todo="download or write the file again",
        ) from e
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
                expected="a whole number of at least 0 and a text",
                todo="correct the line or delete it",
            )
        sources[str(row.get("modelId")), str(row.get("layer"))] = None
        by = row.get("explanationModelName")
        found.setdefault(latent, Given(" ".join(storable(words).split()), by if isinstance(by, str) and by else None))
    if len(sources) > 1:
        raise ExplainerError(
            f"{path.name} is of {len(sources)} SAEs: {', '.join('/'.join(s) for s in list(sources)[:3])}",
            expected="one (modelId, layer) per file",
            todo="write one file per SAE",
        )
    return found


def _jsonl(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON-lines file with their line numbers."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ExplainerError(f"line {number} of {name} is not JSON ({e})", expected="a JSON object per line") from e
        if not isinstance(row, dict):
            raise ExplainerError(f"line {number} of {name} is not an object", expected="a JSON object per line")
        yield number, row


def _csv(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with their line numbers, in the keys of a Neuronpedia export."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not {"latent", "explanation"} <= set(reader.fieldnames or ()):
            raise ExplainerError(
                f"{name} has columns {reader.fieldnames}",
                expected="columns latent and explanation",
                todo="correct the first line of the file",
            )
        for row in reader:
            yield reader.line_num, {"index": row["latent"], "description": row["explanation"]}
    except csv.Error as e:
        raise ExplainerError(
            f"line {reader.line_num} of {name} is not CSV ({e})", expected="fields quoted as in CSV"
        ) from e
