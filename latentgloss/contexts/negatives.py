"""Negatives: contexts in which a latent does not fire, by stratum, and the size of each stratum.

What belongs here: sampling from every stratum, and which windows are in the strata `same_document` and `random`. Makes
the rows of the tables `negatives` and `strata` for the selected latents that fire at all. The stage that writes them is
in `contexts/stages.py`.

A context is non-activating if the latent is zero on every token of it, masked ones included. It lies in a single
document, because otherwise a boundary in the window would reveal its stratum, or that it is activating
(docs/decisions/0012-windows-of-one-document.md). Strata are disjoint: a context belongs to the first one in
`negatives.strata` that it fits, in this order:

- `similar` and `neighbour`: see `contexts/hard_negatives.py`.
- `same_document`: windows of a document in which the latent fires (on an unmasked token of any window).
- `random`: all others.

Method: docs/methods.md, Data (non-activating contexts). Populations are exact and nothing is drawn by rejection. With
the usable windows in order of split and document, `same_document` and `random` are unions of intervals (documents,
minus windows in which the latent is active). The i-th context of a sample is the image of i under a random permutation
of that union. So a smaller sample is the beginning of a larger one, and the cost grows with the sample and the number
of activations, not with the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from latentgloss import schema
from latentgloss.contexts.blocks import Source, blocks_of
from latentgloss.contexts.firing import Cells
from latentgloss.contexts.hard_negatives import NOBODY, Firing, Neighbourhoods, nearest_latents, neighbour_stratum
from latentgloss.contexts.keys import hash48
from latentgloss.contexts.layout import Intervals, Layout, Listed, claimed, firing_documents
from latentgloss.contexts.permutation import permuted
from latentgloss.machine.sorting import ascending, in_turns
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from latentgloss.config.settings import NegativeSettings
    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Vectors


@dataclass(frozen=True)
class Strata:
    """What the strata of every block of a run are computed from."""

    settings: NegativeSettings
    corpus: Corpus
    layout: Layout
    neighbours: Int64[np.ndarray, "latents neighbours"] | None
    """`nearest_latents` of every latent of the SAE; None unless the stratum `neighbour` is in the settings."""
    firing: Firing | None
    """Where all those neighbours fire; None like `neighbours`."""
    nearest: Neighbourhoods | None
    """None unless the stratum `similar` is in the settings."""

    @classmethod
    def of(cls, run: StageRun[Any], source: Source, vectors: Callable[[], Vectors]) -> Strata:
        """Reads what the strata in the run's settings need.

        `vectors` opens the vectors of the corpus's contexts. It is called only for the stratum `similar`.
        """
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
        """The strata of a block that are listed window by window: `similar` and `neighbour`, if in the settings."""
        strata: dict[str, Listed] = {}
        if self.nearest is not None:
            strata["similar"] = self.nearest.stratum(cells, self.settings.seed, self.settings.nearest)
        if self.firing is not None and self.neighbours is not None:
            neighbours = self.neighbours[cells.latents]
            strata["neighbour"] = neighbour_stratum(cells, self.layout, self.firing, neighbours, claimed(strata))
        return strata

    def sample(self, cells: Cells) -> dict[str, pl.DataFrame]:
        """Tables `negatives` and `strata` of a block."""
        documents = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        if "same_document" in self.settings.strata:
            documents = firing_documents(cells, self.layout.windows, self.corpus)
        return sample_block(cells, self.layout, documents, self.settings, self.listed(cells))


@dataclass(frozen=True)
class _Touched:
    """Cells of usable windows, including those in which the latent is active on masked tokens only."""

    cell: Int64[np.ndarray, " n"]
    key: Int64[np.ndarray, " n"]
    """Window key of each cell, ascending."""

    @classmethod
    def of(cls, cells: Cells, layout: Layout) -> _Touched:
        """All cells of usable windows."""
        cell = np.flatnonzero(cells.kind < len(schema.SPLITS))
        key = layout.keys.pack(cells.row[cell], layout.place[cells.window[cell]])
        if (key[1:] < key[:-1]).any():  # mostly false: a corpus is in order of splits and, within, of documents
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
    documents: tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]],
    strata: Sequence[str],
    taken: Int64[np.ndarray, " taken"],
) -> dict[str, Intervals]:
    """The strata `same_document` and `random`, if they are in `strata`, as intervals of window keys.

    `documents`: (row, document) pairs of `firing_documents`. `taken`: window keys that belong to an earlier stratum.
    """
    keys = layout.keys
    begin, end = np.empty((2, 0), dtype=np.int64)
    intervals: dict[str, Intervals] = {}
    outside = excluded = np.concatenate([touched.key, taken])
    if "same_document" in strata:
        row, document = documents
        begin, end = keys.pack(row, layout.start[document]), keys.pack(row, layout.stop[document])
        with_windows = np.flatnonzero(begin < end)
        begin, end = ascending(begin[with_windows]), ascending(end[with_windows])
        # A window in which the latent fires is in one of the intervals. Any other excluded window is in one if more
        # intervals begin than end up to its key.
        inside = np.append(cells.activating[touched.cell], np.zeros(len(taken), dtype=bool))
        unsure = np.flatnonzero(~inside)
        begun, ended = (np.searchsorted(edges, excluded[unsure], side="right") for edges in (begin, end))
        inside[unsure] = begun > ended
        excluded_inside, outside = (excluded[np.flatnonzero(mask)] for mask in (inside, ~inside))
        intervals["same_document"] = Intervals.of([begin, excluded_inside + 1], [end, excluded_inside])
    if "random" in strata:
        bounds = keys.first(np.array([0, len(cells.latents)]))
        intervals["random"] = Intervals.of([bounds[:1], end, outside + 1], [begin, outside, bounds[1:]])
    return intervals


@dataclass(frozen=True)
class _Groups:
    """Every (latent that fires at all, split) in order, with the size of the sample to draw."""

    row: Int64[np.ndarray, " groups"]
    split: Int64[np.ndarray, " groups"]
    low: Int64[np.ndarray, " groups"]
    """The window keys of a group are low to high."""
    high: Int64[np.ndarray, " groups"]
    wanted: Int64[np.ndarray, " groups"]
    """Contexts per stratum, from the settings."""
    silent: Int64[np.ndarray, " groups"]
    """Usable windows in which the latent is zero on every token."""

    @classmethod
    def of(cls, cells: Cells, layout: Layout, touched: _Touched, settings: NegativeSettings) -> _Groups:
        """The groups of a block."""
        n_splits = len(schema.SPLITS)
        alive = np.flatnonzero(cells.alive)
        row, split = np.repeat(alive, n_splits), np.tile(np.arange(n_splits), len(alive))
        source = np.array(layout.windows.drawn_from)[split]
        low, high = layout.keys.pack(row, layout.edges[source]), layout.keys.pack(row, layout.edges[source + 1])
        wanted = np.array([getattr(settings, name) for name in schema.SPLITS])[split]
        silent = np.diff(layout.edges)[source] - touched.between(low, high)
        return cls(row, split, low, high, wanted, silent)


@dataclass(frozen=True)
class _Drawn:
    """Samples from one stratum, by group and order."""

    group: Int64[np.ndarray, " n"]
    order: Int64[np.ndarray, " n"]
    """Place in the group's sample, from 0."""
    key: Int64[np.ndarray, " n"]
    """Window key."""
    population: Int64[np.ndarray, " groups"]
    """Windows of the stratum in each group."""

    @classmethod
    def from_intervals(cls, groups: _Groups, cells: Cells, intervals: Intervals, seed: int, stratum: str) -> _Drawn:
        """Samples from a stratum that is a union of intervals."""
        first = intervals.rank(groups.low)
        population = intervals.rank(groups.high) - first
        sampled = np.minimum(groups.wanted, population)
        group = np.repeat(np.arange(len(sampled)), sampled)
        order = np.arange(len(group)) - np.repeat(np.cumsum(sampled) - sampled, sampled)
        hashes = counter_hash(seed, cells.latents[groups.row], groups.split, schema.STRATA.index(stratum))
        key = intervals.key(first[group] + permuted(order, group, population, hashes))
        return cls(group, order, key, population)

    @classmethod
    def from_list(
        cls, groups: _Groups, cells: Cells, layout: Layout, listed: Listed, seed: int, stratum: str
    ) -> _Drawn:
        """Samples from a stratum that is listed window by window, in which the deciles take turns."""
        group = np.searchsorted(groups.low, listed.key, side="right") - 1
        latent = cells.latents[layout.keys.row(listed.key)]
        window = layout.window[layout.keys.place(listed.key)]
        hashes = hash48(counter_hash(seed, latent, window, schema.STRATA.index(stratum)))
        drawn, order = in_turns(group, listed.decile, hashes, groups.wanted)
        return cls(group[drawn], order, listed.key[drawn], np.bincount(group, minlength=len(groups.row)))


