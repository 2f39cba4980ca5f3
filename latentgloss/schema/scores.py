"""Tables of judgements, trials and scores."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import CONTEXT, EXPLAINER, LATENT, SPLIT, Column, Table

SCORE_KEY = (
    Column("scorer", pl.String, "Name of the scorer: `detection`, `fuzzing`, `intruder` or `embedding`."),
    Column("judge", pl.String, "Name of the judge: `executed`, `embedder`, `cosine`, `tokens`, or a language model's."),
    Column("embedder", pl.String, "Name of the embedder that the judge used; empty if it used none."),
    Column("profile", pl.String, "`default` or `paper`."),
)
"""Columns that identify a score together with the latent, the explainer and the arm."""

ARM = Column(
    "negatives",
    pl.String,
    "The arm: the stratum of the non-activating contexts, `population` (all of them, weighted by the strata's shares), "
    "`donor` or `intruder`.",
)

JUDGEMENTS = Table(
    "judgements",
    "One row per judged context.",
    (
        LATENT,
        EXPLAINER,
        *SCORE_KEY,
        Column("negatives", pl.String, "The arm: the stratum of the non-activating contexts, `donor` or `intruder`."),
        SPLIT,
        CONTEXT,
        Column(
            "stratum",
            pl.String,
            "`activating`, the stratum of a non-activating context, `donor` (an activating context with wrong marks), "
            "or `intruder` (a context with another latent's marks).",
        ),
        Column("decile", pl.UInt8, "Decile of an activating context; 0 for any other context."),
        Column("document", pl.UInt32, "Document of the context."),
        Column(
            "truth",
            pl.Boolean,
            "Whether the latent is active in the context or, in fuzzing, on the marked tokens.",
        ),
        Column(
            "prediction",
            pl.Boolean,
            "Whether the latent is active according to the judge, or to the threshold if the judge does not decide; "
            "empty if unscored.",
            nullable=True,
        ),
        Column(
            "evidence",
            pl.Float32,
            "The judge's evidence that the latent is active; a higher value is stronger evidence.",
            nullable=True,
        ),
        Column("probability", pl.Float32, "Calibrated probability, if the judge gives one.", nullable=True),
        Column(
            "prompt",
            pl.Int64,
            "60 bits of the hash of the prompt in which the context was judged together with others; empty if it was "
            "judged alone.",
            nullable=True,
        ),
        Column(
            "status",
            pl.String,
            "`ok`, or why the judgement is unscored: `parse_failed`, `prompt_truncated`, `refused`, `llm_error`, "
            "`no_donor` or `unsupported`.",
        ),
        Column(
            "reason",
            pl.String,
            "Why the judgement is unscored, in words; `truncated: …` if it is scored by a part; else empty.",
        ),
    ),
    # `stratum` is in the key because fuzzing judges a context twice, with its own marks and with a donor's.
    key=("latent", "explainer", "scorer", "judge", "embedder", "profile", "negatives", "split", "context", "stratum"),
)

TRIALS = Table(
    "trials",
    "Intruder detection: one row per judged latent and trial, including trials that could not be made.",
    (
        LATENT,
        Column("trial", pl.UInt8, "Number of the trial, from 0; each decile has two trials."),
        Column("decile", pl.UInt8, "Decile from which the latent's own windows are drawn."),
        Column(
            "status",
            pl.String,
            "`ok`, `too_few` (too few windows to show) or `no_intruder` (no window of another latent fits).",
        ),
        Column("reason", pl.String, "Why the trial could not be made; empty if it was made."),
        Column("place", pl.UInt8, "Place of the intruder among the five windows, 1 to 5.", nullable=True),
        Column(
            "intruder_latent", pl.UInt32, "The latent to which the intruder's window and marks belong.", nullable=True
        ),
        Column("contexts", pl.List(pl.UInt32), "Numbers of the five windows, in the order in which they are shown."),
    ),
    key=("latent", "trial"),
)

SCORES = Table(
    "scores",
    "One row per latent, explainer, judge and arm. A latent without a score has a row with a status and a reason.",
    (
        LATENT,
        EXPLAINER,
        *SCORE_KEY,
        ARM,
        Column("split", pl.String, "Always `test` outside profile `paper`."),
        Column(
            "status",
            pl.String,
            "`ok`, `unscored`, `no_explanation`, `not_sampled`, or why the latent is not eligible (see `eligibility`).",
        ),
        Column("reason", pl.String, "Why there is no score; empty if there is one."),
        Column("metric", pl.String, "Name of the metric in `score`."),
        Column("score", pl.Float64, "Value of the metric.", nullable=True),
        Column(
            "corrected",
            pl.Float64,
            "(score - uninformed) / (1 - uninformed), where uninformed is the mean value that guessing reaches.",
            nullable=True,
        ),
        Column(
            "specificity", pl.Float64, "`score` minus the mean score of the latent's null explanations.", nullable=True
        ),
        Column("ci_low", pl.Float64, "Lower end of the 95 % interval of `score`.", nullable=True),
        Column("ci_high", pl.Float64, "Upper end of the 95 % interval of `score`.", nullable=True),
        Column("n", pl.UInt32, "Contexts (for `intruder`, trials) that were judged and counted.", "contexts"),
        Column("coverage", pl.Float64, "Share of the judgements that could be counted."),
        Column("threshold", pl.Float64, "The prediction is yes if the evidence is at least this.", nullable=True),
        *(
            Column(name, pl.Float64, doc, nullable=True)
            for name, doc in (
                ("balanced_accuracy", "(tpr + tnr) / 2."),
                ("tpr", "Share of the activating contexts that were recognised."),
                ("tpr_low", "Lower end of the 95 % interval of `tpr`."),
                ("tpr_high", "Upper end of the 95 % interval of `tpr`."),
                ("tnr", "Share of the non-activating contexts that were recognised; in `population`, 1 - Σ W_h FPR_h."),
                ("tnr_low", "Lower end of the 95 % interval of `tnr`."),
                ("tnr_high", "Upper end of the 95 % interval of `tnr`."),
                ("f1", "F1 on the judged sample."),
                ("auroc", "Area under the ROC curve of the evidence."),
                ("auroc_low", "Lower end of the 95 % interval of `auroc`."),
                ("auroc_high", "Upper end of the 95 % interval of `auroc`."),
                ("auprc", "Average precision of the evidence on the judged sample."),
                ("precision_at_base_rate", "Precision at the latent's firing rate; only in `population`."),
                ("precision_low", "Lower end of the 95 % interval of `precision_at_base_rate`."),
                ("precision_high", "Upper end of the 95 % interval of `precision_at_base_rate`."),
                ("f1_at_base_rate", "F1 at the latent's firing rate; only in `population`."),
                ("auprc_at_base_rate", "Average precision at the latent's firing rate; only in `population`."),
                *((f"recall_decile_{d}", f"tpr within decile {d}.") for d in range(1, 11)),
            )
        ),
        Column(
            "unresolved",
            pl.Boolean,
            "Whether the interval of `precision_at_base_rate` is missing or wider than .2; only in `population`.",
            nullable=True,
        ),
    ),
    key=("latent", "explainer", "scorer", "judge", "embedder", "profile", "negatives", "split"),
)
