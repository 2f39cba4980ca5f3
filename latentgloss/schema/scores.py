"""Tables of judgements, trials and scores."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import CONTEXT, EXPLAINER, LATENT, SPLIT, Column, Table

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
