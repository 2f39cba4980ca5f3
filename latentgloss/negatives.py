"""negatives: contexts in which a latent does not fire, by kind, and how large each kind is.

What belongs here: the strata `same_document` and `random`, and the stage `sampled_negatives`. Reads the corpus and
`activation_cache`; writes the tables `negatives` and `strata`, for every latent asked for that fires at all.

A context is non-activating if the latent is zero on every token of it, masked ones included. Strata are disjoint:

- `same_document`: windows of a single document in which the latent fires (on an unmasked token, anywhere).
- `random`: all others; everything, if `same_document` is not asked for.

Method: docs/methods.md, Data. Populations are exact, and nothing is drawn in vain: with the usable windows laid out
by split and document, a stratum is a union of intervals (documents, minus windows in which the latent fires), and
the i-th context of a sample is the image of i under a random permutation of that union. So a smaller sample is the
beginning of a larger one, and work grows with the sample and the activations, not with the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Int64, UInt64

from latentgloss import schema
from latentgloss.hashing import counter_hash
from latentgloss.sorting import distinct
from latentgloss.windows import Cells, Windows, by_block, members
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentgloss.corpus import Corpus
    from latentgloss.settings import NegativeSettings
    from latentgloss.work import Work

_CHUNK = 2**14
_ROUNDS = 32
"""Of a permutation: one place is uniform but for 2^-32, and pairs are as far as the tests can see."""


def _negatives(work: Work) -> None:
    settings = work.settings.negatives
    layout: list[Layout] = []  # made once, and only if some block has to be computed

    def compute(cells: Cells, windows: Windows, corpus: Corpus) -> dict[str, pl.DataFrame]:
        if not layout:
            layout.append(Layout.of(windows))
        return sample_block(cells, layout[0], firing_documents(cells, windows, corpus), settings)

    windows = by_block(work, compute)
    strata = work.draft.scan(schema.STRATA_SHARES)
    short = pl.col("sampled") < pl.col("split").replace_strict(
        {split: getattr(settings, split) for split in schema.SPLITS}, return_dtype=pl.UInt32
    )
    totals = strata.group_by("stratum").agg(pl.col("sampled").sum(), short.sum().alias("short")).sort("stratum")
    work.facts = {
        "latents": strata.select(pl.col("latent").n_unique()).collect().item(),
        "negatives": {stratum: sampled for stratum, sampled, _ in totals.collect().iter_rows()},
        "samples_short": {stratum: n for stratum, _, n in totals.collect().iter_rows()},
        **windows.facts(),
    }


sample_negatives = one_by_one(_negatives)
"""Runner of `sampled_negatives`."""


@dataclass(frozen=True)
class Layout:
    """The usable windows in a row: by split, then document; windows of several documents last in their split."""

    windows: Windows
    window: Int64[np.ndarray, " usable"]
    """Context number at each place."""
    place: Int64[np.ndarray, " windows"]
    """Place of each window; -1 if it is not usable."""
    edges: Int64[np.ndarray, " edges"]
    """Split s lies at places edges[s] to edges[s + 1]."""
    start: Int64[np.ndarray, " documents"]
    """A document's single-document windows lie at places start to stop."""
    stop: Int64[np.ndarray, " documents"]

    @classmethod
    def of(cls, windows: Windows) -> Layout:
        usable = np.flatnonzero(windows.usable)
        several = windows.n_documents[usable] != 1
        document, split = windows.document[usable], windows.split[usable]
        order = np.lexsort((usable, document, several, split))
        place = np.full(len(windows.split), -1, dtype=np.int64)
        place[usable[order]] = np.arange(len(order))
        single = np.flatnonzero(~several[order])
        n_documents = int(windows.document.max(initial=0)) + 1
        start, stop = np.zeros((2, n_documents), dtype=np.int64)
        # Written backwards and forwards: the first and the last place of a document remain.
        start[document[order][single[::-1]]] = single[::-1]
        stop[document[order][single]] = single + 1
        return cls(windows, usable[order], place, np.append(0, np.cumsum(windows.n_usable)), start, stop)


