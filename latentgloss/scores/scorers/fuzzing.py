"""Fuzzing: are the marked tokens those on which the latent is active? Right marks against those of another context.

What belongs here: the two versions of each activating context, with its own marks and with those of a donor, and the
assignment of versions to two questions, of which neither has both versions of a context; also the wrong examples of
profile `paper`. Method: docs/methods.md, Fuzzing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.contexts.marks import dense_activations, marks, masked_tokens
from latentgloss.scores.scorers.base import COLUMNS, ORDER, PRIOR, Asked, Plan
from latentgloss.scores.scorers.donors import NONE, donors
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from jaxtyping import Bool

    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.scores.scorers.base import ScoreNeeds


ARM = "donor"
"""The only arm, and the stratum of contexts with wrong marks."""
NO_DONOR = "no other context of this latent, split and decile to exchange marks with"
"""The reason in rows of status `no_donor`."""
ARM_OF_PAPER = "random"
"""The only arm under profile `paper`, and its stratum of negatives."""
_SHUFFLE, _HALF, _ANYWHERE = 0xF0225, 0xF04A1, 0xF0A4B
"""Salts: of the order within a question, of the question that has a context's own marks, and of random marks."""


class Versions(NamedTuple):
    """Asked rows with their marks."""

    rows: pl.DataFrame
    """`COLUMNS`, sorted by `ORDER`."""
    marks: Bool[np.ndarray, "rows length"]
    """Tokens that are shown as active."""
    masked: Bool[np.ndarray, "rows length"]
    """Tokens on which no activation counts."""


