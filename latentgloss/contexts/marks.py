"""Marks: which tokens of an activating context are shown as active.

What belongs here: the activations of sampled contexts as dense arrays, and the one rule that decides which tokens are
marked, both in the examples that an explainer shows and in the questions of `fuzzing`. Reads rows of `contexts` and
the mask of `activation_cache`; writes nothing. Method: docs/methods.md, Fuzzing (marks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32

from latentgloss import schema

if TYPE_CHECKING:
    from latentgloss.corpus.reader import Corpus
    from latentgloss.store import Version


SHARE = np.float32(0.3)
"""A token is marked if its activation exceeds this share of its context's maximum."""


def dense_activations(contexts: pl.DataFrame, length: int) -> Float32[np.ndarray, "contexts length"]:
    """Activation on every token of each row of `schema.CONTEXTS`; 0 where the latent is inactive."""
    dense = np.zeros((contexts.height, length), dtype=np.float32)
    rows = np.repeat(np.arange(contexts.height), contexts["offsets"].list.len().to_numpy())
    if len(rows):
        dense[rows, contexts["offsets"].explode().to_numpy()] = contexts["activations"].explode().to_numpy()
    return dense


def masked_tokens(cache: Version, corpus: Corpus, length: int) -> Bool[np.ndarray, "contexts length"]:
    """Masked tokens of every context of the corpus: those that make no context activating (BOS, special tokens,
    position 0, sinks)."""
    masked = np.zeros(corpus.tokens.size, dtype=np.bool_)
    masked[cache.read(schema.MASKED)["position"].to_numpy()] = True
    return masked.reshape(-1, length)


def marks(
    activations: Float32[np.ndarray, "contexts length"], masked: Bool[np.ndarray, "contexts length"]
) -> Bool[np.ndarray, "contexts length"]:
    """M_c = {t : a_t > 0.3 max a} over unmasked tokens t of context c; empty if all activations there are 0."""
    counted = np.where(masked, np.float32(0), activations)
    marked: Bool[np.ndarray, "contexts length"] = counted > SHARE * counted.max(axis=1, keepdims=True, initial=0)
    return marked
