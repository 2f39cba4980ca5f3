"""Sampled test windows as they are shown in trials: with marks, of many latents at once, and where these fire.

What belongs here: the arrays that trials of intruder detection are drawn from (`trials.py`), and making them of
`contexts` and `activations`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, UInt32

from latentgloss import schema
from latentgloss.contexts.marks import dense_activations, marks

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Marked:
    """Test windows of some latents with their marks, by latent and window; and where each of the latents fires."""

    latents: UInt32[np.ndarray, " latents"]
    row: Int64[np.ndarray, " n"]
    """Index into `latents`."""
    context: Int64[np.ndarray, " n"]
    decile: Int64[np.ndarray, " n"]
    document: Int64[np.ndarray, " n"]
    marks: Bool[np.ndarray, "n length"]
    shape: Int64[np.ndarray, " n"]
    """Number of runs of marks and of marked tokens, in one number."""
    cell_row: UInt32[np.ndarray, " cells"]
    """Index into `latents`, of a window of the corpus in which the latent fires on some token, masked or not."""
    cell_window: UInt32[np.ndarray, " cells"]

    @classmethod
    def of(
        cls,
        latents: UInt32[np.ndarray, " latents"],
        contexts: pl.DataFrame,
        masked: Bool[np.ndarray, "windows length"],
        cells: pl.DataFrame,
    ) -> Marked:
        """From rows of `schema.CONTEXTS` in any order, the mask of all windows of the corpus, and where latents fire.

        `contexts` has all there are of these latents, perhaps of others too; `cells` (`cells_of`), of these alone.
        """
        mine = pl.col("latent").is_in(latents.tolist())
        sample = contexts.filter(mine, split="test").sort("latent", "context")
        context, decile, document = (sample[c].to_numpy().astype(np.int64) for c in ("context", "decile", "document"))
        own = marks(dense_activations(sample, masked.shape[1]), masked[context])
        runs = (own[:, 1:] & ~own[:, :-1]).sum(axis=1) + own[:, 0]
        shape = runs.astype(np.int64) * (masked.shape[1] + 1) + own.sum(axis=1)
        order = np.argsort(latents)
        row, cell_row = (order[np.searchsorted(latents, f["latent"].to_numpy(), sorter=order)] for f in (sample, cells))
        window = cells["window"].to_numpy()
        return cls(latents, row, context, decile, document, own, shape, cell_row.astype(np.uint32), window)

    def fires_in(self, windows: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, "latents n"]:
        """Which of the latents fire in which of some windows of the corpus."""
        distinct, column = np.unique(windows, return_inverse=True)
        place = np.full(1 + max(distinct.max(initial=0), self.cell_window.max(initial=0)), -1)
        place[distinct] = np.arange(len(distinct))
        at = place[self.cell_window]
        there = np.flatnonzero(at >= 0)
        fires = np.zeros((len(self.latents), len(distinct)), dtype=bool)
        fires[self.cell_row[there], at[there]] = True
        return fires[:, column]

    def like(self, shape: int) -> Int64[np.ndarray, " few"]:
        """Indices of the windows with marks of this shape."""
        return self._by_shape[shape]

    @cached_property
    def _by_shape(self) -> dict[int, Int64[np.ndarray, " few"]]:
        order = np.argsort(self.shape, kind="stable")
        shapes, first = np.unique(self.shape[order], return_index=True)
        return dict(zip(shapes.tolist(), np.split(order, first[1:]), strict=True))


def cells_of(pairs: Sequence[pl.DataFrame], latents: UInt32[np.ndarray, " latents"], length: int) -> pl.DataFrame:
    """(latent, window) of some latents, each once, of frames with latent and position of `schema.ACTIVATIONS`."""
    everything = pl.concat([schema.ACTIVATIONS.empty().select("latent", "position"), *pairs])
    mine = everything.filter(pl.col("latent").is_in(latents.tolist()))
    return mine.select("latent", window=pl.col("position") // length).unique()
