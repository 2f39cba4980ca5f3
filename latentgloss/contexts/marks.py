"""Marks: which tokens of an activating context are shown as active.

What belongs here: activations of sampled contexts as arrays, and the one rule by which tokens are marked, for the
examples an explainer shows and for what `fuzzing` asks about. Reads rows of `contexts` and the mask of
`activation_cache`; writes nothing.
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
"""A token is marked if it exceeds this share of its context's maximum."""


def dense_activations(contexts: pl.DataFrame, length: int) -> Float32[np.ndarray, "contexts length"]:
    """Activation on every token of each context row (columns of `schema.CONTEXTS`), 0 where inactive."""
    out = np.zeros((contexts.height, length), dtype=np.float32)
    rows = np.repeat(np.arange(contexts.height), contexts["offsets"].list.len().to_numpy())
    if len(rows):
        out[rows, contexts["offsets"].explode().to_numpy()] = contexts["activations"].explode().to_numpy()
    return out


def masked_tokens(cache: Version, corpus: Corpus, length: int) -> Bool[np.ndarray, "contexts length"]:
    """For every context of the corpus the tokens that make nothing activating (BOS, special tokens, sinks)."""
    masked = np.zeros(corpus.tokens.size, dtype=np.bool_)
    masked[cache.read(schema.MASKED)["position"].to_numpy()] = True
    return masked.reshape(-1, length)


def marks(
    activations: Float32[np.ndarray, "contexts length"], masked: Bool[np.ndarray, "contexts length"]
) -> Bool[np.ndarray, "contexts length"]:
    """M_c = {t : a_t > 0.3 max a}, over unmasked tokens; none in a row without an activation."""
    counted = np.where(masked, np.float32(0), activations)
    marked: Bool[np.ndarray, "contexts length"] = counted > SHARE * counted.max(axis=1, keepdims=True, initial=0)
    return marked
