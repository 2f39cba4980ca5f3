"""Activating contexts: which latents can be explained and scored, and the contexts sampled for each.

What belongs here: eligibility and samplers. Makes the rows of the tables `eligibility` (one row per selected latent)
and `contexts` (eligible latents only); the stage that writes them is in `contexts/stages.py`. Deciles are in
`contexts/population.py`, non-activating contexts in `contexts/negatives.py`, windows in `contexts/windows.py`.

Method: docs/methods.md, Data, after Paulo et al., arXiv 2410.13928, section 3, with splits instead of one pool.

A sample is an order, of which the first n are taken: `order < 40` of 400 is the sample of 40, and a larger sample only
appends. Each split is sampled by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Bool, Int64, Shaped

from latentgloss import schema
from latentgloss.contexts.firing import Cells, members
from latentgloss.contexts.keys import document_keys
from latentgloss.contexts.population import DECILES, Population
from latentgloss.contexts.windows import REPEAT, SEVERAL, SHARED, Windows
from latentgloss.machine.sorting import distinct, enough, order_by, rank_in

if TYPE_CHECKING:
    from latentgloss.config.settings import ContextSettings


def sample_block(cells: Cells, windows: Windows, settings: ContextSettings) -> dict[str, pl.DataFrame]:
    """Tables `eligibility` and `contexts` of the latents of one block."""
    population = Population.of(cells, windows, settings.seed)
    table = eligibility(cells, windows, population, settings)
    populations = [population] * len(schema.SPLITS)
    if settings.pool == "one":  # samples of one pool are drawn independently of each other
        populations = [Population.of(cells, windows, settings.seed + 1 + i) for i in range(len(schema.SPLITS))]
    eligible = (table["status"] == "eligible").to_numpy()
    samples = [
        _sample(
            populations[number],
            windows.drawn_from[number],
            eligible,
            "quantile" if split != "explain" else settings.sampler,
            getattr(settings, split),
            per_document=settings.per_document if split == "test" else None,
        ).with_columns(split=pl.lit(number, pl.UInt8))
        for number, split in enumerate(schema.SPLITS)
    ]
    return {"eligibility": table, "contexts": _described(cells, windows, pl.concat(samples))}


def eligibility(cells: Cells, windows: Windows, population: Population, settings: ContextSettings) -> pl.DataFrame:
    """Table `eligibility`: one row per latent of the block.

    Eligibility is decided before sampling, so it does not depend on sample sizes. A latent has the first status that
    applies: `dead`, `rare`, `dense`, `one_document`, `eligible`.
    """
    test, n_splits, n_latents = schema.SPLITS.index("test"), len(schema.SPLITS), len(cells.latents)
    n_test_windows = int(windows.n_usable[test])
    n = population.n.reshape(n_latents, n_splits)
    dropped = _by_kind(cells, cells.activating & (cells.kind >= n_splits))
    masked_only = _by_kind(cells, ~cells.activating)
    frame = pl.DataFrame(
        {
            "latent": cells.latents,
            **{f"n_{split}": n[:, source] for split, source in zip(schema.SPLITS, windows.drawn_from, strict=True)},
            "n_test_documents": _documents(population, test),
            "n_dropped_several": dropped[:, SEVERAL],
            "n_dropped_shared": dropped[:, SHARED],
            "n_dropped_identical": dropped[:, REPEAT],
            "firing_rate": n[:, test] / max(n_test_windows, 1),
            "alive": (n.sum(axis=1) + dropped.sum(axis=1)) > 0,
            "silent": n_test_windows - n[:, test] - masked_only[:, test],
        }
    )
    n_tokens: Int64[np.ndarray, " latents"] = np.full(n_latents, settings.min_active_tokens)
    if settings.min_active_tokens:  # otherwise the pass over all tokens is spared
        n_tokens = np.bincount(np.repeat(cells.row, cells.count)[cells.unmasked], minlength=n_latents)
    frame = frame.with_columns(n_tokens=n_tokens)
    problems = (
        (~pl.col("alive"), "dead", pl.lit("active on 0 unmasked tokens")),
        _fewer("n_tokens", settings.min_active_tokens, "rare", "{} active tokens"),
        _fewer("n_explain", settings.min_explain, "rare", "{} activating explain contexts"),
        _fewer("n_test", settings.min_test, "rare", "{} activating test contexts"),
        _fewer("silent", settings.min_test, "dense", "{} non-activating test contexts"),
        _fewer("n_test_documents", settings.min_test_documents, "one_document", "test contexts from {} documents"),
    )
    return frame.with_columns(
        status=pl.coalesce(*(pl.when(applies).then(pl.lit(name)) for applies, name, _ in problems), pl.lit("eligible")),
        reason=pl.coalesce(*(pl.when(applies).then(reason) for applies, _, reason in problems), pl.lit("")),
    ).select(list(schema.ELIGIBILITY.schema))


def _by_kind(cells: Cells, chosen: Bool[np.ndarray, " cells"]) -> Int64[np.ndarray, "latents kinds"]:
    """Chosen cells by latent and kind of window. Fastest if few are chosen."""
    n_kinds = max(SEVERAL, SHARED, REPEAT) + 1
    cell = np.flatnonzero(chosen)
    counts = np.bincount(cells.row[cell] * n_kinds + cells.kind[cell], minlength=len(cells.latents) * n_kinds)
    return counts.reshape(len(cells.latents), n_kinds)


def _fewer(column: str, least: int, status: str, words: str) -> tuple[pl.Expr, str, pl.Expr]:
    """(whether `column` is below `least`, status, reason): why a latent is not eligible."""
    return pl.col(column) < least, status, pl.format(f"{words}, fewer than {least}", column)


def _documents(population: Population, split: int) -> Int64[np.ndarray, " latents"]:
    """Number of distinct documents among each latent's windows of a split."""
    index = population.members(np.arange(split, len(population.n), len(schema.SPLITS)))
    row = population.group[index] // len(schema.SPLITS)
    pairs = distinct(document_keys(row, population.cells.document[population.cell[index]]))
    first_of_row = document_keys(np.arange(len(population.cells.latents) + 1), 0)
    return np.diff(np.searchsorted(pairs, first_of_row))


