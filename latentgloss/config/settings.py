"""`latentgloss.toml`: one validated table per stage.

What belongs here: what a user may choose, with its default, meaning and unit. A stage's recipe contains
exactly the settings the stage declares in `stages.py`; `[machine]` (batch sizes, workers, paths) is in no
recipe, since it must not change results. Secrets come from the environment, never from this file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentgloss.config.toml import Strict, read_toml, validated
from latentgloss.errors import SettingsError
from latentgloss.schema import GRAM

FILE = "latentgloss.toml"
VARIABLE = "LATENTGLOSS_CONFIG"
LLM = "llm:"
"""Before the name of a language model in `judges`. Its name alone is the key in score tables."""


Sample = Annotated[int, Field(ge=1)] | Literal["all"]


class CorpusSettings(Strict):
    """Splits and near-duplicates (docs/methods.md, Data)."""

    seed: int = 0
    shares: tuple[float, float, float] = (0.40, 0.10, 0.50)
    """Share of near-duplicate clusters in explain, select, test."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Estimated similarity to a kept document from which a document is left out."""


class ActivationSettings(Strict):
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Stored activations are rounded to this precision."""


class ContextSettings(Strict):
    """Windows, eligibility and samples. Numbers are contexts per latent."""

    seed: int = 0
    length: int = Field(default=32, ge=GRAM, le=255)
    sampler: Literal["quantile", "top", "random", "mixed", "importance"] = "quantile"
    """How explain contexts are drawn (docs/methods.md, Samples); select and test are always drawn over deciles."""
    explain: int = Field(default=400, ge=40)
    """Most explain contexts kept; an explainer that shows 40 shows the first 40 of the sample."""
    select: int = Field(default=100, ge=0)
    test: int = Field(default=100, ge=10)
    per_document: int = Field(default=2, ge=1)
    """Most test contexts from one document."""
    min_explain: int = Field(default=40, ge=1)
    min_test: int = Field(default=30, ge=1)
    min_test_documents: int = Field(default=10, ge=1)
    min_active_tokens: int = Field(default=0, ge=0)
    """Unmasked tokens of the whole corpus on which a latent must be active. Profile `paper` only."""
    pool: Literal["split", "one"] = "split"
    """`one`: explain, select and test are all drawn from all windows, so that what was shown is also scored. Profile
    `paper` only."""


class NegativeSettings(Strict):
    """Non-activating contexts per latent and stratum."""

    seed: int = 0
    strata: tuple[Literal["similar", "neighbour", "same_document", "random"], ...] = Field(
        default=("same_document", "random"), min_length=1
    )
    explain: int = Field(default=400, ge=1)
    select: int = Field(default=100, ge=0)
    test: int = Field(default=100, ge=1)
    nearest: int = Field(default=200, ge=1)
    """Windows per latent and split that are `similar`: those nearest to its positives there."""
    embedder: str | None = None
    """Embedder that says what is near; None: one that no scorer uses, where there is one, else the scorers' first."""


class PatternSettings(Strict):
    rules: int = Field(default=10, ge=1, le=10)
    """Most rules in one pattern; all of them are in its sentence."""


class LlmSettings(Strict):
    """Of explainers that ask a language model."""

    sample: Sample = 1000
    """Eligible latents that are asked about per SAE, so that a wide one is paid for on purpose only; or `all`. The
    others are rows of status `not_sampled`."""
    contexts: int = Field(default=40, ge=1)
    """Activating contexts shown: the first of the explain sample."""
    silent: int = Field(default=20, ge=1)
    """Non-activating contexts shown by `contrastive`; strata take turns."""
    max_tokens: int = Field(default=160, ge=16)
    """Most tokens of a reply."""
    max_tokens_cot: int = Field(default=800, ge=16)
    """The same of `llm_cot`, which thinks aloud first."""
    temperature: float = Field(default=0.0, ge=0, le=2)


class BestOfKSettings(Strict):
    k: int = Field(default=3, ge=2, le=20)
    temperature: float = Field(default=0.8, gt=0, le=2)
    judge: str | None = None
    """Language model that judges them on select; None: the one that explains."""
    per_class: int = Field(default=20, ge=1)
    """Most select contexts, activating and not, they are judged on."""


