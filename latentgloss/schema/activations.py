"""Tables of the activation cache."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import LATENT, Column, Table

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
