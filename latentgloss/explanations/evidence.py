"""Evidence: what explainers may know of the latents of a block.

What belongs here: gathering it from `contexts`, `eligibility`, `negatives` of the explain split (and of select, for
explainers that choose). Nothing of test is read, nothing is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.contexts.marks import dense_activations, masked_tokens
from latentgloss.explanations.explainers.base import Evidence
from latentgloss.explanations.explainers.examples import Examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Set

    from latentgloss.corpus.reader import Corpus
    from latentgloss.explanations.explainers.base import Need
    from latentgloss.pipeline.stage_run import StageRun


class BlockEvidence:
    """Evidence of the eligible latents of one block, built when iterated over."""

    def __init__(self, run: StageRun[Any], corpus: Corpus, block: str, needs: Set[Need] = frozenset()) -> None:
        self.run, self.corpus, self.block, self.needs = run, corpus, block, needs
        self.length = run.settings.contexts.length
        self.eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY, block)

    def showing(self, needs: Set[Need]) -> BlockEvidence:
        """The same, with what only some explainers look at."""
        return self if needs == self.needs else BlockEvidence(self.run, self.corpus, self.block, needs)

    def content(self, need: Need) -> Any:
        """Hash of what `need` adds to the evidence."""
        if need == "masked":
            return self.run.input("activation_cache").content(("masked",))
        return [
            self.run.input(name).content(("select",), self.block) for name in ("sampled_contexts", "sampled_negatives")
        ]

    def of(self, latents: Sequence[int]) -> Iterator[Evidence]:
        """Of those of `latents` that are eligible, ascending."""
        if not latents:
            return
        contexts = self.run.input("sampled_contexts").read(schema.CONTEXTS, self.block)
        negatives = self.run.input("sampled_negatives").read(schema.NEGATIVES, self.block)
        shares = self.run.input("sampled_negatives").read(schema.STRATA_SHARES, self.block)
        chosen = pl.col("latent").is_in(list(latents))
        of = [frame.filter(chosen) for frame in (contexts, negatives, shares)]
        explain = self._split("explain", *of)
        select = self._split("select", *of) if "select" in self.needs else None
        masked = None
        if "masked" in self.needs:
            masked = masked_tokens(self.run.input("activation_cache"), self.corpus, self.length)
        good = pl.col("status") == "eligible"
        for latent in self.eligibility.filter(good, chosen)["latent"].sort().to_list():
            windows, ids, strata = explain(latent)
            yield Evidence(
                latent,
                windows,
                ids,
                strata,
                None if masked is None else masked[np.array(ids, dtype=np.int64)],
                None if select is None else select(latent)[0],
            )

    def __iter__(self) -> Iterator[Evidence]:
        return self.of(self.eligibility["latent"].to_list())

    def _split(
        self, split: str, contexts: pl.DataFrame, negatives: pl.DataFrame, shares: pl.DataFrame
    ) -> Callable[[int], tuple[Examples, list[int], tuple[str, ...]]]:
        """Windows of a latent in a split, their context numbers and strata; activating ones first."""
        of_split = pl.col("split") == split
        population = self.eligibility.select("latent", n_population=f"n_{split}")
        positive = (
            contexts.filter(of_split)
            .join(population, on="latent")
            .sort("latent", "order")
            .with_columns(weight=pl.col("n_population") / pl.len().over("latent"))
        )
        negative = (
            negatives.filter(of_split)
            .join(
                shares.select("latent", "split", "stratum", "population", "sampled"), on=["latent", "split", "stratum"]
            )
            .with_columns(weight=pl.col("population") / pl.col("sampled"))
            .sort("latent", "stratum", "order")
        )
        pos_tokens = self.corpus.contexts(positive["context"].to_numpy(), self.length)
        neg_tokens = self.corpus.contexts(negative["context"].to_numpy(), self.length)
        strength = dense_activations(positive, self.length)

        def of(latent: int) -> tuple[Examples, list[int], tuple[str, ...]]:
            p, n = _rows_of(positive, latent), _rows_of(negative, latent)
            zeros = np.zeros((n.stop - n.start, self.length), dtype=np.float32)
            weight = np.concatenate([positive["weight"][p].to_numpy(), negative["weight"][n].to_numpy()])
            windows = Examples(
                tokens=np.concatenate([pos_tokens[p], neg_tokens[n]]),
                activations=np.concatenate([strength[p], zeros]),
                weight=weight.astype(np.float32),
            )
            ids = positive["context"][p].to_list() + negative["context"][n].to_list()
            return windows, ids, ("activating",) * (p.stop - p.start) + tuple(negative["stratum"][n])

        return of


def _rows_of(frame: pl.DataFrame, latent: int) -> slice:
    """Rows of one latent in a frame sorted by latent."""
    column = frame["latent"]
    return slice(int(column.search_sorted(latent, "left")), int(column.search_sorted(latent, "right")))
