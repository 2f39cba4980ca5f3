"""Clusters of judgements: documents and prompts, sums over them, and blocks of latents computed in ranges.

What belongs here: which judgements may depend on each other, and fast sums over them. What clusters do to an interval
is in `rates` and `areas`. The conventions for blocks of latents are those of `metrics`.

Documents and prompts are crossed: neither contains the other. A variance under both is V_document + V_prompt - V_both
(Cameron, Gelbach & Miller, J. Bus. Econ. Stat. 29:238, 2011). V_both comes from judgements that share both a document
and a prompt, because their covariance is in each of the first two terms. Where no two counted judgements share a
prompt, the variance is V_document to the last digit.
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
"""Judgements per range of latents; bounds memory and keeps the working set near the cache."""

THREADS = 4
"""Most ranges of latents computed at the same time; fewer on a machine with fewer processors."""


class Groups:
    """The clusters of a block of latents: sorted once per latent, then summed over as often as needed.

    Sums run from left to right (`bincount`), never pairwise. Padding adds zeros, so it does not change even the last
    digit, and a latent's numbers do not depend on the width of its block.
    """

    def __init__(self, cluster: Ids) -> None:
        """`cluster`: id of each judgement's cluster [latents n]; each negative id is a cluster of its own."""
        order = np.argsort(cluster, axis=1, kind="stable")
        ids = np.take_along_axis(cluster, order, 1)
        first = np.ones(ids.shape, bool)
        first[:, 1:] = (ids[:, 1:] != ids[:, :-1]) | (ids[:, 1:] < 0)
        self.group = np.empty(ids.shape, np.int64)
        np.put_along_axis(self.group, order, (np.cumsum(first) - 1).reshape(ids.shape), 1)
        self.latent = np.repeat(np.arange(len(ids)), first.sum(1))
        self.n_latents = len(ids)

    def sum(self, columns: Shaped[np.ndarray, "latents n"]) -> PerGroup:
        """Sum of `columns` in each cluster [groups]; the clusters of all latents, one latent after the other."""
        return _sums(self.group.ravel(), columns.ravel(), len(self.latent))

    def total(self, groups: Shaped[np.ndarray, " groups"]) -> PerLatent:
        """Sum over the clusters of each latent [latents]."""
        return _sums(self.latent, groups, self.n_latents)

    def spread(self, values: PerLatent) -> PerGroup:
        """Each latent's value, repeated for each of its clusters [groups]."""
        return values[self.latent]


Ways: TypeAlias = "tuple[Groups] | tuple[Groups, Groups, Groups]"
"""Ways to cluster judgements: by document alone; or by document, by prompt, and by both together."""


def groupings(cluster: Ids, prompt: Ids) -> Ways:
    """Clusters by document and, if any judgement has a prompt, by prompt and by both.

    A negative `prompt` means that the judgement was made alone. Without prompts, only documents are grouped, which
    saves two sorts.
    """
    documents = Groups(cluster)
    if not (prompt >= 0).any():
        return (documents,)
    prompts = Groups(prompt)
    first = prompts.group.min(axis=1, keepdims=True)
    return documents, prompts, Groups(documents.group * prompt.shape[1] + prompts.group - first)


def alone(like: Mask) -> Ids:
    """The `prompt` argument for judgements made one at a time: -1 everywhere, in the shape of `like`."""
    return np.broadcast_to(np.int8(-1), like.shape)


def share_prompts(ways: Ways, counted: Mask) -> Bool[np.ndarray, " latents"]:
    """Whether two or more `counted` judgements of a latent were made in the same prompt."""
    if len(ways) == 1:
        return np.zeros(ways[0].n_latents, bool)
    return ways[1].total(ways[1].sum(counted) > 1) > 0


def combined(ways: Sequence[PerLatent]) -> PerLatent:
    """Variance under documents and prompts: max(V_document + V_prompt - V_both, min(V_document, V_prompt)).

    `ways`: the variances by document, by prompt and by both. The floor is needed because the estimate may take any
    value, even a negative one. A floor at the larger of the two was rejected for two reasons. Intervals covered too
    often (up to .98), most of all where a prompt lifts positives and negatives alike, which does not change an area.
    And the variance would jump as soon as two judgements share a prompt.
    """
    document, prompt, both = ways
    result: PerLatent = np.maximum(document + (prompt - both), np.minimum(document, prompt))
    return result


def _sums(index: Int[np.ndarray, " n"], values: Shaped[np.ndarray, " n"], size: int) -> Float[np.ndarray, " size"]:
    # `bincount` of an empty array returns integers, whatever the dtype of its weights.
    return np.bincount(index, values, minlength=size).astype(np.float64, copy=False)


def in_chunks(
    compute: Callable[..., tuple[PerLatent, ...]], *blocks: Shaped[np.ndarray, "latents _"]
) -> tuple[Results, ...]:
    """Calls `compute` on ranges of latents of about `CHUNK` judgements each and concatenates the results.

    `blocks`: arrays [latents _]. Ranges run on up to `THREADS` threads.
    """
    rows, n = blocks[0].shape
    if n == 0:  # one column of padding, so that every latent has a first column
        blocks = tuple(np.zeros((rows, 1), b.dtype) if b.shape[1] == 0 else b for b in blocks)
    step = max(1, CHUNK // max(n, 1))
    ranges = [tuple(b[i : i + step] for b in blocks) for i in range(0, max(rows, 1), step)]
    if len(ranges) < 2:
        parts = [compute(*part) for part in ranges]
    else:  # NumPy sorts and computes without the interpreter lock
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(lambda part: compute(*part), ranges))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
