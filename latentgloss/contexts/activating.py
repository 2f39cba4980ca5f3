"""contexts: which latents can be explained and scored, and the activating contexts sampled for each.

What belongs here: eligibility, deciles, samplers, and the stage `sampled_contexts`. Reads the corpus and
`activation_cache`; writes the tables `eligibility` (one row per latent asked for) and `contexts` (eligible latents
only). Non-activating contexts are in `negatives.py`; what a window is, in `windows.py`.

Method: docs/methods.md, Data, after Paulo et al., arXiv 2410.13928, section 3, with splits instead of one pool.

A sample is an order, of which the first n are taken: `order < 40` of 400 is the sample of 40, and asking for more
only appends. Each split is drawn by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Bool, Int64, Shaped

from latentgloss import schema
from latentgloss.contexts.firing import Cells
from latentgloss.contexts.population import DECILES, Population
from latentgloss.contexts.windows import REPEAT, SEVERAL, SHARED, Windows
from latentgloss.machine.sorting import distinct, enough, order_by, rank_in

if TYPE_CHECKING:
    from latentgloss.config.settings import ContextSettings


def sample_block(cells: Cells, windows: Windows, settings: ContextSettings) -> dict[str, pl.DataFrame]:
    """Tables `eligibility` and `contexts` of the latents of `cells`."""
    population = Population.of(cells, windows, settings.seed)
    table = eligibility(cells, windows, population, settings)
    populations = [population] * len(schema.SPLITS)
    if settings.pool == "one":  # chance draws each sample by itself
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

    Decided before anything is sampled, so it does not depend on how many contexts are asked for. The first
    status that fits holds: `dead`, `rare`, `dense`, `one_document`.
    """
    test, n_splits, n_latents = schema.SPLITS.index("test"), len(schema.SPLITS), len(cells.latents)
    n_test_windows = int(windows.n_usable[test])
    n = population.n.reshape(n_latents, n_splits)
    kinds = max(SEVERAL, SHARED, REPEAT) + 1

    def count(where: Bool[np.ndarray, " cells"]) -> Int64[np.ndarray, "latents kinds"]:
        """Cells by kind of window. What is counted here is rare."""
        at = np.flatnonzero(where)
        counted = np.bincount(cells.row[at] * kinds + cells.kind[at], minlength=n_latents * kinds)
        return counted.reshape(n_latents, kinds)

    dropped = count(cells.activating & (cells.kind >= n_splits))
    masked = count(~cells.activating)
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
            "silent": n_test_windows - n[:, test] - masked[:, test],
        }
    )
    n_tokens: Int64[np.ndarray, " latents"] = np.full(n_latents, settings.min_active_tokens)
    if settings.min_active_tokens:  # going through every token is worth it only if somebody asks
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
        status=pl.coalesce(*(pl.when(holds).then(pl.lit(status)) for holds, status, _ in problems), pl.lit("eligible")),
        reason=pl.coalesce(*(pl.when(holds).then(reason) for holds, _, reason in problems), pl.lit("")),
    ).select(list(schema.ELIGIBILITY.schema))


def _fewer(column: str, least: int, status: str, words: str) -> tuple[pl.Expr, str, pl.Expr]:
    return pl.col(column) < least, status, pl.format(f"{words}, fewer than {least}", column)


def _documents(population: Population, split: int) -> Int64[np.ndarray, " latents"]:
    """Distinct documents among each latent's windows of a split."""
    here = population.members(np.arange(split, len(population.n), len(schema.SPLITS)))
    row = population.group[here] // len(schema.SPLITS)
    pairs = distinct(row << 32 | population.cells.document[population.cell[here]])
    return np.diff(np.searchsorted(pairs, np.arange(len(population.cells.latents) + 1) << 32))


