"""Examples: contexts of one latent as arrays of tokens and activations.

What belongs here: `Examples`, from which every explainer works. Nothing is read or written.
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
    """Contexts of one latent, one per row.

    A context whose `activations` are all zero is non-activating. `weight` is the number of contexts of the population
    that a row stands for: non-activating contexts are subsampled, and the weights restore the base rate.
    """

    tokens: UInt32[np.ndarray, "n length"]
    activations: Float32[np.ndarray, "n length"]
    weight: Float32[np.ndarray, " n"]

    def check(self, vocabulary: Vocabulary) -> None:
        """Raises ExplainerError if nothing can be learnt from the examples.

        That is the case if no context is activating, if shapes or weights are wrong, or if a token id is outside the
        vocabulary.
        """
        if not (self.activations > 0).any():
            raise ExplainerError(
                f"the latent is active in none of the {len(self.tokens)} contexts",
                expected="at least one activating context",
                todo="explain only latents of status `eligible`",
            )
        if self.activations.shape != self.tokens.shape or self.weight.shape != self.tokens.shape[:1]:
            shapes = [self.tokens.shape, self.activations.shape, self.weight.shape]
            raise ExplainerError(
                f"tokens, activations and weights have the shapes {shapes}",
                expected="one shape for tokens and activations, and one weight per row",
            )
        if not (np.isfinite(self.weight).all() and (self.weight > 0).all()):
            raise ExplainerError("the weight of an example is not a positive number", expected="weight > 0 in each row")
        vocabulary.check(self.tokens)