def plan(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """Plans one arm. Reads which tokens of the corpus are masked, because a masked token is never marked."""
    if run.settings.fuzzing.wrong_marks == "random":
        return _plan_of_paper(run, corpus, splits)
    contexts = run.input("sampled_contexts")
    length, seed = run.settings.contexts.length, run.settings.fuzzing.seed
    masked = masked_tokens(run.input("activation_cache"), corpus, length)

    def ask(block: str) -> Asked:
        sampled = few(contexts.read(schema.CONTEXTS, block), splits)
        found = versions(sampled, masked[sampled["context"].to_numpy()], seed)
        return Asked(
            found.rows,
            corpus.contexts(found.rows["context"].to_numpy(), length),
            found.marks,
            found.masked,
            references(sampled, corpus, length),
            run.settings.profile,
        )

    return Plan([ARM], {"arms": [ARM], "splits": list(splits), "seed": seed}, ask)


def few(contexts: pl.DataFrame, splits: tuple[str, ...]) -> pl.DataFrame:
    """The contexts that are asked about, sorted by latent, split and context.

    Of the explain split these are the first `PRIOR` of each latent, as prior for the threshold.
    """
    return contexts.filter(
        pl.col("split").is_in(splits), (pl.col("split") != "explain") | (pl.col("order") < PRIOR)
    ).sort("latent", "split", "context")


def references(contexts: pl.DataFrame, corpus: Corpus, length: int) -> dict[int, np.ndarray]:
    """The tokens of each latent's explain contexts, among which the executing judge ranks strengths."""
    explain = contexts.filter(split="explain").sort("latent", "context")
    tokens = corpus.contexts(explain["context"].to_numpy(), length)
    latents, first, n = np.unique(explain["latent"].to_numpy(), return_index=True, return_counts=True)
    return {int(latent): tokens[i : i + k] for latent, i, k in zip(latents, first, n, strict=True)}


def versions(contexts: pl.DataFrame, masked: Bool[np.ndarray, "contexts length"], seed: int) -> Versions:
    """Both versions of every context, in the order of the questions.

    `contexts`: rows of `schema.CONTEXTS`, in any order. `masked`: the masked tokens of each. Both versions of a context
    without a donor have status `no_donor`. Nothing depends on other latents.
    """
    activations = dense_activations(contexts, masked.shape[1])
    own = marks(activations, masked)
    latent, context, decile = (contexts[name].to_numpy().astype(np.int64) for name in ("latent", "context", "decile"))
    split = contexts["split"].replace_strict(schema.SPLITS, range(3), return_dtype=pl.Int64).to_numpy()
    group = (latent * len(schema.SPLITS) + split) * 16 + decile
    donor = donors(seed, group, latent, context, own, (activations > 0) | masked)
    missing = donor == NONE
    half = (counter_hash(seed ^ _HALF, latent, context) >> np.uint64(63)).astype(np.uint8)
    kept = contexts.select("latent", "split", "context", "decile", "document").with_columns(
        arm=pl.lit(ARM),
        status=pl.Series(np.where(missing, "no_donor", "ok")),
        reason=pl.Series(np.where(missing, NO_DONOR, "")),
        row=np.arange(contexts.height),
    )
    both = pl.concat(
        kept.with_columns(
            truth=pl.lit(true),
            stratum=pl.lit("activating" if true else ARM),
            part=half if true else 1 - half,
            place=counter_hash(seed ^ _SHUFFLE, latent, context, int(true)),
        )
        for true in (True, False)
    ).sort(ORDER)
    row, truth = both["row"].to_numpy(), both["truth"].to_numpy()
    source = np.where(truth, row, donor[row])  # the context whose marks are shown
    return Versions(both.select(COLUMNS), own[source] & (source != NONE)[:, None], masked[row])


def _plan_of_paper(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """Plans profile `paper`: activating contexts with their own marks against random contexts with random marks.

    Both are in one question, and the context alone can give the answer away. This is for comparison with published
    figures only.
    """
    contexts, negatives = run.input("sampled_contexts"), run.input("sampled_negatives")
    length, seed = run.settings.contexts.length, run.settings.fuzzing.seed
    masked = masked_tokens(run.input("activation_cache"), corpus, length)

    def ask(block: str) -> Asked:
        sampled = few(contexts.read(schema.CONTEXTS, block), splits)
        others = few(negatives.read(schema.NEGATIVES, block).filter(stratum=ARM_OF_PAPER), splits)
        rows, marked = against_random(sampled, others, masked, seed)
        at = rows["context"].to_numpy()
        shown = references(sampled, corpus, length)
        return Asked(rows, corpus.contexts(at, length), marked, masked[at], shown, run.settings.profile)

    return Plan([ARM_OF_PAPER], {"arms": [ARM_OF_PAPER], "splits": list(splits), "seed": seed}, ask)


def against_random(
    contexts: pl.DataFrame, negatives: pl.DataFrame, masked: Bool[np.ndarray, "contexts length"], seed: int
) -> tuple[pl.DataFrame, Bool[np.ndarray, "rows length"]]:
    """Asked rows and their marks: contexts with their own marks, and negatives with random marks.

    A negative has as many marks as one of the latent's contexts, drawn by hash, on any of its unmasked tokens.
    `contexts` and `negatives`: rows of those tables, sorted by latent. `masked`: the masked tokens of all windows of
    the corpus. A latent without activating contexts has no rows.
    """
    negatives = negatives.filter(pl.col("latent").is_in(contexts["latent"].unique().implode()))
    own = marks(dense_activations(contexts, masked.shape[1]), masked[contexts["context"].to_numpy()])
    latent, context = (negatives[name].to_numpy().astype(np.int64) for name in ("latent", "context"))
    latents, first, n = np.unique(contexts["latent"].to_numpy(), return_index=True, return_counts=True)
    at = np.searchsorted(latents, latent)
    drawn = counter_hash(seed ^ _ANYWHERE, latent, context)
    like = first[at] + (drawn % n[at].astype(np.uint64)).astype(np.int64)
    key = counter_hash(seed ^ _ANYWHERE, latent[:, None], context[:, None], np.arange(masked.shape[1]))
    rank = np.where(masked[context], np.uint64(2**64 - 1), key).argsort(axis=1).argsort(axis=1)
    anywhere = (rank < own.sum(axis=1)[like][:, None]) & ~masked[context]
    columns = ["latent", "split", "context", "decile", "document"]
    positive = contexts.select(columns).with_columns(truth=pl.lit(True), stratum=pl.lit("activating"))
    negative = negatives.with_columns(decile=pl.lit(0, dtype=pl.UInt8)).select(columns)
    negative = negative.with_columns(truth=pl.lit(False), stratum=pl.lit(ARM_OF_PAPER))
    both = pl.concat([positive, negative]).with_columns(
        arm=pl.lit(ARM_OF_PAPER), part=pl.lit(0, dtype=pl.UInt8), status=pl.lit("ok"), reason=pl.lit("")
    )
    place = counter_hash(seed ^ _SHUFFLE, both["latent"].to_numpy(), both["context"].to_numpy())
    both = both.with_columns(place=place, row=np.arange(both.height)).sort(ORDER)
    return both.select(COLUMNS), np.concatenate([own, anywhere])[both["row"].to_numpy()]
