"""The settings file `latentgloss.toml`: every setting, in one validated table per stage or purpose.

What belongs here: each setting with its default, meaning and unit. A stage's recipe contains exactly the settings that
the stage declares in `pipeline/graph.py`. `[machine]` (batch sizes, workers, paths) is in no recipe, because it must
not change results. Secrets come from the environment, never from this file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentgloss.config.toml import Strict, read_toml, user_path, validated
from latentgloss.errors import SettingsError
from latentgloss.schema import GRAM

FILE = "latentgloss.toml"
"""Name of the settings file."""
VARIABLE = "LATENTGLOSS_CONFIG"
"""Environment variable that can name the settings file."""
LLM = "llm:"
"""Prefix of a language model's name in `judges`. Score tables contain the name without the prefix."""
EMBEDDER = "embedder:"
"""Prefix of an embedder's name in `judges`. Score tables contain the judge `embedder` and the embedder's name."""


LARGEST = 10**9
"""Largest count that a setting can be: more than any corpus has, and far from overflow."""

Sample = Annotated[int, Field(ge=1, le=LARGEST)] | Literal["all"]
"""A number of latents, or all of them."""


class CorpusSettings(Strict):
    """Splits and near-duplicates (docs/methods.md, Data)."""

    seed: int = 0
    """Decides the split of each cluster."""
    shares: tuple[float, float, float] = (0.40, 0.10, 0.50)
    """Shares of the near-duplicate clusters that go into explain, select and test."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """A document is removed if its estimated similarity to a kept document is at least this."""


class ActivationSettings(Strict):
    """The cache of activations."""

    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Stored activations are rounded to this precision."""


class ContextSettings(Strict):
    """Windows, eligibility and samples of activating contexts. Numbers of contexts are per latent."""

    seed: int = 0
    length: int = Field(default=32, ge=GRAM, le=255)
    """Tokens per context."""
    sampler: Literal["quantile", "top", "random", "mixed", "importance"] = "quantile"
    """How explain contexts are drawn (docs/methods.md, Samples). Select and test are always drawn by `quantile`."""
    explain: int = Field(default=400, ge=40, le=LARGEST)
    """Maximum number of explain contexts. An explainer that shows 40 contexts shows the first 40 of the sample."""
    select: int = Field(default=100, ge=0, le=LARGEST)
    """Maximum number of select contexts."""
    test: int = Field(default=100, ge=10, le=LARGEST)
    """Maximum number of test contexts."""
    per_document: int = Field(default=2, ge=1, le=LARGEST)
    """Maximum number of test contexts from one document."""
    min_explain: int = Field(default=40, ge=1, le=LARGEST)
    """Activating explain windows that a latent needs to be eligible."""
    min_test: int = Field(default=30, ge=1, le=LARGEST)
    """Activating test windows that a latent needs to be eligible."""
    min_test_documents: int = Field(default=10, ge=1, le=LARGEST)
    """Documents from which these test windows must come."""
    min_active_tokens: int = Field(default=0, ge=0, le=LARGEST)
    """Unmasked tokens of the whole corpus on which a latent must be active to be eligible. Profile `paper` only."""
    pool: Literal["split", "one"] = "split"
    """`one` draws explain, select and test contexts from all windows, so that contexts which an explainer was shown are
    also scored. Profile `paper` only."""


class NegativeSettings(Strict):
    """Samples of non-activating contexts. Numbers of contexts are per latent and stratum."""

    seed: int = 0
    strata: tuple[Literal["similar", "neighbour", "same_document", "random"], ...] = Field(
        default=("same_document", "random"), min_length=1
    )
    """The strata to sample from (docs/methods.md, Non-activating contexts)."""
    explain: int = Field(default=400, ge=1, le=LARGEST)
    """Maximum number of explain contexts."""
    select: int = Field(default=100, ge=0, le=LARGEST)
    """Maximum number of select contexts."""
    test: int = Field(default=100, ge=1, le=LARGEST)
    """Maximum number of test contexts."""
    nearest: int = Field(default=200, ge=1, le=LARGEST)
    """Windows per latent and split in the stratum `similar`: those nearest to the latent's positives in the split."""
    embedder: str | None = None
    """The embedder that decides which windows are near. None means a registered embedder that no scorer uses, or the
    scorers' first one if there is none."""


class PatternSettings(Strict):
    """The explainer `pattern`."""

    rules: int = Field(default=10, ge=1, le=10)
    """Maximum number of rules in a pattern. Its sentence states all of them."""


class LlmSettings(Strict):
    """The explainers that ask a language model."""

    sample: Sample = 1000
    """Number of eligible latents per SAE that a language model explains, or `all`. The default is limited so that
    explaining all latents of a wide SAE is a deliberate choice. The others get rows with the status `not_sampled`."""
    contexts: int = Field(default=40, ge=1, le=LARGEST)
    """Activating contexts shown, the first ones of the explain sample."""
    silent: int = Field(default=20, ge=1, le=LARGEST)
    """Non-activating contexts shown by `contrastive`, drawn from the strata in turn."""
    max_tokens: int = Field(default=160, ge=16, le=LARGEST)
    """Maximum number of tokens in a reply."""
    max_tokens_cot: int = Field(default=800, ge=16, le=LARGEST)
    """Maximum number of tokens in a reply to `llm_cot`, which reasons before it explains."""
    temperature: float = Field(default=0.0, ge=0, le=2)