class ImportedSettings(Strict):
    """Explanations from elsewhere."""

    file: str | None = None
    """`.jsonl` or `.jsonl.gz` as Neuronpedia exports it, or `.csv` with columns latent and explanation. `{model}`,
    `{hookpoint}` and `{sae}` stand for the parts of the SAE's name: one file per SAE."""
    explained_by: str | None = None
    """Only those of this `explanationModelName`."""
    type: str | None = None
    """Only those of this `typeName`."""


class ExplanationSettings(Strict):
    explainers: tuple[str, ...] = ("pattern", "token_table", "null:pattern")
    nulls: int = Field(default=5, ge=1, le=20)
    """Other latents whose explanations `null:X` gives each latent in turn."""
    seed: int = 0
    """Draws the partners of nulls, the samples of `best_of_k`, and the latents of `llm.sample`."""
    model: str | None = None
    """Language model of `llm`, `llm_cot`, `contrastive` and `best_of_k`: a name in the registry."""
    pattern: PatternSettings = PatternSettings()
    llm: LlmSettings = LlmSettings()
    best_of_k: BestOfKSettings = BestOfKSettings()
    imported: ImportedSettings = ImportedSettings()


class ScorerSettings(Strict):
    """What every scorer has."""

    seed: int = 0
    """Draws the sample of latents and, in fuzzing, the donors of wrong marks; the trials of intruder detection."""
    sample: int | None = Field(default=None, ge=1)
    """Eligible latents that are judged per SAE; None: all. The others are rows of status `not_sampled`."""


class LlmJudgeSettings(Strict):
    sample: Sample = 1000
    """Eligible latents that language models judge per SAE, of those that the scorer judges; or `all`. What no language
    model explains is judged, too: without this, every pattern of a wide SAE would be paid for."""
    null_sample: Sample = 500
    """The same for nulls, of which there are several per latent."""
    per_prompt: int = Field(default=5, ge=1, le=20)
    """Contexts judged together."""
    max_tokens: int = Field(default=100, ge=16)
    """Most tokens of a reply."""


class JudgedSettings(ScorerSettings):
    """Of scorers whose judges are chosen by name."""

    judges: tuple[str, ...] = ("executed",)
    """`executed`, and `llm:NAME` with a language model of the registry."""
    llm: LlmJudgeSettings = LlmJudgeSettings()


class FuzzingSettings(JudgedSettings):
    wrong_marks: Literal["donor", "random"] = "donor"
    """`random`: wrong examples are non-activating contexts with marks anywhere. Profile `paper` only."""


class IntruderSettings(ScorerSettings):
    sample: int | None = Field(default=1000, ge=1)
    """As for other scorers; unlike theirs not all by default, since most judges of trials are paid."""
    judges: tuple[str, ...] = ()
    """`llm:NAME` with a language model of the registry, and `tokens`, which compares what is marked. Without any,
    nothing is asked."""


class EmbeddingSettings(ScorerSettings):
    embedders: tuple[str, ...] = Field(default=("minilm",), min_length=1)
    """Names in the registry's `embedders/`; vectors of contexts and explanations are made with each."""


class SearchSettings(Strict):
    embedder: str = "minilm"
    """Embedder of the search index."""


class ReportSettings(Strict):
    seed: int = 0
    resamples: int = Field(default=2000, ge=200)


class BudgetSettings(Strict):
    """Of all paid language models together, store-wide and over all runs (`latentgloss.llm.ledger`). In no recipe."""

    tokens: int | None = Field(default=None, ge=0)
    """Of prompts and replies."""
    usd: float | None = Field(default=None, ge=0)
    """Without one of the two, nothing is paid for."""


class MachineSettings(Strict):
    """Facts of this machine. In no recipe."""

    device: str | None = None
    """None: a GPU where there is one."""
    threads: int | None = Field(default=None, ge=1)
    batch_tokens: int | None = Field(default=None, ge=256)
    """Tokens per forward pass; None: 4,096 on a CPU, 32,768 on a GPU. Less where a GPU's memory is full."""
    embedding_batch: int = Field(default=1024, ge=1)
    """Texts embedded between two writes: what a killed run loses at most."""
    workers: int | None = Field(default=None, ge=1)
    """Processes for explainers that compute, threads for contexts; None: one per core."""
    model_cache: Path = Path("~/.cache/latentgloss")
    """Converted model weights."""


