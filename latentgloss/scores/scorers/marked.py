"""Sampled test windows as trials show them: with marks, for many latents at once, and where these latents fire.

What belongs here: the arrays from which trials of intruder detection are drawn (`trials.py`), made from `contexts`
and `activations`.
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
    """Test windows of some latents with their marks, sorted by latent and window; and where each latent fires."""

    latents: UInt32[np.ndarray, " latents"]
    row: Int64[np.ndarray, " n"]
    """Index into `latents` of each window's latent."""
    context: Int64[np.ndarray, " n"]
    """Number of the window in the corpus."""
    decile: Int64[np.ndarray, " n"]
    document: Int64[np.ndarray, " n"]
    marks: Bool[np.ndarray, "n length"]
    shape: Int64[np.ndarray, " n"]
    """Mark shape: the number of runs of marks and the number of marked tokens, encoded as one number."""
    cell_row: UInt32[np.ndarray, " cells"]
    """Index into `latents`, one per latent and window in which it fires on any token, masked or not."""
    cell_window: UInt32[np.ndarray, " cells"]
    """Number of that window in the corpus."""

    @classmethod
    def of(
        cls,
        latents: UInt32[np.ndarray, " latents"],
        contexts: pl.DataFrame,
        masked: Bool[np.ndarray, "windows length"],
        cells: pl.DataFrame,
    ) -> Marked:
        """Makes the arrays for `latents`.

        `contexts`: rows of `schema.CONTEXTS` in any order, with all rows of these latents and perhaps rows of others.
        `masked`: the masked tokens of all windows of the corpus. `cells`: where these latents fire (`cells_of`).
        """
        wanted = pl.col("latent").is_in(latents.tolist())
        sample = contexts.filter(wanted, split="test").sort("latent", "context")
        context, decile, document = (sample[c].to_numpy().astype(np.int64) for c in ("context", "decile", "document"))
        own = marks(dense_activations(sample, masked.shape[1]), masked[context])
        runs = (own[:, 1:] & ~own[:, :-1]).sum(axis=1) + own[:, 0]
        shape = runs.astype(np.int64) * (masked.shape[1] + 1) + own.sum(axis=1)
        order = np.argsort(latents)
        row, cell_row = (order[np.searchsorted(latents, f["latent"].to_numpy(), sorter=order)] for f in (sample, cells))
        window = cells["window"].to_numpy()
        return cls(latents, row, context, decile, document, own, shape, cell_row.astype(np.uint32), window)

    def fires_in(self, windows: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, "latents n"]:
        """Whether each latent fires in each of some windows of the corpus, given by number."""
        distinct, column = np.unique(windows, return_inverse=True)
        place = np.full(1 + max(distinct.max(initial=0), self.cell_window.max(initial=0)), -1)
        place[distinct] = np.arange(len(distinct))
        at = place[self.cell_window]
        wanted = np.flatnonzero(at >= 0)
        fires = np.zeros((len(self.latents), len(distinct)), dtype=bool)
        fires[self.cell_row[wanted], at[wanted]] = True
        return fires[:, column]

    def like(self, shape: int) -> Int64[np.ndarray, " few"]:
        """Indices of the windows with this mark shape. Raises KeyError if there is none."""
        return self._by_shape[shape]

    @cached_property
    def _by_shape(self) -> dict[int, Int64[np.ndarray, " few"]]:
        order = np.argsort(self.shape, kind="stable")
        shapes, first = np.unique(self.shape[order], return_index=True)
        return dict(zip(shapes.tolist(), np.split(order, first[1:]), strict=True))


def cells_of(pairs: Sequence[pl.DataFrame], latents: UInt32[np.ndarray, " latents"], length: int) -> pl.DataFrame:
    """The windows of `length` tokens in which each of some latents fires: columns latent and window, each pair once.

    `pairs`: frames with latent and position, as in `schema.ACTIVATIONS`.
    """
    everything = pl.concat([schema.ACTIVATIONS.empty().select("latent", "position"), *pairs])
    wanted = everything.filter(pl.col("latent").is_in(latents.tolist()))
    return wanted.select("latent", window=pl.col("position") // length).unique()