class BestOfKSettings(Strict):
    """The explainer `best_of_k`."""

    k: int = Field(default=3, ge=2, le=20)
    """Number of candidate explanations per latent."""
    temperature: float = Field(default=0.8, gt=0, le=2)
    """Temperature at which the candidates are drawn."""
    judge: str | None = None
    """The language model that judges the candidates on select contexts; None means the model that explains."""
    per_class: int = Field(default=20, ge=1, le=LARGEST)
    """Maximum number of activating, and of non-activating, select contexts on which the candidates are judged."""


class ImportedSettings(Strict):
    """The explainer `imported`, which takes explanations from a file."""

    file: str | None = None
    """A `.jsonl` or `.jsonl.gz` file as Neuronpedia exports it, or a `.csv` file with the columns latent and
    explanation. `{model}`, `{hookpoint}` and `{sae}` in the name are replaced by the parts of the SAE's name, so that
    each SAE has its own file."""
    explained_by: str | None = None
    """Imports only explanations with this `explanationModelName`."""
    type: str | None = None
    """Imports only explanations with this `typeName`."""


class ExplanationSettings(Strict):
    """Which explainers run, and how."""

    explainers: tuple[str, ...] = ("pattern", "token_table", "null:pattern")
    """Names of explainers. `null:NAME` judges each latent by other latents' explanations from explainer NAME."""
    nulls: int = Field(default=5, ge=1, le=20)
    """Number of other latents whose explanations each latent receives from `null:NAME`."""
    seed: int = 0
    """Decides the partners of null explanations, the candidates of `best_of_k`, and the latents of `llm.sample`."""
    model: str | None = None
    """The language model of `llm`, `llm_cot`, `contrastive` and `best_of_k`, by its name in the registry."""
    pattern: PatternSettings = PatternSettings()
    llm: LlmSettings = LlmSettings()
    best_of_k: BestOfKSettings = BestOfKSettings()
    imported: ImportedSettings = ImportedSettings()


class ScorerSettings(Strict):
    """Settings that every scorer has."""

    seed: int = 0
    """Decides the sample of latents, the donors of wrong marks in fuzzing, and the trials in intruder detection."""
    sample: int | None = Field(default=None, ge=1, le=LARGEST)
    """Number of eligible latents per SAE that are judged; None means all. The other latents get rows with the status
    `not_sampled`."""


class LlmJudgeSettings(Strict):
    """Language models as judges."""

    sample: Sample = 1000
    """Number of eligible latents per SAE that language models judge, out of those that the scorer judges, or `all`. It
    also limits explanations that no language model wrote, because otherwise every pattern of a wide SAE would be paid
    for."""
    null_sample: Sample = 500
    """The same number for null explanations, of which each latent has several."""
    per_prompt: int = Field(default=5, ge=1, le=20)
    """Contexts judged in one prompt."""
    max_tokens: int = Field(default=100, ge=16, le=LARGEST)
    """Maximum number of tokens in a reply."""


class JudgedSettings(ScorerSettings):
    """Settings of scorers whose judges are chosen by name."""

    judges: tuple[str, ...] = ("executed",)
    """`executed`, `embedder:NAME` for the embedder NAME of the registry, which judges labels, and `llm:NAME` for the
    language model NAME."""
    llm: LlmJudgeSettings = LlmJudgeSettings()


class FuzzingSettings(JudgedSettings):
    """The scorer `fuzzing`."""

    wrong_marks: Literal["donor", "random"] = "donor"
    """With `random`, wrong examples are non-activating contexts with marks in random places. Profile `paper` only."""


class IntruderSettings(ScorerSettings):
    """The scorer `intruder`."""

    sample: int | None = Field(default=1000, ge=1, le=LARGEST)
    """As for other scorers, except that the default is not all latents, because most judges of trials are paid."""
    judges: tuple[str, ...] = ()
    """`llm:NAME` for the language model NAME of the registry, and `tokens`, which compares the marked tokens. Without
    judges the stage asks nothing."""


class EmbeddingSettings(ScorerSettings):
    """The scorer `embedding`."""

    embedders: tuple[str, ...] = Field(default=("minilm",), min_length=1)
    """Names of embedders in the registry. Each of them makes vectors of contexts and explanations."""


class SearchSettings(Strict):
    """The search index."""

    embedder: str = "minilm"
    """The embedder of the search index, by its name in the registry."""


class ReportSettings(Strict):
    """The report's bootstrap intervals."""

    seed: int = Field(default=0, ge=0)
    resamples: int = Field(default=2000, ge=200, le=1_000_000)
    """Number of bootstrap resamples."""


