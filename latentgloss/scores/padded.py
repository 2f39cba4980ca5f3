"""Judgements as padded arrays: one row per latent and one column per judgement, as `statistics` takes them.

What belongs here: the way from a table with a row per judgement to arrays. Nothing is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl


class Padded:
    """Columns of judgements as arrays [latents n], with one row per latent that occurs, in ascending order."""

    def __init__(self, frame: pl.DataFrame) -> None:
        """`frame`: one row per judgement, in any order."""
        self.frame = frame.sort("latent", maintain_order=True)
        """The judgements in the order of `latents`."""
        self.latents, first, count = np.unique(self.frame["latent"].to_numpy(), return_index=True, return_counts=True)
        self.row = np.repeat(np.arange(len(count)), count)
        self.column = np.arange(self.frame.height) - np.repeat(first, count)
        self.shape = (len(count), int(count.max(initial=1)))
        self.asked = self.arrange(np.ones(self.frame.height, bool))
        """bool [latents n]: False for padding."""

    def __call__(self, name: str, fill: Any = 0) -> np.ndarray:
        """A column as an array [latents n] of its dtype, with `fill` as padding."""
        return self.arrange(self.frame[name].to_numpy(), fill)

    def arrange(self, values: np.ndarray, fill: Any = 0) -> np.ndarray:
        """Values in the order of `self.frame` as an array [latents n] of their dtype, with `fill` as padding."""
        out = np.full(self.shape, fill, dtype=values.dtype)
        out[self.row, self.column] = values
        return out

    def present(self, name: str) -> np.ndarray:
        """bool [latents n]: the column has a value; False for padding."""
        return self.arrange(self.frame[name].is_not_null().to_numpy())

    def predictions(self) -> np.ndarray:
        """Predictions, bool [latents n]; False where there is none, which must be masked."""
        return self.arrange(self.frame["prediction"].fill_null(False).to_numpy())

    def prompts(self) -> np.ndarray:
        """Prompt of each judgement, int64 [latents n]; -1 where it was made alone."""
        return self.arrange(self.frame["prompt"].fill_null(-1).to_numpy().astype(np.int64), fill=-1)
