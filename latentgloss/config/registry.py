"""The registry: models, SAEs, embedders and language models, declared in TOML files in one folder for each kind.

    models/<name>.toml    saes/**/*.toml    embedders/<name>.toml    language_models/<name>.toml

What belongs here: reading the files and finding an entry by name. The fields of an entry are in `entries.py`. A file
with a mistake leaves out only its own entry; the reason is kept in `Registry.problems`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from latentgloss.config.entries import (
    MINILM,
    EmbedderSpec,
    LanguageModelSpec,
    ModelSpec,
    SaeSpec,
    split_partition,
)
from latentgloss.config.toml import Strict, read_toml, validated
from latentgloss.errors import InputError, LatentglossError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


Entry = TypeVar("Entry", bound=Strict)
NamedEntry = TypeVar("NamedEntry", ModelSpec, EmbedderSpec, LanguageModelSpec)


@dataclass(frozen=True)
class Registry:
    """All declared models, SAEs, embedders and language models, by name (SAEs by partition key)."""

    root: Path
    models: dict[str, ModelSpec]
    saes: dict[str, SaeSpec]
    problems: dict[Path, LatentglossError] = field(default_factory=dict)
    """Files that were left out, with the reason."""
    embedders: dict[str, EmbedderSpec] = field(default_factory=lambda: {MINILM.name: MINILM})
    language_models: dict[str, LanguageModelSpec] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path) -> Registry:
        """Reads every TOML file below `root`. Raises RegistryError only if `root` is not a folder."""
        if not root.is_dir():
            raise RegistryError(
                f"{root} is not a folder", expected="a registry with models/ and saes/", todo="create it"
            )
        problems: dict[Path, LatentglossError] = {}
        models = _read_folder(ModelSpec, root / "models", problems)
        saes: dict[str, SaeSpec] = {}
        folded: dict[str, str] = {}
        for path in sorted((root / "saes").rglob("*.toml")):
            try:
                sae = _read(SaeSpec, path)
                if sae.model not in models:
                    raise RegistryError(
                        f"{path}: model {sae.model!r} is not declared",
                        expected=f"one of {sorted(models)}",
                        todo=f"add {root / 'models' / (sae.model + '.toml')} or correct `model`",
                    )
                _check_unique(sae.partition, folded, path)
                saes[sae.partition] = sae
            except LatentglossError as e:
                problems[path] = e
        builtin = {MINILM.name: MINILM}
        embedders = _read_folder(EmbedderSpec, root / "embedders", problems)
        if any(path.parent == root / "embedders" and MINILM.name in _meant(path) for path in problems):
            # The user's own entry has a mistake, and must not be replaced by the built-in one without a word.
            builtin = {}
        language_models = _read_folder(LanguageModelSpec, root / "language_models", problems)
        return cls(root, models, saes, problems, {**builtin, **embedders}, language_models)

    def model(self, name: str) -> ModelSpec:
        """A model by name. Raises InputError if it is not declared, or its file's error if that has a mistake."""
        return self._find("model", self.models, name, self.root / "models" / f"{name}.toml")

    def embedder(self, name: str) -> EmbedderSpec:
        """An embedder by name. Raises InputError if it is not declared, or its file's error if that has a mistake."""
        return self._find("embedder", self.embedders, name, self.root / "embedders" / f"{name}.toml")

    def language_model(self, name: str) -> LanguageModelSpec:
        """A language model by name. Raises as `model` does."""
        path = self.root / "language_models" / f"{name}.toml"
        return self._find("language model", self.language_models, name, path)

    def sae(self, partition: str) -> SaeSpec:
        """An SAE by its partition key. Raises InputError if the key is malformed or the SAE is not declared."""
        split_partition(partition)
        return self._find("SAE", self.saes, partition)

    def saes_of(self, model: str) -> list[SaeSpec]:
        """The SAEs of one model, in the order of their files' paths."""
        return [sae for sae in self.saes.values() if sae.model == model]

    def may_declare_more(self) -> bool:
        """Whether a file that cannot be read may declare a model or an SAE."""
        folders = [self.root / "models", self.root / "saes"]
        return any(path.is_relative_to(folder) for path in self.problems for folder in folders)

    def _find(self, kind: str, entries: Mapping[str, Entry], name: str, path: Path | None = None) -> Entry:
        """The entry called `name`. `path` is the file that would declare it; an SAE's file can have any name."""
        if name in entries:
            return entries[name]
        if path is None:
            todo = "see `latentgloss saes list`, which also lists files with a mistake and the reason"
        elif path in self.problems:
            raise self.problems[path]
        else:
            todo = f"add {path}, or correct the name in latentgloss.toml or in the command"
        raise InputError(
            f"{kind} {name!r} is not in the registry {self.root}", expected=f"one of {sorted(entries)}", todo=todo
        )


def _read(kind: type[Entry], path: Path) -> Entry:
    return validated(kind, {**read_toml(path, RegistryError), "folder": path.parent}, str(path), RegistryError)


def _read_folder(kind: type[NamedEntry], folder: Path, problems: dict[Path, LatentglossError]) -> dict[str, NamedEntry]:
    """The entries of one folder by name; the error of each file with a mistake is added to `problems`."""
    found: dict[str, NamedEntry] = {}
    folded: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            entry = _read(kind, path)
            _check_unique(entry.name, folded, path)
            found[entry.name] = entry
        except LatentglossError as e:
            problems[path] = e
    return found


def _meant(path: Path) -> set[str]:
    """The names that a file with a mistake may declare: its own name, and the `name` in it if that can be read."""
    try:
        return {path.stem, str(read_toml(path, RegistryError).get("name"))}
    except RegistryError:
        return {path.stem}


def _check_unique(name: str, folded: dict[str, str], path: Path) -> None:
    """Adds a name to the known ones (by their lower case), or raises RegistryError if it is not distinct from them."""
    same = folded.get(name.casefold())
    if same is None:
        folded[name.casefold()] = name
        return
    if same == name:
        raise RegistryError(
            f"{path}: {name!r} is declared twice", expected="one file for each name", todo="rename one of them"
        )
    raise RegistryError(
        f"{path}: {name!r} differs from {same!r} only in upper and lower case",
        expected="names that are different folders on every file system",
        todo="rename one of them",
    )