class BudgetSettings(Strict):
    """Limits for all paid language models together, over all runs of a store (`latentgloss.llm.ledger`). In no recipe.

    If neither limit is set, paid models are not used.
    """

    tokens: int | None = Field(default=None, ge=0)
    """Maximum number of tokens of prompts and replies."""
    usd: float | None = Field(default=None, ge=0)
    """Maximum cost in USD."""


class MachineSettings(Strict):
    """Settings of the machine that runs the stages. They are in no recipe."""

    device: str | None = None
    """A PyTorch device such as `cpu` or `cuda:1`; None means a GPU if there is one."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """Threads that PyTorch uses; None means its default."""
    batch_tokens: int | None = Field(default=None, ge=256, le=LARGEST)
    """Tokens per forward pass; None means 4,096 on a CPU and 32,768 on a GPU. Set a lower number if a GPU's memory is
    too small."""
    embedding_batch: int = Field(default=1024, ge=1, le=LARGEST)
    """Texts embedded between two writes, which is the most that a killed run loses."""
    workers: int | None = Field(default=None, ge=1, le=4096)
    """Processes for explainers that compute, and threads for contexts; None means one per core."""
    model_cache: Path = Path("~/.cache/latentgloss")
    """Folder for converted model weights."""


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
"""The settings that profile `paper` fixes: the protocol of Paulo et al. (docs/methods.md, Profile `paper`)."""
_PAPER_ONLY = {("contexts", "pool"): "split", ("contexts", "min_active_tokens"): 0, ("fuzzing", "wrong_marks"): "donor"}
"""Settings that only profile `paper` may change, with the value they have in every other profile."""


class Settings(Strict):
    """The content of a settings file, with one attribute per table."""

    profile: Literal["default", "paper"] = "default"
    """`paper` samples contexts and negatives and marks tokens in fuzzing as Paulo et al. do, for comparison with
    published figures. It scores contexts that explainers were shown, and its fuzzing can be solved without the
    explanation; therefore every row of its scores names the profile."""
    store: str = "data"
    """Folder of the store."""
    registry: Path = Path("registry")
    """Folder of the registry."""
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
    """Folder of the settings file; relative paths start there."""

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Applies `PAPER` in profile `paper`; rejects the settings of `_PAPER_ONLY` in every other profile."""
        # What is not a table is left to the validation of its field.
        tables = {name: value for name, value in data.items() if isinstance(value, dict)}
        if data.get("profile") != "paper":
            alone = [f"{t}.{k}" for (t, k), v in _PAPER_ONLY.items() if tables.get(t, {}).get(k, v) != v]
            if alone:
                raise ValueError(f'{", ".join(alone)}: only profile = "paper" sets this')
            return data
        for table, values in PAPER.items():
            if table in data and table not in tables:
                continue
            given = tables.get(table, {})
            other = [f"{table}.{k} = {given[k]!r}" for k, v in values.items() if k in given and given[k] != v]
            if other:
                raise ValueError(f'{", ".join(other)}: profile "paper" sets this itself, so remove the setting')
            data = {**data, table: {**given, **values}}
        return data

    def asks(self, stage: str) -> bool:
        """Whether a stage asks a language model under these settings."""
        if stage == "explanations":
            return self.explanations.model is not None
        scorer = getattr(self, stage.removesuffix("_scores"), None)
        return any(name.startswith(LLM) for name in getattr(scorer, "judges", ()))

    def judging_embedders(self, scorer: str) -> list[str]:
        """Names of the embedders that judge labels for a scorer, each once."""
        judges = getattr(getattr(self, scorer), "judges", ())
        return list(dict.fromkeys(name.removeprefix(EMBEDDER) for name in judges if name.startswith(EMBEDDER)))

    @property
    def store_root(self) -> Path:
        """Absolute path of the store."""
        return (self.folder / user_path(self.store, SettingsError)).resolve()

    @property
    def registry_root(self) -> Path:
        """Absolute path of the registry."""
        return (self.folder / user_path(self.registry, SettingsError)).resolve()


def find() -> Path:
    """Path of the settings file: `LATENTGLOSS_CONFIG` if set, otherwise the nearest `latentgloss.toml`.

    Searches the current folder and the folders above it. Raises SettingsError if there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return user_path(named, SettingsError).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    raise SettingsError(
        f"no {FILE} in {here} or above it",
        expected=f"a settings file (an empty one means that every setting has its default), or {VARIABLE} naming one",
        todo="change to the project's folder, or run `touch latentgloss.toml` to create an empty file",
    )


def load(path: Path | None = None) -> Settings:
    """Settings from the file `path`, or from the file that `find` finds. Raises SettingsError."""
    path = find() if path is None else path.resolve()
    data = {**read_toml(path, SettingsError), "folder": path.parent}
    return validated(Settings, data, str(path), SettingsError)


__all__ = ["FILE", "VARIABLE", "Settings", "find", "load"]