def sample_block(
    cells: Cells,
    layout: Layout,
    documents: tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]],
    settings: NegativeSettings,
    listed: Mapping[str, Listed],
) -> dict[str, pl.DataFrame]:
    """Tables `negatives` and `strata` of the latents of `cells` that fire at all.

    `documents`: (row, document) pairs of `firing_documents`, empty if `same_document` is not in the settings. `listed`:
    the strata that are listed window by window (`Strata.listed`).
    """
    touched = _Touched.of(cells, layout)
    groups = _Groups.of(cells, layout, touched, settings)
    intervals = strata_intervals(cells, layout, touched, documents, settings.strata, claimed(listed))
    negatives, shares = [schema.NEGATIVES.empty()], [schema.STRATA_SHARES.empty()]
    for stratum in schema.STRATA:
        if stratum in listed:
            drawn = _Drawn.from_list(groups, cells, layout, listed[stratum], settings.seed, stratum)
        elif stratum in intervals:
            drawn = _Drawn.from_intervals(groups, cells, intervals[stratum], settings.seed, stratum)
        else:
            continue
        negatives.append(_negative_rows(groups, cells, layout, drawn, stratum))
        shares.append(_share_rows(groups, cells, drawn, stratum))
    # Strata are appended in the order of schema.STRATA, which the stable sort keeps.
    return {
        "negatives": pl.concat(negatives).sort("latent", "split", maintain_order=True),
        "strata": pl.concat(shares).sort("latent", "split", maintain_order=True),
    }


