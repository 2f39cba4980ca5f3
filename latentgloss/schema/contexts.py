"""Tables of sampled contexts."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import CONTEXT, LATENT, SPLIT, SPLITS, Column, Table

ELIGIBILITY = Table(
    "eligibility",
    "One row per selected latent (`latents` in the registry): whether it is explained and scored and, if not, why.",
    (
        LATENT,
        Column("status", pl.String, "`eligible`, `dead`, `rare`, `dense` or `one_document`."),
        Column("reason", pl.String, "The number that makes the latent ineligible, in words; empty if it is eligible."),
        *(
            Column(
                f"n_{split}", pl.UInt32, f"Activating windows in {split} that remain after all exclusions.", "contexts"
            )
            for split in SPLITS
        ),
        Column("n_test_documents", pl.UInt32, "Documents from which the windows in `n_test` come."),
        Column("n_dropped_several", pl.UInt32, "Activating windows excluded because they lie in several documents."),
        Column(
            "n_dropped_shared",
            pl.UInt32,
            "Activating windows excluded because an earlier split contains 13 of their tokens in a row.",
        ),
        Column(
            "n_dropped_identical",
            pl.UInt32,
            "Activating windows excluded because another window has the same tokens; one of them is kept.",
        ),
        Column("firing_rate", pl.Float64, "Activating windows in test divided by all windows of the test split (π)."),
    ),
    key=("latent",),
)

CONTEXTS = Table(
    "contexts",
    "Sampled activating contexts, with the latent's activations in each.",
    (
        LATENT,
        SPLIT,
        CONTEXT,
        Column(
            "order",
            pl.UInt32,
            "Place in the sample, from 0. An explainer that shows 40 contexts shows those with order 0 to 39.",
        ),
        Column(
            "decile",
            pl.UInt8,
            "Decile of `max_activation` among the latent's windows in the split; 10 is the strongest, and 0 means that "
            "there are fewer than ten windows.",
        ),
        Column("max_activation", pl.Float32, "Largest activation on an unmasked token of the context.", "model units"),
        Column("document", pl.UInt32, "Document of the context; intervals treat a document as one cluster."),
        Column("offsets", pl.List(pl.UInt8), "Offsets in the context at which the latent is active, ascending."),
        Column("activations", pl.List(pl.Float32), "Activations at `offsets`, in the same order.", "model units"),
    ),
    key=("latent", "split", "context"),
    part="split",
)

NEGATIVES = Table(
    "negatives",
    "Sampled non-activating contexts. The latent is zero on each of their tokens, including masked tokens.",
    (
        LATENT,
        SPLIT,
        CONTEXT,
        Column("order", pl.UInt32, "Place in the sample of the context's stratum, from 0."),
        Column("stratum", pl.String, "`similar`, `neighbour`, `same_document` or `random`."),
        Column("document", pl.UInt32, "Document of the context; intervals treat a document as one cluster."),
    ),
    key=("latent", "split", "context"),
    part="split",
)

STRATA_SHARES = Table(
    "strata",
    "One row per latent, split and stratum: the stratum's size in the population of non-activating windows, by which "
    "rates that were measured on samples are weighted.",
    (
        LATENT,
        SPLIT,
        Column("stratum", pl.String, "`similar`, `neighbour`, `same_document` or `random`."),
        Column("population", pl.UInt32, "Windows of the split in this stratum.", "contexts"),
        Column("share", pl.Float64, "`population` divided by all non-activating windows of the split (W_h)."),
        Column("sampled", pl.UInt32, "Windows sampled from the stratum.", "contexts"),
    ),
    key=("latent", "split", "stratum"),
    part="split",
)
