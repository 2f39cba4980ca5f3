"""The table of explanations."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import EXPLAINER, LATENT, Column, Table

STATUS_EXPLANATION = (
    "`ok`, `failed`, `no_partner`, `parse_failed`, `refused`, `llm_error`, `unsupported`, `not_imported`, `not_sampled`"
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