def _sample(
    population: Population,
    source: int,
    eligible: Bool[np.ndarray, " latents"],
    sampler: str,
    size: int,
    *,
    per_document: int | None,
) -> pl.DataFrame:
    """A sample from the windows of the split `source`, from as few of them as decide it.

    Where chance alone orders windows, those whose hash is low come first: about two to three times as many as are
    asked for are looked at, and all of them for latents whose sample would need more.
    """
    n_splits = len(schema.SPLITS)
    groups = np.flatnonzero(eligible) * n_splits + source
    if not size:
        groups = groups[:0]
    if sampler not in ("quantile", "random"):
        return draw(population.frame(population.members(groups)), sampler, size, per_document=per_document)
    most = int(enough(np.array([size]))[0])
    low = population.lowest(groups, most)
    some = _capped(population.frame(low), per_document)
    sample = draw(some, sampler, size)
    taken, left = (_by_decile(frame, len(eligible)) for frame in (sample, some))
    whole = population.n[source::n_splits] <= most
    short = eligible & ~whole & ((taken.sum(axis=1) < size) | (left.min(axis=1) < taken.max(axis=1)))
    if not short.any():
        return sample
    again = population.frame(population.members(np.flatnonzero(short) * n_splits + source))
    kept = sample.filter(~pl.Series(short).gather(sample["row"]))
    return pl.concat([kept, draw(again, sampler, size, per_document=per_document)])


def _by_decile(frame: pl.DataFrame, n_latents: int) -> Int64[np.ndarray, "latents deciles"]:
    """Windows of deciles 1 to 10 by latent."""
    cell = frame["row"].to_numpy() * (DECILES + 1) + frame["decile"].to_numpy()
    return np.bincount(cell, minlength=n_latents * (DECILES + 1)).reshape(n_latents, -1)[:, 1:]


def draw(population: pl.DataFrame, sampler: str, size: int, *, per_document: int | None = None) -> pl.DataFrame:
    """At most `size` rows per latent of one split's windows (`Population.frame`), with their `order` from 0.

    - `quantile` goes round the deciles, one window each in random order, until they are used up.
    - `top` takes the strongest first, `random` any.
    - `mixed` takes one of `top` and one of `quantile` in turn; what both hold counts where it comes first.
    - `importance` draws one after the other with probability proportional to the maximum, among those not drawn yet
      (exponential keys −ln u / maximum, ascending: Efraimidis & Spirakis 2006).

    With `per_document`, that many randomly chosen windows of a document at most. The rows of a smaller `size` are the
    first of a larger one.
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
    """At most `per_document` windows of a document, the first in their order."""
    if per_document is None:
        return population
    row, document = population["row"].to_numpy(), population["document"].to_numpy()
    return population.filter(rank_in(order_by(row, document), row, document) < per_document)


def _quantile(population: pl.DataFrame) -> Int64[np.ndarray, " n"]:
    """Place of each window if the deciles of its latent take turns."""
    row, decile = population["row"].to_numpy(), population["decile"].to_numpy()
    turn = rank_in(order_by(row, decile), row, decile)
    return rank_in(order_by(row, turn), row)


def _top(population: pl.DataFrame) -> Int64[np.ndarray, " n"]:
    """Place of each window if the strongest of its latent comes first."""
    row, maximum = population["row"].to_numpy(), population["maximum"].to_numpy()
    return rank_in(np.lexsort((-maximum, row)), row)


def _described(cells: Cells, windows: Windows, sample: pl.DataFrame) -> pl.DataFrame:
    """Table `contexts` of a sample, with every active token of each window, masked ones included."""
    sample = sample[order_by(*(sample[name].to_numpy() for name in ("row", "split", "order")))]
    cell = sample["cell"].to_numpy()
    window, count = cells.window[cell], cells.count[cell]
    edges = np.append(0, np.cumsum(count))
    token = np.arange(edges[-1]) + np.repeat(cells.first[cell] - edges[:-1], count)
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
    """Lists values[edges[i] : edges[i + 1]]."""
    return pl.Series(pa.LargeListArray.from_arrays(edges, pa.array(values)))
