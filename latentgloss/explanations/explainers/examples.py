"""What explainers without a language model work on: windows of tokens, and what the tokens read as.

What belongs here: `Examples` (the evidence of one latent as arrays) and `Vocabulary` (token ids grouped by how they
read: the same word in any case and spacing, the same beginning, the same kind of token). Nothing is read or written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentgloss.errors import ExplainerError

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt32

    from latentgloss.models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Examples:
    """Contexts of one latent.

    A row of `activations` that is zero throughout is a non-activating context. `weight` is the number of contexts
    of the population that a row stands for: non-activating ones are subsampled, and weights restore the base rate.
    """

    tokens: UInt32[np.ndarray, "n length"]
    activations: Float32[np.ndarray, "n length"]
    weight: Float32[np.ndarray, " n"]

    def check(self, vocabulary: Vocabulary) -> None:
        """Raises ExplainerError if nothing can be learnt from the windows, or a token id is out of range."""
        if not (self.activations > 0).any():
            raise ExplainerError(
                f"the latent is active in none of the {len(self.tokens)} contexts",
                expected="at least one activating context",
                todo="explain only latents of status `eligible`",
            )
        if self.activations.shape != self.tokens.shape or self.weight.shape != self.tokens.shape[:1]:
            shapes = [self.tokens.shape, self.activations.shape, self.weight.shape]
            raise ExplainerError(
                f"windows of shapes {shapes}", expected="tokens and activations alike, one weight per row"
            )
        if not (np.isfinite(self.weight).all() and (self.weight > 0).all()):
            raise ExplainerError("a window's weight is not a positive number", expected="weight > 0 in every row")
        vocabulary.check(self.tokens)
