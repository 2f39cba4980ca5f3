"""Tables of the corpus."""

from __future__ import annotations

import polars as pl

from latentgloss.schema.table import SPLIT, Column, Table

DOCUMENTS = Table(
    "documents",
    "One row per document that was read, including documents that were left out of the corpus.",
    (
        Column("document", pl.UInt32, "Number of the document, in reading order."),
        Column("name", pl.String, "Name of the document in its source (module path, file and line, …)."),
        Column("content_sha256", pl.String, "SHA-256 hash of the text as it was read."),
        Column("cluster", pl.UInt32, "Number of the cluster of near-duplicates; a cluster lies in one split."),
        SPLIT,
        Column(
            "status",
            pl.String,
            "`ok`, or why the document was left out: `duplicate_exact`, `duplicate_near`, `empty`, `unreadable` (only "
            'with `on_error = "skip"`), or `over_limit` (it would have exceeded the limit on tokens).',
        ),
        Column("duplicate_of", pl.UInt32, "Number of the document that was kept instead.", nullable=True),
        Column("n_tokens", pl.UInt32, "Tokens of the document in the corpus; 0 if it was left out.", "tokens"),
        Column("n_characters", pl.UInt32, "Length of the text.", "characters"),
    ),
    key=("document",),
)

SPANS = Table(
    "spans",
    "Where each document is in the token array. A document that continues in another sequence has one row for each "
    "piece.",
    (
        Column("document", pl.UInt32, "Number of the document."),
        Column("start", pl.UInt32, "Position of the piece's first token.", "position"),
        Column("end", pl.UInt32, "Position after the piece's last token.", "position"),
    ),
    key=("start",),
)

SEQUENCES = Table(
    "sequences",
    "One row per sequence of the token array.",
    (Column("sequence", pl.UInt32, "Number of the sequence, which is its row in the token array."), SPLIT),
    key=("sequence",),
)
