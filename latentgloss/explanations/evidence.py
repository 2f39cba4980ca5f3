"""Evidence: what explainers may know of the latents of a block.

What belongs here: gathering the evidence from the tables `contexts`, `eligibility` and `negatives`. It is taken from
the explain split, and for explainers that choose between explanations also from the select split. Nothing of the test
split is read, and nothing is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.contexts.marks import dense_activations, masked_tokens
from latentgloss.explanations.examples import Examples
from latentgloss.explanations.explainers.base import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Set

    from latentgloss.corpus.reader import Corpus
    from latentgloss.explanations.explainers.base import Need
    from latentgloss.pipeline.stage_run import StageRun


class BlockEvidence:
    """Evidence of the eligible latents of one block. Iterating over it reads the tables and builds the evidence."""

    def __init__(self, run: StageRun[Any], corpus: Corpus, block: str, needs: Set[Need] = frozenset()) -> None:
        self.run, self.corpus, self.block, self.needs = run, corpus, block, needs
        self.length = run.settings.contexts.length
        self.eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY, block)

    def content(self, need: Need) -> Any:
        """Content hashes of the inputs that `need` adds to the evidence."""
        if need == "masked":
            return self.run.input("activation_cache").content(("masked",))
        return [
            self.run.input(name).content(("select",), self.block) for name in ("sampled_contexts", "sampled_negatives")
        ]

    def of(self, latents: Sequence[int]) -> Iterator[Evidence]:
        """Evidence of the eligible ones among `latents`, by ascending latent."""
        if not latents:
            return
        contexts = self.run.input("sampled_contexts").read(schema.CONTEXTS, self.block)
        negatives = self.run.input("sampled_negatives").read(schema.NEGATIVES, self.block)
        shares = self.run.input("sampled_negatives").read(schema.STRATA_SHARES, self.block)
        chosen = pl.col("latent").is_in(list(latents))
        frames = [frame.filter(chosen) for frame in (contexts, negatives, shares)]
        explain = self._split("explain", *frames)
        select = self._split("select", *frames) if "select" in self.needs else None
        masked = None
        if "masked" in self.needs:
            masked = masked_tokens(self.run.input("activation_cache"), self.corpus, self.length)
        eligible = pl.col("status") == "eligible"
        for latent in self.eligibility.filter(eligible, chosen)["latent"].sort().to_list():
            examples, ids, strata = explain(latent)
            yield Evidence(
                latent,
                examples,
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
        """A function from a latent to its examples in `split`, their context numbers and their strata.

        Activating examples come first.
        """
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
        positive_tokens = self.corpus.contexts(positive["context"].to_numpy(), self.length)
        negative_tokens = self.corpus.contexts(negative["context"].to_numpy(), self.length)
        activations = dense_activations(positive, self.length)

        def examples_of(latent: int) -> tuple[Examples, list[int], tuple[str, ...]]:
            p, n = _rows_of(positive, latent), _rows_of(negative, latent)
            zeros = np.zeros((n.stop - n.start, self.length), dtype=np.float32)
            weight = np.concatenate([positive["weight"][p].to_numpy(), negative["weight"][n].to_numpy()])
            examples = Examples(
                tokens=np.concatenate([positive_tokens[p], negative_tokens[n]]),
                activations=np.concatenate([activations[p], zeros]),
                weight=weight.astype(np.float32),
            )
            ids = positive["context"][p].to_list() + negative["context"][n].to_list()
            return examples, ids, ("activating",) * (p.stop - p.start) + tuple(negative["stratum"][n])

        return examples_of


def _rows_of(frame: pl.DataFrame, latent: int) -> slice:
    """Rows of one latent in a frame sorted by latent."""
    column = frame["latent"]
    return slice(int(column.search_sorted(latent, "left")), int(column.search_sorted(latent, "right")))