def firing_documents(
    cells: Cells, windows: Windows, corpus: Corpus
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """(row, document) pairs, sorted and distinct: the latent fires on an unmasked token of the document."""
    single = windows.n_documents[cells.window] == 1
    whole = np.flatnonzero(cells.activating & single)
    # Only windows of several documents need a look at their tokens.
    several = np.flatnonzero(cells.activating & ~single)
    token, _ = members(cells.first[several], cells.count[several])
    row = np.repeat(cells.row[several], cells.count[several])[cells.unmasked[token]]
    document = corpus.document_of_position(cells.position[token[cells.unmasked[token]]])
    inside = document >= 0
    pairs = distinct(
        cells.row[whole] << 32 | windows.document[cells.window[whole]], row[inside] << 32 | document[inside]
    )
    return pairs >> 32, pairs & 0xFFFF_FFFF


@dataclass(frozen=True)
class Intervals:
    """Disjoint, ascending intervals of keys, from which single keys are drawn by their rank."""

    start: Int64[np.ndarray, " intervals"]
    before: Int64[np.ndarray, " edges"]
    """Keys in the intervals before each; the total last."""

    @classmethod
    def of(cls, starts: Sequence[Int64[np.ndarray, " _"]], stops: Sequence[Int64[np.ndarray, " _"]]) -> Intervals:
        """From starts and stops in any order: the intervals being disjoint, sorting pairs them."""
        start, stop = np.sort(np.concatenate(starts)), np.sort(np.concatenate(stops))
        return cls(start, np.append(0, np.cumsum(stop - start)))

    def rank(self, bounds: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Keys below each bound. No interval may contain one."""
        ranks: Int64[np.ndarray, " n"] = self.before[np.searchsorted(self.start, bounds)]
        return ranks

    def key(self, ranks: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        at = np.searchsorted(self.before, ranks, side="right") - 1
        keys: Int64[np.ndarray, " n"] = self.start[at] + ranks - self.before[at]
        return keys


def strata_intervals(
    cells: Cells, layout: Layout, firing: tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]],
    strata: Sequence[str],
) -> dict[str, Intervals]:  # fmt: skip
    """Non-activating windows per stratum, as intervals of keys row * (usable windows) + place."""
    size = len(layout.window)
    place = layout.place[cells.window]
    usable = place >= 0
    key = (cells.row * size + place)[usable]
    begin, end = np.empty((2, 0), dtype=np.int64)
    found: dict[str, Intervals] = {}
    inside = np.zeros(len(key), dtype=bool)
    if "same_document" in strata:
        row, document = firing
        begin, end = row * size + layout.start[document], row * size + layout.stop[document]
        begin, end = np.sort(begin[begin < end]), np.sort(end[begin < end])
        # A window of one document in which the latent fires is in one of the intervals; the few in which it is
        # active on masked tokens only are in one if more intervals have begun than ended.
        inside = (layout.windows.n_documents[cells.window] == 1)[usable]
        unsure = np.flatnonzero(inside & ~cells.activating[usable])
        begun, ended = (np.searchsorted(x, key[unsure], side="right") for x in (begin, end))
        inside[unsure] = begun > ended
        here = np.sort(key[inside])
        found["same_document"] = Intervals.of([begin, here + 1], [end, here])
    if "random" in strata:
        edges = (np.arange(len(cells.latents))[:, None] * size + layout.edges).astype(np.int64)
        rest = np.sort(key[~inside])
        found["random"] = Intervals.of([edges[:, :-1].ravel(), end, rest + 1], [edges[:, 1:].ravel(), begin, rest])
    return found


def sample_block(
    cells: Cells, layout: Layout, firing: tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]],
    settings: NegativeSettings,
) -> dict[str, pl.DataFrame]:  # fmt: skip
    """Tables `negatives` and `strata` of the latents of `cells` that fire at all."""
    size, n_splits = len(layout.window), len(schema.SPLITS)
    alive = np.flatnonzero(cells.alive)
    group_row, group_split = np.repeat(alive, n_splits), np.tile(np.arange(n_splits), len(alive))
    low, high = (group_row * size + layout.edges[group_split + shift] for shift in (0, 1))
    wanted = np.array([getattr(settings, split) for split in schema.SPLITS])[group_split]
    touched = layout.place[cells.window] >= 0
    group_of_cell = cells.row[touched] * n_splits + layout.windows.split[cells.window[touched]]
    n_touched = np.bincount(group_of_cell, minlength=len(cells.latents) * n_splits)
    silent = layout.windows.n_usable[group_split] - n_touched[group_row * n_splits + group_split]

    negatives, shares = [schema.NEGATIVES.empty()], [schema.STRATA_SHARES.empty()]
    for stratum, intervals in strata_intervals(cells, layout, firing, settings.strata).items():
        first = intervals.rank(low)
        population = intervals.rank(high) - first
        sampled = np.minimum(wanted, population)
        group = np.repeat(np.arange(len(group_row)), sampled)
        order = np.arange(len(group)) - np.repeat(np.cumsum(sampled) - sampled, sampled)
        row = group_row[group]
        keys = counter_hash(settings.seed, cells.latents[group_row], group_split, schema.STRATA.index(stratum))
        rank = first[group] + permuted(order, group, population, keys)
        window = layout.window[intervals.key(rank) - row * size]
        negatives.append(
            schema.NEGATIVES.conform(
                pl.DataFrame(
                    {
                        "latent": cells.latents[row],
                        "split": pl.Series(schema.SPLITS).gather(group_split[group]),
                        "context": window,
                        "order": order,
                        "stratum": pl.repeat(stratum, len(group), eager=True),
                        "document": layout.windows.document[window],
                        "n_documents": layout.windows.n_documents[window],
                    }
                )
            )
        )
        shares.append(
            schema.STRATA_SHARES.conform(
                pl.DataFrame(
                    {
                        "latent": cells.latents[group_row],
                        "split": pl.Series(schema.SPLITS).gather(group_split),
                        "stratum": pl.repeat(stratum, len(group_row), eager=True),
                        "population": population,
                        "share": population / np.maximum(silent, 1),
                        "sampled": sampled,
                    }
                )
            )
        )
    # Strata come in the order of schema.STRATA, and a stable sort keeps it.
    return {
        "negatives": pl.concat(negatives).sort("latent", "split", maintain_order=True),
        "strata": pl.concat(shares).sort("latent", "split", maintain_order=True),
    }


def permuted(
    index: Int64[np.ndarray, " n"],
    group: Int64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, " groups"],
    keys: UInt64[np.ndarray, " groups"],
) -> Int64[np.ndarray, " n"]:
    """Image of each index under the random permutation of range(size) of its group; index < size <= 2^32.

    The swap-or-not shuffle (Hoang, Morris & Rogaway, CRYPTO 2012): a round pairs x with k - x, k random, and swaps
    each pair or not by a random bit. It works for any size, tiny ones included, and needs no table.
    """
    rounds = [counter_hash(number, keys) for number in range(_ROUNDS)]
    shifts = [(bits % np.maximum(sizes, 1).astype(np.uint64)).astype(np.int64) for bits in rounds]
    image = np.empty_like(index)
    for low in range(0, len(index), _CHUNK):  # as much as stays near the processor
        part = slice(low, low + _CHUNK)
        x, of = index[part].copy(), group[part]
        size = sizes[of]
        for number, (bits, k) in enumerate(zip(rounds, shifts, strict=True)):
            partner = k[of]
            partner -= x
            partner += size * (partner < 0)
            key = np.maximum(x, partner)
            key ^= bits.view(np.int64)[of]
            swap = counter_hash(number, key) >> np.uint64(63)
            np.copyto(x, partner, where=swap.astype(bool))
        image[part] = x
    return image
