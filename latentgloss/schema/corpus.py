"""Tables of the corpus."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import SPLIT, Column, Table

DOCUMENTS = Table(
    "documents",
    "One row per document of the corpus, kept or not.",
    (
        Column("document", pl.UInt32, "Number of the document, in reading order."),
        Column("name", pl.String, "Name in its source (module path, file and line, …)."),
        Column("content_sha256", pl.String, "Hash of the text as read."),
        Column("cluster", pl.UInt32, "Near-duplicate cluster; a cluster is in one split."),
        SPLIT,
        Column("status", pl.String, "`ok`, `duplicate_exact`, `duplicate_near`, `empty`, `over_limit`."),
        Column("duplicate_of", pl.UInt32, "The document that was kept instead.", nullable=True),
        Column("n_tokens", pl.UInt32, "Tokens of the document in the corpus; 0 if it was left out.", "tokens"),
        Column("n_characters", pl.UInt32, "Length of the text.", "characters"),
    ),
    key=("document",),
)

SPANS = Table(
    "spans",
    "Where each document lies in the token array; one row per piece within one sequence.",
    (
        Column("document", pl.UInt32, "Number of the document."),
        Column("start", pl.UInt32, "First position of the piece.", "position"),
        Column("end", pl.UInt32, "Position after its last token.", "position"),
    ),
    key=("start",),
)

SEQUENCES = Table(
    "sequences",
    "One row per sequence of the token array.",
    (Column("sequence", pl.UInt32, "Row of the token array."), SPLIT),
    key=("sequence",),
)
