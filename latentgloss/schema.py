"""Every table latentgloss stores: columns, dtypes, units, one sentence each.

What belongs here: the shape of stored data and nothing else. A stage builds a frame, passes it through
`Table.conform` and hands it to the store; a reader finds the same columns. `docs/data_dictionary.md` is
generated from this file (`make docs`), so a column that is not described does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

SPLITS = ("explain", "select", "test")
"""Order matters: a later split never contains what an earlier one showed. Share of clusters 40/10/50."""

POPULATION = "population"
"""Arm of scores that stand for all non-activating contexts: every stratum, weighted by its share."""

DEFAULT_PROFILE = "default"
"""Whose scores need no label; those of any other profile are shown with its name."""
STRATA = ("similar", "neighbour", "same_document", "random")
"""Kinds of non-activating context, disjoint in this order (a context belongs to the first that fits)."""

GRAM = 13
"""Tokens in a row that nothing scored shares with anything shown."""

BLOCK = 256
"""Latents per block: latent ids with the same `id // BLOCK` are computed and stored together."""


@dataclass(frozen=True)
class Column:
    name: str
    dtype: Any
    doc: str
    unit: str = ""
    nullable: bool = False
    encoding: str = ""
    """Parquet encoding; empty: the writer's choice."""


@dataclass(frozen=True)
class Table:
    """One stored table. `part` names the column whose values are versioned apart (see `store.py`)."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    part: str | None = None
    row_group: int = 2**20
    """Rows per Parquet row group; what a reader with a predicate must read at least."""

    @cached_property
    def schema(self) -> pl.Schema:
        return pl.Schema({c.name: c.dtype for c in self.columns})

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns `frame` with exactly this table's columns, order and dtypes.

        Raises StoreError if a column is missing or unknown, if a cast loses values, or if a column that is
        not nullable holds nulls.
        """
        missing = [c.name for c in self.columns if c.name not in frame.columns]
        unknown = [c for c in frame.columns if c not in self.schema]
        if missing or unknown:
            raise StoreError(
                f"table {self.name!r} was given columns {frame.columns}",
                expected=f"exactly {list(self.schema)}",
                todo="this is a defect in the stage that writes it; please report it",
            )
        frame = frame.select(list(self.schema)).cast(self.schema, strict=True)
        for column in self.columns:
            if not column.nullable and frame[column.name].null_count():
                raise StoreError(
                    f"table {self.name!r} was given {frame[column.name].null_count()} empty values in {column.name!r}",
                    expected="a value in every row",
                    todo="this is a defect in the stage that writes it; please report it",
                )
        return frame

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)

    def frame(self, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
        return self.conform(pl.DataFrame(list(rows), schema=self.schema))


LATENT = Column("latent", pl.UInt32, "Index of the latent in its SAE.")
SPLIT = Column("split", pl.String, "`explain`, `select` or `test`; no document is in two of them.")
CONTEXT = Column("context", pl.UInt32, "Number of the window in the corpus: position // context_length.")
EXPLAINER = Column(
    "explainer", pl.String, "Name of the explainer, as in settings; `none`: the latent itself is judged."
)
STATUS_EXPLANATION = (
    "`ok`, `failed`, `no_partner`, `parse_failed`, `refused`, `llm_error`, `unsupported`, `not_imported`, `not_sampled`"
)

DOCUMENTS = Table(
    "documents",
    "One row per document of the corpus, kept or not.",
    (
        Column("document", pl.UInt32, "Number of the document, in reading order."),
        Column("name", pl.String, "Name in its source (module path, file and line, …)."),
        Column("content_sha256", pl.String, "Hash of the text as read."),
        Column("cluster", pl.UInt32, "Near-duplicate cluster; a cluster is in one split."),
        SPLIT,
        Column("status", pl.String, "`ok`, `duplicate_exact`, `duplicate_near`, `empty`, `over_limit`."),
        Column("duplicate_of", pl.UInt32, "The document that was kept instead.", nullable=True),
        Column("n_tokens", pl.UInt32, "Tokens of the document in the corpus; 0 if it was left out.", "tokens"),
        Column("n_characters", pl.UInt32, "Length of the text.", "characters"),
    ),
    key=("document",),
)

SPANS = Table(
    "spans",
    "Where each document lies in the token array; one row per piece within one sequence.",
    (
        Column("document", pl.UInt32, "Number of the document."),
        Column("start", pl.UInt32, "First position of the piece.", "position"),
        Column("end", pl.UInt32, "Position after its last token.", "position"),
    ),
    key=("start",),
)

SEQUENCES = Table(
    "sequences",
    "One row per sequence of the token array.",
    (Column("sequence", pl.UInt32, "Row of the token array."), SPLIT),
    key=("sequence",),
)

ACTIVATIONS = Table(
    "activations",
    "Every active (latent, position) pair. A shard covers a range of positions, sorted by (latent, position).",
    (
        Column("latent", pl.UInt32, "Index of the latent in its SAE.", encoding="DELTA_BINARY_PACKED"),
        Column("position", pl.UInt32, "Global token index in the corpus.", "position", encoding="DELTA_BINARY_PACKED"),
        Column(
            "activation",
            pl.Float32,
            "Activation, > 0, rounded to bfloat16 by default.",
            "model units",
            encoding="BYTE_STREAM_SPLIT",
        ),
    ),
    key=("latent", "position"),
    row_group=2**16,
)

MASKED = Table(
    "masked",
    "Positions that never make a context activating: BOS, special tokens, position 0, attention sinks.",
    (
        Column("position", pl.UInt32, "Global token index.", "position"),
        Column("why", pl.String, "`special` (BOS and other special tokens), `first` or `sink`."),
    ),
    key=("position",),
)

LATENTS = Table(
    "latents",
    "One row per latent of the SAE, dead ones included.",
    (
        LATENT,
        Column("count", pl.UInt64, "Unmasked tokens on which the latent is active.", "tokens"),
        Column("density", pl.Float64, "count / unmasked tokens."),
        Column("max", pl.Float32, "Largest activation on an unmasked token; 0 if dead.", "model units"),
        Column("mean", pl.Float64, "Mean over its active unmasked tokens; 0 if dead.", "model units"),
        Column("quantiles", pl.List(pl.Float32), "11 edges (0, .1, … 1) of its active values.", "model units"),
        Column("histogram", pl.List(pl.UInt32), "20 equal bins from 0 to max.", "tokens"),
        Column("token_entropy", pl.Float64, "Entropy of the token ids it is active on.", "nats"),
        Column("top_outputs", pl.List(pl.UInt32), "Ten tokens its decoder direction raises most (logit lens)."),
        Column(
            "neighbours",
            pl.List(pl.UInt32),
            "Other latents by decoder cosine, descending: the first ten, and up to 64 with cosine >= .5. "
            "Where cosines are 0 (neurons), which of them are listed says nothing.",
        ),
        Column("neighbour_cosines", pl.List(pl.Float32), "Their decoder cosines, same length."),
    ),
    key=("latent",),
)

ELIGIBILITY = Table(
    "eligibility",
    "One row per latent asked for: may it be explained and scored, and if not, why.",
    (
        LATENT,
        Column("status", pl.String, "`eligible`, `dead`, `rare`, `dense` or `one_document`."),
        Column("reason", pl.String, "The number that decided, in words; empty if eligible."),
        *(
            Column(f"n_{split}", pl.UInt32, f"Activating windows in {split}, after every exclusion.", "contexts")
            for split in SPLITS
        ),
        Column("n_test_documents", pl.UInt32, "Distinct documents among its test windows."),
        Column("n_dropped_several", pl.UInt32, "Activating windows dropped since they do not lie in one document."),
        Column("n_dropped_shared", pl.UInt32, "Windows dropped for a 13-gram shared with an earlier split."),
        Column("n_dropped_identical", pl.UInt32, "Token-identical windows beyond the first."),
        Column("firing_rate", pl.Float64, "Activating windows / windows of the test split (π)."),
    ),
    key=("latent",),
)

CONTEXTS = Table(
    "contexts",
    "Sampled activating contexts, with the latent's activation in each.",
    (
        LATENT,
        SPLIT,
        CONTEXT,
        Column("order", pl.UInt32, "Place in the sample; explainers that show 40 contexts show 0 to 39."),
        Column("decile", pl.UInt8, "Rank of the maximum within the split, 10 strongest; 0 below n = 10."),
        Column("max_activation", pl.Float32, "Maximum over unmasked tokens.", "model units"),
        Column("document", pl.UInt32, "Document of the window; clusters intervals."),
        Column("offsets", pl.List(pl.UInt8), "Offsets in the window at which the latent is active, ascending."),
        Column("activations", pl.List(pl.Float32), "Its activation there, same length.", "model units"),
    ),
    key=("latent", "split", "context"),
    part="split",
)

NEGATIVES = Table(
    "negatives",
    "Sampled non-activating contexts: the latent is zero on every token, masked ones included.",
    (
        LATENT,
        SPLIT,
        CONTEXT,
        Column("order", pl.UInt32, "Place in the sample of its stratum."),
        Column("stratum", pl.String, "`similar`, `neighbour`, `same_document` or `random`."),
        Column("document", pl.UInt32, "Document of the window; clusters intervals."),
    ),
    key=("latent", "split", "context"),
    part="split",
)

STRATA_SHARES = Table(
    "strata",
    "Size of each stratum in the population of non-activating windows, so that rates can be weighted back.",
    (
        LATENT,
        SPLIT,
        Column("stratum", pl.String, "Kind of non-activating context."),
        Column("population", pl.UInt32, "Windows of this stratum in the split.", "contexts"),
        Column("share", pl.Float64, "W_h: population / all non-activating windows of the split."),
        Column("sampled", pl.UInt32, "Windows sampled from it.", "contexts"),
    ),
    key=("latent", "split", "stratum"),
    part="split",
)

EXPLANATIONS = Table(
    "explanations",
    "One row per latent asked for and explainer, always; a failure is a row with a status and a reason.",
    (
        LATENT,
        EXPLAINER,
        Column("status", pl.String, f"{STATUS_EXPLANATION}, or why the latent is not eligible."),
        Column("reason", pl.String, "Why there is no explanation, in words; empty if there is one."),
        Column("explanation", pl.String, "The text; empty unless status is `ok`."),
        Column("program", pl.String, "Executable form as JSON, where the explainer has one.", nullable=True),
        Column("source_latent", pl.UInt32, "Latent the text was written for, if not this one.", nullable=True),
        Column("context_ids", pl.List(pl.UInt32), "Contexts the explainer was shown, in order."),
        Column("model", pl.String, "Language model, or empty.", nullable=True),
        Column("prompt_sha256", pl.String, "Hash of the rendered prompt.", nullable=True),
        Column("reply", pl.String, "What the model answered, unparsed.", nullable=True),
        Column("prompt_tokens", pl.UInt32, "Tokens of the prompt.", "tokens"),
        Column("completion_tokens", pl.UInt32, "Tokens of the reply.", "tokens"),
        Column("cost_usd", pl.Float64, "Price of the request; 0 for local models.", "USD"),
    ),
    key=("latent", "explainer"),
)

_SCORE_KEY = (
    Column("scorer", pl.String, "`detection`, `fuzzing`, …"),
    Column("judge", pl.String, "What answered."),
    Column("embedder", pl.String, "Embedding model the scorer used, or empty."),
    Column("profile", pl.String, "`default` or `paper`."),
)

JUDGEMENTS = Table(
    "judgements",
    "One row per context judged.",
    (
        LATENT,
        EXPLAINER,
        *_SCORE_KEY,
        Column("negatives", pl.String, "The arm: stratum of the non-activating contexts, `donor`, or `intruder`."),
        SPLIT,
        CONTEXT,
        Column(
            "stratum",
            pl.String,
            "`activating`, the kind of non-activating context, `donor`: wrongly marked, `intruder`: another latent's.",
        ),
        Column("decile", pl.UInt8, "Decile of an activating context, else 0."),
        Column("document", pl.UInt32, "Document of the context."),
        Column("truth", pl.Boolean, "Is the latent active in the context; in fuzzing, on the marked tokens?"),
        Column("prediction", pl.Boolean, "What the judge says; empty if unscored.", nullable=True),
        Column("evidence", pl.Float32, "What it says so by; higher is more active.", nullable=True),
        Column("probability", pl.Float32, "Calibrated probability, where the judge gives one.", nullable=True),
        Column(
            "prompt",
            pl.Int64,
            "Prompt it was judged in, with others: 60 bits of its hash; empty: alone.",
            nullable=True,
        ),
        Column("status", pl.String, "`ok`, `parse_failed`, `refused`, `llm_error`, `no_donor`, `unsupported`."),
        Column("reason", pl.String, "Why it is unscored, in words; empty if scored."),
    ),
    # `stratum`: in fuzzing a context is judged twice, with its own marks and with a donor's.
    key=("latent", "explainer", "scorer", "judge", "embedder", "profile", "negatives", "split", "context", "stratum"),
)

TRIALS = Table(
    "trials",
    "Intruder detection: one row per latent judged and trial, made or not.",
    (
        LATENT,
        Column("trial", pl.UInt8, "Number of the trial, from 0; two per decile."),
        Column("decile", pl.UInt8, "Decile of the latent's own windows."),
        Column("status", pl.String, "`ok`, `too_few` windows to show, or `no_intruder` that fits."),
        Column("reason", pl.String, "Why it could not be made; empty if it was."),
        Column("place", pl.UInt8, "Of the intruder, 1 to 5.", nullable=True),
        Column("intruder_latent", pl.UInt32, "The latent whose window and marks it is.", nullable=True),
        Column("contexts", pl.List(pl.UInt32), "The five windows, in the order they are shown."),
    ),
    key=("latent", "trial"),
)

SCORES = Table(
    "scores",
    "One row per score. A latent that has none is a row with a status and a reason.",
    (
        LATENT,
        EXPLAINER,
        *_SCORE_KEY,
        Column("negatives", pl.String, "Stratum of non-activating contexts, `population` (all), `donor`, `intruder`."),
        Column("split", pl.String, "Always `test` outside profile `paper`."),
        Column("status", pl.String, "`ok`, `unscored`, `no_explanation`, `not_sampled`, or why it is not eligible."),
        Column("reason", pl.String, "Why there is no score; empty if there is one."),
        Column("metric", pl.String, "The metric `score` is."),
        Column("score", pl.Float64, "Value of the metric.", nullable=True),
        Column("corrected", pl.Float64, "(score - uninformed) / (1 - uninformed).", nullable=True),
        Column("specificity", pl.Float64, "score - mean null of the same latent.", nullable=True),
        Column("ci_low", pl.Float64, "Lower end of the score's 95 % interval.", nullable=True),
        Column("ci_high", pl.Float64, "Upper end.", nullable=True),
        Column("n", pl.UInt32, "Contexts (`intruder`: trials) judged and counted.", "contexts"),
        Column("coverage", pl.Float64, "Share of judgements that could be counted."),
        Column("threshold", pl.Float64, "Evidence from which the prediction is yes.", nullable=True),
        *(
            Column(name, pl.Float64, doc, nullable=True)
            for name, doc in (
                ("balanced_accuracy", "(tpr + tnr) / 2."),
                ("tpr", "Share of activating contexts recognised."),
                ("tpr_low", "Lower end of its 95 % interval."),
                ("tpr_high", "Upper end."),
                ("tnr", "Share of non-activating contexts recognised; of `population`: 1 - Σ W_h FPR_h."),
                ("tnr_low", "Lower end of its 95 % interval."),
                ("tnr_high", "Upper end."),
                ("f1", "On the judged sample."),
                ("auroc", "Area under the ROC curve of the evidence."),
                ("auroc_low", "Lower end of its 95 % interval."),
                ("auroc_high", "Upper end."),
                ("auprc", "Average precision of the evidence, on the judged sample."),
                ("precision_at_base_rate", "Precision at the latent's firing rate; `population` only."),
                ("precision_low", "Lower end of its 95 % interval."),
                ("precision_high", "Upper end."),
                ("f1_at_base_rate", "F1 at the latent's firing rate; `population` only."),
                ("auprc_at_base_rate", "Average precision at the latent's firing rate; `population` only."),
                *((f"recall_decile_{d}", f"tpr within decile {d}.") for d in range(1, 11)),
            )
        ),
        Column("unresolved", pl.Boolean, "Precision is not known to within .2; `population` only.", nullable=True),
    ),
    key=("latent", "explainer", "scorer", "judge", "embedder", "profile", "negatives", "split"),
)

REPORT = Table(
    "report",
    "Per SAE and explainer: how far it got and how good it is.",
    (
        Column("partition", pl.String, "model / hookpoint / SAE."),
        Column("control", pl.Boolean, "A baseline (random or re-randomised)."),
        EXPLAINER,
        *_SCORE_KEY,
        Column("negatives", pl.String, "Stratum of non-activating contexts, `population` (all), `donor`, `intruder`."),
        Column("n_latents", pl.UInt32, "Latents asked for."),
        Column("n_alive", pl.UInt32, "Active on at least one unmasked token."),
        Column("n_eligible", pl.UInt32, "Fit to be explained and scored."),
        Column("n_explained", pl.UInt32, "With an explanation."),
        Column("n_asked", pl.UInt32, "Eligible and to be scored: all, or the scorer's sample."),
        Column("n_scored", pl.UInt32, "With a score."),
        Column("metric", pl.String, "The metric summarised."),
        Column("median", pl.Float64, "Median over scored latents.", nullable=True),
        Column("median_low", pl.Float64, "Lower end of its 95 % bootstrap interval over latents.", nullable=True),
        Column("median_high", pl.Float64, "Upper end.", nullable=True),
        Column("quartile_low", pl.Float64, "First quartile.", nullable=True),
        Column("quartile_high", pl.Float64, "Third quartile.", nullable=True),
        Column("corrected", pl.Float64, "(median - uninformed) / (1 - uninformed).", nullable=True),
        Column("n_judged", pl.Float64, "Median over scored latents of contexts judged and counted.", "contexts", True),
        Column("coverage", pl.Float64, "Share of judgements that could be counted, mean over latents.", nullable=True),
        Column("specificity", pl.Float64, "Median over scored latents of score - null score.", nullable=True),
        Column("specificity_low", pl.Float64, "Lower end of its 95 % bootstrap interval.", nullable=True),
        Column("specificity_high", pl.Float64, "Upper end.", nullable=True),
        Column(
            "n_specific",
            pl.UInt32,
            "Latents better than the SAE's nulls of their density: p <= .05 after Benjamini-Hochberg.",
            nullable=True,
        ),
        Column("gain", pl.Float64, "Median paired gain over `token_table`, all `n_asked` latents.", nullable=True),
        Column("gain_low", pl.Float64, "Lower end of its 95 % interval.", nullable=True),
        Column("gain_high", pl.Float64, "Upper end.", nullable=True),
    ),
    key=("partition", "explainer", "scorer", "judge", "embedder", "profile", "negatives", "metric"),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        DOCUMENTS, SPANS, SEQUENCES, ACTIVATIONS, MASKED, LATENTS, ELIGIBILITY, CONTEXTS, NEGATIVES,
        STRATA_SHARES, EXPLANATIONS, JUDGEMENTS, TRIALS, SCORES, REPORT,
    )
}  # fmt: skip
