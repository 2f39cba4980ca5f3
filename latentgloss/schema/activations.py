"""Tables of the activation cache."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import LATENT, Column, Table

ACTIVATIONS = Table(
    "activations",
    "One row per latent and position at which the latent is active. Each block is a shard that covers a range of "
    "positions and is sorted by latent, then position.",
    (
        Column("latent", pl.UInt32, "Index of the latent in its SAE.", encoding="DELTA_BINARY_PACKED"),
        Column("position", pl.UInt32, "Global token index in the corpus.", "position", encoding="DELTA_BINARY_PACKED"),
        Column(
            "activation",
            pl.Float32,
            "Activation, greater than 0; rounded to bfloat16 by default.",
            "model units",
            encoding="BYTE_STREAM_SPLIT",
        ),
    ),
    key=("latent", "position"),
    row_group=2**16,
)

MASKED = Table(
    "masked",
    "Positions that never make a context activating: BOS, special tokens, position 0 and attention sinks.",
    (
        Column("position", pl.UInt32, "Global token index in the corpus.", "position"),
        Column(
            "why",
            pl.String,
            "`special` (BOS or another special token), `first` (position 0 of a sequence) or `sink` (attention sink).",
        ),
    ),
    key=("position",),
)

LATENTS = Table(
    "latents",
    "One row per latent of the SAE, including dead latents.",
    (
        LATENT,
        Column("count", pl.UInt64, "Unmasked tokens on which the latent is active.", "tokens"),
        Column("density", pl.Float64, "`count` divided by the number of unmasked tokens."),
        Column("max", pl.Float32, "Largest activation on an unmasked token; 0 if dead.", "model units"),
        Column("mean", pl.Float64, "Mean activation over the tokens in `count`; 0 if dead.", "model units"),
        Column(
            "quantiles",
            pl.List(pl.Float32),
            "Quantiles 0, .1, …, 1 of the activations on the tokens in `count` (11 values); an empty list if dead.",
            "model units",
        ),
        Column(
            "histogram",
            pl.List(pl.UInt32),
            "Histogram of the activations on the tokens in `count`, in 20 equal bins from 0 to `max`.",
            "tokens",
        ),
        Column("token_entropy", pl.Float64, "Entropy of the ids of the tokens in `count`.", "nats"),
        Column(
            "top_outputs",
            pl.List(pl.UInt32),
            "Ids of the ten tokens whose output logits the latent's decoder direction raises most (logit lens). Empty "
            "where there is no lens: the decoder row is zero or has another width than the residual stream, or the "
            "model's last steps are of an unknown kind.",
        ),
        Column(
            "neighbours",
            pl.List(pl.UInt32),
            "Other latents in descending order of decoder cosine: the first ten, and up to 64 whose cosine is at least "
            ".5. Where cosines are 0 (neurons), the choice among them is arbitrary. A latent whose decoder row is zero "
            "has no neighbours and is none.",
        ),
        Column("neighbour_cosines", pl.List(pl.Float32), "Decoder cosines of `neighbours`, in the same order."),
    ),
    key=("latent",),
)
