"""negatives: contexts in which a latent does not fire, by kind, and how large each kind is.

What belongs here: the stage `sampled_negatives`, and the strata `same_document` and `random`. Reads the corpus and
`activation_cache`; writes the tables `negatives` and `strata`, for every latent asked for that fires at all.

A context is non-activating if the latent is zero on every token of it, masked ones included. It lies in a single
document: otherwise a boundary in the window would say which stratum it is of, or that it is activating (decision 0012).
Strata are disjoint, a context being of the first that fits among those asked for:

- `similar` and `neighbour`: see `hard_negatives.py`.
- `same_document`: windows of a document in which the latent fires (on an unmasked token, anywhere).
- `random`: all others.

Method: docs/methods.md, Data. Populations are exact, and nothing is drawn in vain: with the usable windows laid out
by split and document, the last two are unions of intervals (documents, minus windows in which the latent fires), and
the i-th context of a sample is the image of i under a random permutation of that union. So a smaller sample is the
beginning of a larger one, and work grows with the sample and the activations, not with the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Int64, UInt64

from latentgloss import schema
from latentgloss.contexts.blocks import Source, blocks_of
from latentgloss.contexts.firing import Cells
from latentgloss.contexts.hard_negatives import NOBODY, Firing, Neighbourhoods, nearest_latents, neighbour_stratum
from latentgloss.contexts.layout import Intervals, Layout, Listed, claimed, firing_documents
from latentgloss.machine.sorting import ascending, in_turns
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from latentgloss.config.settings import NegativeSettings
    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Vectors


_CHUNK = 2**14
_ROUNDS = 32
"""Of a permutation: one place is uniform but for 2^-32, and pairs are as far as the tests can see."""


@dataclass(frozen=True)
class Strata:
    """What the strata of any block of a work are worked out from."""

    settings: NegativeSettings
    corpus: Corpus
    layout: Layout
    neighbours: Int64[np.ndarray, "latents neighbours"] | None
    """Of every latent of the SAE (`nearest_latents`); None unless `neighbour` is asked for."""
    firing: Firing | None
    nearest: Neighbourhoods | None

    @classmethod
    def of(cls, run: StageRun[Any], source: Source, vectors: Callable[[], Vectors]) -> Strata:
        """`vectors` opens those of the corpus's contexts; called only for the stratum `similar`."""
        settings, layout = run.settings.negatives, Layout.of(source.windows)
        neighbours, firing = None, None
        if "neighbour" in settings.strata:
            table = run.input("activation_cache").scan(schema.LATENTS)
            columns = "latent", "neighbours", "neighbour_cosines"
            neighbours = nearest_latents(table.select(columns).sort("latent").collect())
            wanted = np.unique(neighbours[np.concatenate(source.due)])
            wanted = wanted[wanted != NOBODY].astype(np.uint32)
            folder = run.settings.store_root
            firing = Firing.of(source, blocks_of(wanted), settings.seed, folder)
        nearest = Neighbourhoods(layout, vectors()) if "similar" in settings.strata else None
        return cls(settings, source.corpus, layout, neighbours, firing, nearest)

    def listed(self, cells: Cells) -> dict[str, Listed]:
        """The strata of a block that are listed window by window."""
        found: dict[str, Listed] = {}
        if self.nearest is not None:
            found["similar"] = self.nearest.stratum(cells, self.settings.seed, self.settings.nearest)
        if self.firing is not None and self.neighbours is not None:
            neighbours = self.neighbours[cells.latents]
            found["neighbour"] = neighbour_stratum(cells, self.layout, self.firing, neighbours, claimed(found))
        return found

    def sample(self, cells: Cells) -> dict[str, pl.DataFrame]:
        """Tables of a block."""
        firing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        if "same_document" in self.settings.strata:
            firing = firing_documents(cells, self.layout.windows, self.corpus)
        return sample_block(cells, self.layout, firing, self.settings, self.listed(cells))


@dataclass(frozen=True)
class _Touched:
    """Usable windows in which latents are active, masked tokens included."""

    cell: Int64[np.ndarray, " n"]
    key: Int64[np.ndarray, " n"]
    """Row * (usable windows) + place, ascending."""

    @classmethod
    def of(cls, cells: Cells, layout: Layout) -> _Touched:
        cell = np.flatnonzero(cells.kind < len(schema.SPLITS))
        key = cells.row[cell] * len(layout.window) + layout.place[cells.window[cell]]
        if (key[1:] < key[:-1]).any():  # a corpus comes split by split and there by document: in order already
            order = np.argsort(key)
            cell, key = cell[order], key[order]
        return cls(cell, key)

    def between(self, low: Int64[np.ndarray, " n"], high: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """How many keys are in low <= key < high."""
        return np.searchsorted(self.key, high) - np.searchsorted(self.key, low)


def strata_intervals(
    cells: Cells,
    layout: Layout,
    touched: _Touched,
    firing: tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]],
    strata: Sequence[str],
    taken: Int64[np.ndarray, " taken"],
) -> dict[str, Intervals]:
    """Non-activating windows of `same_document` and `random`, as intervals of keys row * (usable windows) + place.

    `taken`: keys of the windows that belong to an earlier stratum.
    """
    size = len(layout.window)
    begin, end = np.empty((2, 0), dtype=np.int64)
    found: dict[str, Intervals] = {}
    rest = key = np.concatenate([touched.key, taken])
    if "same_document" in strata:
        row, document = firing
        begin, end = row * size + layout.start[document], row * size + layout.stop[document]
        some = np.flatnonzero(begin < end)
        begin, end = ascending(begin[some]), ascending(end[some])
        # A window in which the latent fires is in one of the intervals. Any other, active on masked tokens only or not
        # at all, is in one if more intervals have begun than ended.
        inside = np.append(cells.activating[touched.cell], np.zeros(len(taken), dtype=bool))
        unsure = np.flatnonzero(~inside)
        begun, ended = (np.searchsorted(x, key[unsure], side="right") for x in (begin, end))
        inside[unsure] = begun > ended
        here, rest = (key[np.flatnonzero(mask)] for mask in (inside, ~inside))
        found["same_document"] = Intervals.of([begin, here + 1], [end, here])
    if "random" in strata:
        bounds = np.array([0, len(cells.latents) * size])
        found["random"] = Intervals.of([bounds[:1], end, rest + 1], [begin, rest, bounds[1:]])
    return found