def _sample(
    population: Population,
    source: int,
    eligible: Bool[np.ndarray, " latents"],
    sampler: str,
    size: int,
    *,
    per_document: int | None,
) -> pl.DataFrame:
    """At most `size` windows of the split `source` per eligible latent, from as few windows as decide the sample.

    `quantile` and `random` order windows by hash, so windows of low hash come first. About two to three times as many
    windows as the sample holds are read, and all of them for latents whose sample needs more.
    """
    n_splits = len(schema.SPLITS)
    groups = np.flatnonzero(eligible) * n_splits + source
    if not size:
        groups = groups[:0]
    if sampler not in ("quantile", "random"):
        return draw(population.frame(population.members(groups)), sampler, size, per_document=per_document)
    most = int(enough(np.array([size]))[0])
    candidates = _capped(population.frame(population.lowest(groups, most)), per_document)
    sample = draw(candidates, sampler, size)
    taken, available = (_by_decile(frame, len(eligible)) for frame in (sample, candidates))
    complete = population.n[source::n_splits] <= most
    short = eligible & ~complete & ((taken.sum(axis=1) < size) | (available.min(axis=1) < taken.max(axis=1)))
    if not short.any():
        return sample
    everything = population.frame(population.members(np.flatnonzero(short) * n_splits + source))
    kept = sample.filter(~pl.Series(short).gather(sample["row"]))
    return pl.concat([kept, draw(everything, sampler, size, per_document=per_document)])


def _by_decile(frame: pl.DataFrame, n_latents: int) -> Int64[np.ndarray, "latents deciles"]:
    """Windows of each latent in each decile, 1 to 10."""
    index = frame["row"].to_numpy() * (DECILES + 1) + frame["decile"].to_numpy()
    return np.bincount(index, minlength=n_latents * (DECILES + 1)).reshape(n_latents, -1)[:, 1:]