def _negative_rows(groups: _Groups, cells: Cells, layout: Layout, drawn: _Drawn, stratum: str) -> pl.DataFrame:
    """Rows of the table `negatives` for one stratum."""
    window = layout.window[layout.keys.place(drawn.key)]
    return schema.NEGATIVES.conform(
        pl.DataFrame(
            {
                "latent": cells.latents[groups.row[drawn.group]],
                "split": pl.Series(schema.SPLITS).gather(groups.split[drawn.group]),
                "context": window,
                "order": drawn.order,
                "stratum": pl.repeat(stratum, len(drawn.group), eager=True),
                "document": layout.windows.document[window],
            }
        )
    )


def _share_rows(groups: _Groups, cells: Cells, drawn: _Drawn, stratum: str) -> pl.DataFrame:
    """Rows of the table `strata` for one stratum."""
    return schema.STRATA_SHARES.conform(
        pl.DataFrame(
            {
                "latent": cells.latents[groups.row],
                "split": pl.Series(schema.SPLITS).gather(groups.split),
                "stratum": pl.repeat(stratum, len(groups.row), eager=True),
                "population": drawn.population,
                "share": drawn.population / np.maximum(groups.silent, 1),
                "sampled": np.minimum(groups.wanted, drawn.population),
            }
        )
    )
