"""The stages `sampled_contexts` and `sampled_negatives`.

What belongs here: handing each block of latents to its sampler, and the counts that are shown for each stage. Reads the
corpus and `activation_cache`; writes `eligibility` and `contexts` (`sampled_contexts`), `negatives` and `strata`
(`sampled_negatives`). Sampling is in `contexts/activating.py` and `contexts/negatives.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from latentgloss import schema
from latentgloss.contexts import activating
from latentgloss.contexts.blocks import by_block
from latentgloss.contexts.negatives import Strata
from latentgloss.pipeline.stage_run import one_by_one

if TYPE_CHECKING:
    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Vectors
    from latentgloss.store import Version


class ContextNeeds(Protocol):
    """What these stages need that is not in the store."""

    def corpus(self, resolved: Version) -> Corpus:
        """The corpus that a version of `resolved_saes` pins."""

    def negative_vectors(self, resolved: Version) -> Vectors:
        """Vectors of that corpus's contexts, from the embedder that decides the stratum `similar`."""


def _contexts(run: StageRun[ContextNeeds]) -> None:
    settings = run.settings.contexts
    corpus = run.resources.corpus(run.input("resolved_saes"))
    windows = by_block(
        run, corpus, lambda source: lambda cells: activating.sample_block(cells, source.windows, settings)
    )
    table = run.draft.scan(schema.ELIGIBILITY).collect()
    statuses = dict(table["status"].value_counts().iter_rows())
    run.facts = {
        "latents": table.height,
        **{name: statuses.get(name, 0) for name in ("eligible", "dead", "rare", "dense", "one_document")},
        "contexts": dict(run.draft.scan(schema.CONTEXTS).group_by("split").len().sort("split").collect().iter_rows()),
        **windows.facts(),
    }


def _negatives(run: StageRun[ContextNeeds]) -> None:
    settings = run.settings.negatives
    resolved = run.input("resolved_saes")
    windows = by_block(
        run,
        run.resources.corpus(resolved),
        lambda source: Strata.of(run, source, lambda: run.resources.negative_vectors(resolved)).sample,
        strengths="neighbour" in settings.strata,  # in deciles of the neighbour's activation
        **_consumed(run),
    )
    shares = run.draft.scan(schema.STRATA_SHARES)
    short = pl.col("sampled") < pl.col("split").replace_strict(
        {split: getattr(settings, split) for split in schema.SPLITS}, return_dtype=pl.UInt32
    )
    totals = shares.group_by("stratum").agg(pl.col("sampled").sum(), short.sum().alias("short")).sort("stratum")
    run.facts = {
        "latents": shares.select(pl.col("latent").n_unique()).collect().item(),
        "negatives": {stratum: sampled for stratum, sampled, _ in totals.collect().iter_rows()},
        "samples_short": {stratum: n for stratum, _, n in totals.collect().iter_rows()},
        **windows.facts(),
        **run.recipe.content["external"],
    }


def _consumed(run: StageRun[Any]) -> dict[str, Any]:
    """What a block of negatives depends on besides its latents and their activations."""
    consumed: dict[str, Any] = dict(run.recipe.content["external"])  # embedder and version, for `similar`
    if "neighbour" in run.settings.negatives.strata:
        consumed["neighbours"] = run.input("activation_cache").content(("latents",))
    return consumed


sample_contexts = one_by_one(_contexts)
"""Runner of `sampled_contexts`."""
sample_negatives = one_by_one(_negatives)
"""Runner of `sampled_negatives`."""
