"""Tables of sampled contexts."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import CONTEXT, LATENT, SPLIT, SPLITS, Column, Table

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
