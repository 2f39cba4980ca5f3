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
from jaxtyping import Int64, Integer, Shaped

from latentgloss import schema
from latentgloss.hashing import counter_hash
from latentgloss.windows import Cells, Windows, by_block
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from latentgloss.corpus import Corpus
    from latentgloss.settings import ContextSettings
    from latentgloss.work import Work

_DECILES = 10
_RANK = pl.int_range(pl.len(), dtype=pl.UInt32)
"""Place of a row within its group, in the frame's order."""


def _contexts(work: Work) -> None:
    settings = work.settings.contexts

    def compute(cells: Cells, windows: Windows, corpus: Corpus) -> dict[str, pl.DataFrame]:
        return sample_block(cells, windows, settings)

    windows = by_block(work, compute)
    table = work.draft.scan(schema.ELIGIBILITY).collect()
    statuses = dict(table["status"].value_counts().iter_rows())
    work.facts = {
        "latents": table.height,
        **{name: statuses.get(name, 0) for name in ("eligible", "dead", "rare", "dense", "one_document")},
        "contexts": dict(work.draft.scan(schema.CONTEXTS).group_by("split").len().sort("split").collect().iter_rows()),
        **windows.facts(),
    }


sample_contexts = one_by_one(_contexts)
"""Runner of `sampled_contexts`."""


def sample_block(cells: Cells, windows: Windows, settings: ContextSettings) -> dict[str, pl.DataFrame]:
    """Tables `eligibility` and `contexts` of the latents of `cells`."""
    population = activating(cells, windows, settings.seed)
    table = eligibility(cells, windows, population, settings)
    eligible = np.flatnonzero((table["status"] == "eligible").to_numpy())
    population = population.filter(pl.col("row").is_in(eligible.tolist()))
    samples = [
        draw(
            population.filter(pl.col("split") == number),
            "quantile" if split != "explain" else settings.sampler,
            getattr(settings, split),
            per_document=settings.per_document if split == "test" else None,
        )
        for number, split in enumerate(schema.SPLITS)
    ]
    return {"eligibility": table, "contexts": _described(cells, windows, pl.concat(samples))}


def activating(cells: Cells, windows: Windows, seed: int) -> pl.DataFrame:
    """The usable activating windows of each latent by (latent, split), in random order within.

    Columns: cell, row (index of the latent in the block), split (index), document (of the strongest unmasked
    token), maximum, and decile: ceil(10 r / n), r the ascending rank of the maximum among the n windows of latent
    and split, ties in the random order; 0 if n < 10. The order is by hash of seed, latent and context.
    """
    cell = np.flatnonzero(cells.activating & windows.usable[cells.window])
    row, split = cells.row[cell], windows.split[cells.window[cell]]
    group = (row * len(schema.SPLITS) + split).astype(np.uint64)
    hashes = counter_hash(seed, cells.latents[row], cells.window[cell])
    # Packed into one integer, numpy sorts several times faster; should 48 bits meet, the lower context is first.
    cell, group = (
        x[np.argsort(group << np.uint64(48) | hashes >> np.uint64(16), kind="stable")] for x in (cell, group)
    )
    maximum = cells.maximum[cell]
    ascending = np.argsort(group << np.uint64(32) | maximum.view(np.uint32), kind="stable")  # bits of floats > 0
    _, start, of, n = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(cell), dtype=np.int64)
    rank[ascending] = np.arange(len(cell)) - start[of] + 1
    decile = np.where(n[of] >= _DECILES, -(-_DECILES * rank // n[of]), 0)
    return pl.DataFrame(
        {
            "cell": cell,
            "row": cells.row[cell],
            "split": windows.split[cells.window[cell]],
            "document": cells.document[cell],
            "maximum": maximum,
            "decile": decile.astype(np.uint8),
        }
    )


def eligibility(cells: Cells, windows: Windows, population: pl.DataFrame, settings: ContextSettings) -> pl.DataFrame:
    """Table `eligibility`: one row per latent of the block. `population` is what `activating` returns.

    Decided before anything is sampled, so it does not depend on how many contexts are asked for. The first
    status that fits holds: `dead`, `rare`, `dense`, `one_document`.
    """
    test = schema.SPLITS.index("test")
    n_test_windows = int(windows.n_usable[test])
    in_test = population.filter(pl.col("split") == test)
    touched = windows.usable[cells.window] & (windows.split[cells.window] == test)

    def count(rows: Integer[np.ndarray, " n"] | pl.Series) -> Int64[np.ndarray, " latents"]:
        return np.bincount(rows, minlength=len(cells.latents))

    frame = pl.DataFrame(
        {
            "latent": cells.latents,
            **{
                f"n_{split}": count(population.filter(pl.col("split") == number)["row"])
                for number, split in enumerate(schema.SPLITS)
            },
            "n_test_documents": count(in_test.unique(["row", "document"])["row"]),
            "n_dropped_shared": count(cells.row[cells.activating & windows.shared[cells.window]]),
            "n_dropped_identical": count(cells.row[cells.activating & windows.repeat[cells.window]]),
            "firing_rate": count(in_test["row"]) / max(n_test_windows, 1),
            "alive": cells.alive,
            "silent": n_test_windows - count(cells.row[touched]),
        }
    )
    problems = (
        (~pl.col("alive"), "dead", pl.lit("active on 0 unmasked tokens")),
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


def draw(population: pl.DataFrame, sampler: str, size: int, *, per_document: int | None = None) -> pl.DataFrame:
    """At most `size` rows per latent of one split's `activating` windows, with their `order` from 0.

    `quantile` goes round the deciles, one context each in random order, until they are used up; `top` takes the
    strongest first; `random` any. With `per_document`, that many randomly chosen contexts of a document at most.
    The rows of a smaller `size` are the first of a larger one.
    """
    if per_document is not None:
        population = population.filter(_RANK.over("row", "document") < per_document)
    if sampler == "quantile":
        rounds = population.with_columns(round=_RANK.over("row", "decile")).filter(pl.col("round") < size)
        population = rounds.sort("round", maintain_order=True).drop("round")
    elif sampler == "top":
        population = population.sort("maximum", descending=True, maintain_order=True)
    return population.with_columns(order=_RANK.over("row")).filter(pl.col("order") < size)


def _described(cells: Cells, windows: Windows, sample: pl.DataFrame) -> pl.DataFrame:
    """Table `contexts` of a sample, with every active token of each window, masked ones included."""
    sample = sample.sort("row", "split", "order")
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
            "n_documents": windows.n_documents[window],
            "offsets": _ragged(offsets, edges),
            "activations": _ragged(cells.activation[token], edges),
        }
    )


def _ragged(values: Shaped[np.ndarray, " items"], edges: Int64[np.ndarray, " edges"]) -> pl.Series:
    """Lists values[edges[i] : edges[i + 1]]."""
    return pl.Series(pa.LargeListArray.from_arrays(edges, pa.array(values)))
