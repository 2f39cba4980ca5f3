"""The table of explanations."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import EXPLAINER, LATENT, Column, Table

STATUS_EXPLANATION = (
    "`ok`, `failed`, `no_partner`, `parse_failed`, `prompt_truncated`, `refused`, `llm_error`, `unsupported`, "
    "`not_imported`, `not_sampled`"
)
"""The values of `status`, other than the reasons for which a latent is not eligible."""

EXPLANATIONS = Table(
    "explanations",
    "Exactly one row per selected latent and explainer. A failure is a row with a status and a reason.",
    (
        LATENT,
        EXPLAINER,
        Column("status", pl.String, f"{STATUS_EXPLANATION}, or why the latent is not eligible (see `eligibility`)."),
        Column("reason", pl.String, "Why there is no explanation, in words; empty if there is one."),
        Column("explanation", pl.String, "The text; empty unless the status is `ok`."),
        Column(
            "label",
            pl.String,
            "What the explanation says in at most 120 characters, such as the name of a list entry; empty unless the "
            "status is `ok`.",
        ),
        Column(
            "coverage",
            pl.Float64,
            "Share of the latent's activation mass in explain that falls on what the label names; empty for null "
            "explanations, and where nothing was measured.",
            nullable=True,
        ),
        Column(
            "kind",
            pl.String,
            "Kind of latent by its activating contexts in explain, whatever the explanation says: `single token`, "
            "`token class`, `format`, `prefix`, `phrase`, `position`, `words`, `topic` or `unclear`.",
            nullable=True,
        ),
        Column("program", pl.String, "The explanation's executable form as JSON, if it has one.", nullable=True),
        Column(
            "source_latent",
            pl.UInt32,
            "The latent for which the text was written, if it is another one (null explanations).",
            nullable=True,
        ),
        Column("context_ids", pl.List(pl.UInt32), "Numbers of the contexts that the explainer was shown, in order."),
        Column("model", pl.String, "Name of the language model, if one was asked.", nullable=True),
        Column("prompt_sha256", pl.String, "SHA-256 hash of the rendered prompt.", nullable=True),
        Column("reply", pl.String, "The language model's reply, unparsed.", nullable=True),
        Column("prompt_tokens", pl.UInt32, "Tokens of the prompts that this row took.", "tokens"),
        Column("completion_tokens", pl.UInt32, "Tokens of the replies that this row took.", "tokens"),
        Column("cost_usd", pl.Float64, "Price of the requests that this row took; 0 for local models.", "USD"),
    ),
    key=("latent", "explainer"),
)