def draw(population: pl.DataFrame, sampler: str, size: int, *, per_document: int | None = None) -> pl.DataFrame:
    """At most `size` rows per latent of one split's windows (`Population.frame`), with their `order` from 0.

    - `quantile`: the deciles take turns, one window each in random order, until all windows are drawn.
    - `top`: the strongest first. `random`: in random order.
    - `mixed`: `top` and `quantile` take turns; a window that both hold counts where it comes first.
    - `importance`: one window after the other without replacement, each with probability proportional to its maximum
      (exponential keys −ln u / maximum, ascending: Efraimidis & Spirakis, Information Processing Letters 97, 2006).

    With `per_document`, at most that many windows of a document, chosen at random. The rows of a smaller `size` are the
    first rows of a larger one.
    """
    population = _capped(population, per_document)
    row = population["row"].to_numpy()
    if sampler == "quantile":
        place = _quantile(population)
    elif sampler == "top":
        place = _top(population)
    elif sampler == "mixed":
        place = np.minimum(2 * _top(population), 2 * _quantile(population) + 1)
    elif sampler == "importance":
        place = rank_in(np.lexsort((population["weight"].to_numpy(), row)), row)
    else:
        place = np.arange(len(row))
    chosen = np.flatnonzero(place < 2 * size) if sampler == "mixed" else np.arange(len(row))
    chosen = chosen[order_by(row[chosen], place[chosen])]
    order = rank_in(np.arange(len(chosen)), row[chosen])
    first = order < size
    drawn: pl.DataFrame = population[chosen[first]].with_columns(order=pl.Series(order[first]).cast(pl.UInt32))
    return drawn


def _capped(population: pl.DataFrame, per_document: int | None) -> pl.DataFrame:
    """At most `per_document` windows of each latent and document, the first in order; None: all windows."""
    if per_document is None:
        return population
    row, document = population["row"].to_numpy(), population["document"].to_numpy()
    return population.filter(rank_in(order_by(row, document), row, document) < per_document)


def _quantile(population: pl.DataFrame) -> Int64[np.ndarray, " n"]:
    """Place of each window in its latent's order in which deciles take turns."""
    row, decile = population["row"].to_numpy(), population["decile"].to_numpy()
    turn = rank_in(order_by(row, decile), row, decile)
    return rank_in(order_by(row, turn), row)


def _top(population: pl.DataFrame) -> Int64[np.ndarray, " n"]:
    """Place of each window in its latent's order from the strongest to the weakest."""
    row, maximum = population["row"].to_numpy(), population["maximum"].to_numpy()
    return rank_in(np.lexsort((-maximum, row)), row)


def _described(cells: Cells, windows: Windows, sample: pl.DataFrame) -> pl.DataFrame:
    """Table `contexts` of the sampled windows, with every active token of each, masked ones included."""
    sample = sample[order_by(*(sample[name].to_numpy() for name in ("row", "split", "order")))]
    cell = sample["cell"].to_numpy()
    window, count = cells.window[cell], cells.count[cell]
    token, edges = members(cells.first[cell], count)
    offsets = (cells.position[token] - np.repeat(window, count) * windows.length).astype(np.uint8)
    return pl.DataFrame(
        {
            "latent": cells.latents[cells.row[cell]],
            "split": pl.Series(schema.SPLITS).gather(sample["split"]),
            "context": window,
            "order": sample["order"],
            "decile": sample["decile"],
            "max_activation": cells.maximum[cell],
            "document": cells.document[cell],
            "offsets": _ragged(offsets, edges),
            "activations": _ragged(cells.activation[token], edges),
        }
    )


def _ragged(values: Shaped[np.ndarray, " items"], edges: Int64[np.ndarray, " edges"]) -> pl.Series:
    """A column of lists: values[edges[i] : edges[i + 1]] in row i."""
    return pl.Series(pa.LargeListArray.from_arrays(edges, pa.array(values)))