@dataclass(frozen=True)
class _Groups:
    """Every (latent that fires at all, split), in order, and what is wanted of each."""

    row: Int64[np.ndarray, " groups"]
    split: Int64[np.ndarray, " groups"]
    low: Int64[np.ndarray, " groups"]
    """Keys of its windows are low to high."""
    high: Int64[np.ndarray, " groups"]
    wanted: Int64[np.ndarray, " groups"]
    silent: Int64[np.ndarray, " groups"]
    """Windows in which the latent does not fire."""

    @classmethod
    def of(cls, cells: Cells, layout: Layout, touched: _Touched, settings: NegativeSettings) -> _Groups:
        size, n_splits = len(layout.window), len(schema.SPLITS)
        alive = np.flatnonzero(cells.alive)
        row, split = np.repeat(alive, n_splits), np.tile(np.arange(n_splits), len(alive))
        source = np.array(layout.windows.drawn_from)[split]
        low, high = (row * size + layout.edges[source + shift] for shift in (0, 1))
        wanted = np.array([getattr(settings, name) for name in schema.SPLITS])[split]
        silent = np.diff(layout.edges)[source] - touched.between(low, high)
        return cls(row, split, low, high, wanted, silent)


_Drawn = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " groups"]]
"""Group, order and key of each window drawn; population of each group."""


def _from_intervals(groups: _Groups, cells: Cells, intervals: Intervals, seed: int, stratum: str) -> _Drawn:
    first = intervals.rank(groups.low)
    population = intervals.rank(groups.high) - first
    sampled = np.minimum(groups.wanted, population)
    group = np.repeat(np.arange(len(sampled)), sampled)
    order = np.arange(len(group)) - np.repeat(np.cumsum(sampled) - sampled, sampled)
    keys = counter_hash(seed, cells.latents[groups.row], groups.split, schema.STRATA.index(stratum))
    return group, order, intervals.key(first[group] + permuted(order, group, population, keys)), population


def _from_list(groups: _Groups, cells: Cells, layout: Layout, listed: Listed, seed: int, stratum: str) -> _Drawn:
    group = np.searchsorted(groups.low, listed.key, side="right") - 1
    size = len(layout.window)
    latent, window = cells.latents[listed.key // size], layout.window[listed.key % size]
    hashes = counter_hash(seed, latent, window, schema.STRATA.index(stratum)) >> np.uint64(16)
    drawn, order = in_turns(group, listed.decile, hashes, groups.wanted)
    return group[drawn], order, listed.key[drawn], np.bincount(group, minlength=len(groups.row))


def sample_block(
    cells: Cells,
    layout: Layout,
    firing: tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]],
    settings: NegativeSettings,
    listed: Mapping[str, Listed],
) -> dict[str, pl.DataFrame]:
    """Tables `negatives` and `strata` of the latents of `cells` that fire at all."""
    touched = _Touched.of(cells, layout)
    groups = _Groups.of(cells, layout, touched, settings)
    intervals = strata_intervals(cells, layout, touched, firing, settings.strata, claimed(listed))
    negatives, shares = [schema.NEGATIVES.empty()], [schema.STRATA_SHARES.empty()]
    for stratum in schema.STRATA:
        if stratum in listed:
            drawn = _from_list(groups, cells, layout, listed[stratum], settings.seed, stratum)
        elif stratum in intervals:
            drawn = _from_intervals(groups, cells, intervals[stratum], settings.seed, stratum)
        else:
            continue
        group, order, key, population = drawn
        window = layout.window[key % len(layout.window)]
        negatives.append(
            schema.NEGATIVES.conform(
                pl.DataFrame(
                    {
                        "latent": cells.latents[groups.row[group]],
                        "split": pl.Series(schema.SPLITS).gather(groups.split[group]),
                        "context": window,
                        "order": order,
                        "stratum": pl.repeat(stratum, len(group), eager=True),
                        "document": layout.windows.document[window],
                    }
                )
            )
        )
        shares.append(
            schema.STRATA_SHARES.conform(
                pl.DataFrame(
                    {
                        "latent": cells.latents[groups.row],
                        "split": pl.Series(schema.SPLITS).gather(groups.split),
                        "stratum": pl.repeat(stratum, len(groups.row), eager=True),
                        "population": population,
                        "share": population / np.maximum(groups.silent, 1),
                        "sampled": np.minimum(groups.wanted, population),
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
            partner += size & (partner >> 63)  # modulo the size: the sign bit is all ones or none
            key = np.maximum(x, partner)
            key ^= bits.view(np.int64)[of]
            partner -= x
            partner &= counter_hash(number, key).view(np.int64) >> 63  # swapped or not
            x += partner
        image[part] = x
    return image
