"""What `lineage --verify` recomputes of sampled contexts: activations, splits, and the documents they touch.

What belongs here: pure comparisons of sampled contexts with the activation cache and the corpus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from latentgloss.lineage.checks import Check, none_of
from latentgloss.schema import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentgloss.corpus.reader import Corpus


def activation_checks(
    contexts: pl.DataFrame | None,
    negatives: pl.DataFrame | None,
    rows: pl.DataFrame,
    masked: pl.Series | None,
    length: int,
) -> list[Check]:
    """Compares contexts with the activation cache: equal activations where the latent is active, none elsewhere.

    `contexts`, `negatives`: the latent's sampled contexts, by kind. `rows`: the latent's rows of the cache. `masked`:
    masked positions of the corpus; without them the maxima are not checked. `length`: tokens per context.
    """
    rows = rows.with_columns(context=pl.col("position") // length)
    checks = []
    if contexts is not None:
        stored = (
            contexts.select("context", "offsets", "activations")
            .explode("offsets", "activations")
            .select("context", position=pl.col("context") * length + pl.col("offsets"), activation="activations")
            .sort("position")
        )
        cached = rows.filter(pl.col("context").is_in(contexts["context"].implode())).sort("position")
        same = stored.rows() == cached.select("context", "position", "activation").rows()
        found = f"{cached.height} rows"
        checks.append(Check("activations of the contexts, as cached", same, found, f"{stored.height}"))
        if masked is not None:
            top = (
                cached.filter(~pl.col("position").is_in(masked.implode()))
                .group_by("context")
                .agg(pl.col("activation").max())
            )
            joined = contexts.select("context", "max_activation").join(top, on="context", how="left")
            wrong = joined.filter(pl.col("activation").ne_missing(pl.col("max_activation")))
            checks.append(none_of("maximum over unmasked tokens", wrong["context"].to_list(), "equal"))
    if negatives is not None:
        firing = rows.filter(pl.col("context").is_in(negatives["context"].implode()))
        checks.append(none_of("no activation in the non-activating contexts", firing["context"].to_list(), "none"))
    return checks


def split_checks(contexts: Iterable[int], split: str, corpus: Corpus, length: int) -> list[Check]:
    """Checks that contexts, and all documents that they touch, belong to the given split."""
    ids = np.unique(np.fromiter(contexts, dtype=np.int64))
    wrong = ids[corpus.split_of_context(length)[ids] != SPLITS.index(split)]
    touched = touched_documents(ids, corpus, length)
    table = corpus.documents.filter(pl.col("document").is_in(touched)).collect()
    strays = table.filter(pl.col("split") != split)["document"].to_list()
    return [
        none_of(f"windows of {split} lie in sequences of {split}", wrong.tolist(), f"{len(ids)} windows"),
        none_of(f"documents of {split} windows are of {split}", strays, f"{len(touched)} documents"),
    ]


def touched_documents(contexts: np.ndarray, corpus: Corpus, length: int) -> list[int]:
    """Numbers of the documents that have a token in one of the contexts, ascending."""
    positions = np.asarray(contexts, dtype=np.int64)[:, None] * length + np.arange(length)
    found = np.unique(corpus.document_of_position(positions))
    return [int(d) for d in found if d >= 0]
