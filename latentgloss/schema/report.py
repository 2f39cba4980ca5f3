"""The table of the report."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.scores import ARM, SCORE_KEY
from latentgloss.schema.table import EXPLAINER, Column, Table

REPORT = Table(
    "report",
    "One row per SAE, explainer, judge, arm and metric: how many latents were explained and scored, and how well.",
    (
        Column("partition", pl.String, "Name of the SAE: model/hookpoint/name."),
        Column("control", pl.Boolean, "Whether the registry declares the SAE as a control."),
        EXPLAINER,
        *SCORE_KEY,
        ARM,
        Column("n_latents", pl.UInt32, "Selected latents."),
        Column("n_alive", pl.UInt32, "Selected latents that are active on at least one unmasked token."),
        Column("n_eligible", pl.UInt32, "Latents that are eligible to be explained and scored."),
        Column("n_explained", pl.UInt32, "Latents with an explanation."),
        Column("n_asked", pl.UInt32, "Eligible latents that the scorer should score: all, or its sample."),
        Column("n_scored", pl.UInt32, "Latents with a score."),
        Column("metric", pl.String, "Name of the metric that is summarised."),
        Column("median", pl.Float64, "Median of the metric over scored latents.", nullable=True),
        Column(
            "median_low", pl.Float64, "Lower end of the median's 95 % bootstrap interval over latents.", nullable=True
        ),
        Column(
            "median_high", pl.Float64, "Upper end of the median's 95 % bootstrap interval over latents.", nullable=True
        ),
        Column("quartile_low", pl.Float64, "First quartile of the metric over scored latents.", nullable=True),
        Column("quartile_high", pl.Float64, "Third quartile of the metric over scored latents.", nullable=True),
        Column("corrected", pl.Float64, "(median - uninformed) / (1 - uninformed).", nullable=True),
        Column(
            "n_judged",
            pl.Float64,
            "Median over scored latents of the number of contexts that were judged and counted.",
            "contexts",
            True,
        ),
        Column(
            "coverage",
            pl.Float64,
            "Mean over latents of the share of judgements that could be counted.",
            nullable=True,
        ),
        Column("specificity", pl.Float64, "Median over scored latents of score minus null score.", nullable=True),
        Column(
            "specificity_low", pl.Float64, "Lower end of the 95 % bootstrap interval of `specificity`.", nullable=True
        ),
        Column(
            "specificity_high", pl.Float64, "Upper end of the 95 % bootstrap interval of `specificity`.", nullable=True
        ),
        Column(
            "n_specific",
            pl.UInt32,
            "Latents whose score is significantly higher than null scores of latents of similar density in the SAE: "
            "p <= .05 after Benjamini-Hochberg.",
            nullable=True,
        ),
        Column("gain", pl.Float64, "Median paired gain over `token_table`, over all `n_asked` latents.", nullable=True),
        Column("gain_low", pl.Float64, "Lower end of the 95 % interval of `gain`.", nullable=True),
        Column("gain_high", pl.Float64, "Upper end of the 95 % interval of `gain`.", nullable=True),
    ),
    key=("partition", "explainer", "scorer", "judge", "embedder", "profile", "negatives", "metric"),
)
