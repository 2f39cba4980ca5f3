"""Clusters of judgements: documents and prompts, sums over them, and a block of latents cut into ranges.

What belongs here: which judgements may depend on each other, and fast sums over those. What follows for an interval is
in `intervals`; the conventions for blocks of latents are those of `statistics`.

Documents and prompts are crossed: neither holds the other. What both do to a variance is V_document + V_prompt -
V_both, `both` being the judgements that share document and prompt, whose covariance would be counted twice (Cameron,
Gelbach & Miller, J. Bus. Econ. Stat. 29:238, 2011). Where no two counted judgements share a prompt, that is
V_document, to the last digit.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


Mask: TypeAlias = Bool[np.ndarray, "latents n"]
Evidence: TypeAlias = Float[np.ndarray, "latents n"]
Ids: TypeAlias = Shaped[np.ndarray, "latents n"]
PerLatent: TypeAlias = Float[np.ndarray, " latents"]
Results: TypeAlias = Float[np.ndarray, "latents ..."]
Shares: TypeAlias = Float[np.ndarray, "latents strata"]
PerGroup: TypeAlias = Float[np.ndarray, " groups"]

CHUNK = 1 << 19
"""Judgements handled at once: bounds memory, and keeps the working set near the cache."""


THREADS = 4
"""Ranges of latents computed at once, where there are as many processors."""


class Groups:
    """The clusters of a block: one sort per latent, then sums over columns in any order.

    Sums run from left to right (`bincount`), never pairwise: so padding, which adds zeros, changes no last
    digit, and a latent's numbers do not depend on how wide its block happens to be.
    """

    def __init__(self, cluster: Ids) -> None:
        order = np.argsort(cluster, axis=1, kind="stable")
        ids = np.take_along_axis(cluster, order, 1)
        first = np.ones(ids.shape, bool)
        first[:, 1:] = (ids[:, 1:] != ids[:, :-1]) | (ids[:, 1:] < 0)
        self.group = np.empty(ids.shape, np.int64)
        np.put_along_axis(self.group, order, (np.cumsum(first) - 1).reshape(ids.shape), 1)
        self.latent = np.repeat(np.arange(len(ids)), first.sum(1))
        self.n_latents = len(ids)

    def sum(self, columns: Shaped[np.ndarray, "latents n"]) -> PerGroup:
        """Sum of `columns` in each cluster, over all latents one after the other."""
        return _sums(self.group.ravel(), columns.ravel(), len(self.latent))

    def total(self, groups: Shaped[np.ndarray, " groups"]) -> PerLatent:
        """Sum over the clusters of each latent."""
        return _sums(self.latent, groups, self.n_latents)

    def spread(self, values: PerLatent) -> PerGroup:
        """A latent's value, repeated for each of its clusters."""
        return values[self.latent]


Ways: TypeAlias = "tuple[Groups] | tuple[Groups, Groups, Groups]"
"""Documents alone; or documents, prompts, and what shares both."""


def groupings(cluster: Ids, prompt: Ids) -> Ways:
    """Documents alone where no latent has prompts (negative id: judged alone), so that they cost nothing."""
    documents = Groups(cluster)
    if not (prompt >= 0).any():
        return (documents,)
    prompts = Groups(prompt)
    first = prompts.group.min(axis=1, keepdims=True)
    return documents, prompts, Groups(documents.group * prompt.shape[1] + prompts.group - first)


def alone(like: Mask) -> Ids:
    """`prompt` of judgements made one at a time."""
    return np.broadcast_to(np.int8(-1), like.shape)


def share_prompts(ways: Ways, counted: Mask) -> Bool[np.ndarray, " latents"]:
    """Latents of which some `counted` judgements were made in one prompt."""
    if len(ways) == 1:
        return np.zeros(ways[0].n_latents, bool)
    return ways[1].total(ways[1].sum(counted) > 1) > 0


def combined(ways: Sequence[PerLatent]) -> PerLatent:
    """Variance under documents and prompts from those under documents, prompts and both.

    Not below the smaller of the first two: the estimate may be anything, even negative. A floor at the larger one
    covers too often (up to .98), most where a prompt lifts positives and negatives alike, which an area does not
    feel; and it would jump where the first two judgements share a prompt.
    """
    document, prompt, both = ways
    result: PerLatent = np.maximum(document + (prompt - both), np.minimum(document, prompt))
    return result


def _sums(index: Int[np.ndarray, " n"], values: Shaped[np.ndarray, " n"], size: int) -> Float[np.ndarray, " size"]:
    # bincount of nothing is an array of integers, whatever its weights
    return np.bincount(index, values, minlength=size).astype(np.float64, copy=False)


def in_chunks(
    compute: Callable[..., tuple[PerLatent, ...]], *blocks: Shaped[np.ndarray, "latents _"]
) -> tuple[Results, ...]:
    """`compute` over ranges of latents, results concatenated; each range holds about `CHUNK` judgements."""
    rows, n = blocks[0].shape
    if n == 0:  # one column of padding, so that every latent has a first judgement
        blocks = tuple(np.zeros((rows, 1), b.dtype) if b.shape[1] == 0 else b for b in blocks)
    step = max(1, CHUNK // max(n, 1))
    ranges = [tuple(b[i : i + step] for b in blocks) for i in range(0, max(rows, 1), step)]
    if len(ranges) < 2:
        parts = [compute(*part) for part in ranges]
    else:  # sorting and arithmetic of arrays run beside each other
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(lambda part: compute(*part), ranges))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