PAPER: dict[str, dict[str, Any]] = {
    "contexts": {
        "pool": "one",
        "explain": 40,
        "min_active_tokens": 200,
        "min_explain": 1,
        "min_test": 1,
        "min_test_documents": 1,
        "per_document": 1_000_000,
    },
    "negatives": {"strata": ["random"]},
    "fuzzing": {"wrong_marks": "random"},
}
"""What profile `paper` sets: the protocol of Paulo et al. (docs/methods.md, Profile `paper`)."""
_OTHERWISE = {("contexts", "pool"): "split", ("contexts", "min_active_tokens"): 0, ("fuzzing", "wrong_marks"): "donor"}
"""What no other profile may set otherwise."""


class Settings(Strict):
    profile: Literal["default", "paper"] = "default"
    """`paper`: contexts, negatives and fuzzing as in Paulo et al., to compare with published figures. Each row of its
    scores says so: it scores what explainers were shown, and its fuzzing can be solved without the explanation."""
    store: str = "data"
    registry: Path = Path("registry")
    corpus: CorpusSettings = CorpusSettings()
    activations: ActivationSettings = ActivationSettings()
    contexts: ContextSettings = ContextSettings()
    negatives: NegativeSettings = NegativeSettings()
    explanations: ExplanationSettings = ExplanationSettings()
    detection: JudgedSettings = JudgedSettings()
    fuzzing: FuzzingSettings = FuzzingSettings()
    intruder: IntruderSettings = IntruderSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    search: SearchSettings = SearchSettings()
    report: ReportSettings = ReportSettings()
    budget: BudgetSettings = BudgetSettings()
    machine: MachineSettings = MachineSettings()
    folder: Path = Path()
    """Folder of the file; relative paths start here."""

    @model_validator(mode="before")
    @classmethod
    def _of_profile(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A profile is nothing but settings: those of `PAPER` together, none of them otherwise."""
        if data.get("profile") != "paper":
            alone = [f"{t}.{k}" for (t, k), v in _OTHERWISE.items() if dict(data.get(t, {})).get(k, v) != v]
            if alone:
                raise ValueError(f'{", ".join(alone)}: only profile = "paper" sets this')
            return data
        for table, values in PAPER.items():
            given = dict(data.get(table, {}))
            other = [f"{table}.{k} = {given[k]!r}" for k, v in values.items() if k in given and given[k] != v]
            if other:
                raise ValueError(f'{", ".join(other)}: profile "paper" sets this itself')
            data = {**data, table: {**given, **values}}
        return data

    def asks(self, stage: str) -> bool:
        """Whether a stage asks a language model."""
        if stage == "explanations":
            return self.explanations.model is not None
        scorer = getattr(self, stage.removesuffix("_scores"), None)
        return any(name.startswith(LLM) for name in getattr(scorer, "judges", ()))

    @property
    def store_root(self) -> Path:
        return (self.folder / Path(self.store).expanduser()).resolve()

    @property
    def registry_root(self) -> Path:
        return (self.folder / self.registry.expanduser()).resolve()


def find() -> Path:
    """The settings file: `LATENTGLOSS_CONFIG`, else the nearest `latentgloss.toml` upward from here."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    raise SettingsError(
        f"no {FILE} in {here} or above it",
        expected=f"a settings file (an empty one means all defaults), or {VARIABLE} naming one",
        todo="start in the project's folder, or run `touch latentgloss.toml`",
    )


def load(path: Path | None = None) -> Settings:
    """Settings from `path`, or from wherever `find` finds them. Raises SettingsError."""
    path = find() if path is None else path.resolve()
    data = {**read_toml(path, SettingsError), "folder": path.parent}
    return validated(Settings, data, str(path), SettingsError)


__all__ = ["FILE", "VARIABLE", "Settings", "find", "load"]
