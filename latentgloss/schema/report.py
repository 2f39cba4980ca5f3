"""The table of the report."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.scores import _SCORE_KEY
from latentgloss.schema.table import EXPLAINER, Column, Table

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
