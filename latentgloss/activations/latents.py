"""Latents: what is known of each one, once all its active positions are on disk.

What belongs here: the table `latents` of a SAE, made from the tables `activations` and `masked` (counts, quantiles, a
histogram, entropy) and from its decoder's rows (tokens they raise, nearest others). Writes it a block of ids at a time
into the version under way.

Memory is flat in the number of tokens: a block's pairs are read shard by shard, and so many latents at once that there
are about as many pairs.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64, Int64, Shaped, UInt32

from latentgloss import schema
from latentgloss.machine.background import BackgroundWorkers
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.logit_lens import LogitLens
    from latentgloss.models.subject import Subject
    from latentgloss.pipeline.stage_run import StageRun


BINS = 20
"""Bins of a latent's histogram."""

STATISTICS_ROWS = 2**18
"""Pairs held at once, about, while statistics of latents are made: memory stays flat in the number of tokens."""

TOP_OUTPUTS, NEIGHBOURS, NEIGHBOURS_MAX, NEIGHBOUR_COSINE = 10, 10, 64, 0.5


def write_latents(
    run: StageRun[Any], decoder: Float32[torch.Tensor, "latents d"], subject: Subject, corpus: Corpus
) -> None:
    """Writes the `latents` table of a draft whose shards are complete, and counts what there is into the facts."""
    masked = run.draft.scan(schema.MASKED).select("position").unique().collect()["position"].sort().to_numpy()
    shards = run.draft.paths(schema.ACTIVATIONS)
    rows = sum(pq.read_metadata(path).num_rows for path in shards)
    step = max(1, min(schema.BLOCK, STATISTICS_ROWS * len(decoder) // max(rows, 1)))
    tokens = corpus.tokens.reshape(-1)
    n_unmasked = tokens.shape[0] - len(masked)
    consumed: dict[str, Any] = {
        "resolved_saes": run.input("resolved_saes").content(("cache",)),
        "shards": json_sha256({n: b.parts for n, b in run.draft.blocks.items() if n.startswith("shard-")}),
    }
    rowwise = _OfDecoder(decoder, subject)

    def put(name: str, recipe: dict[str, Any], low: int, high: int, weights: list[pl.Series]) -> None:
        statistics = pl.concat(
            latent_statistics(_pairs_of(shards, a, b), a, b, tokens, masked, n_unmasked)
            for a, b in ((a, min(a + step, high)) for a in range(low, high, step))
        )
        run.draft.put(name, recipe, (schema.LATENTS,), {"latents": statistics.with_columns(weights)})

    with BackgroundWorkers(subject.device.type, run.settings.machine.workers) as beside:
        for low in range(0, len(decoder), schema.BLOCK):
            high = min(low + schema.BLOCK, len(decoder))
            name = f"{low // schema.BLOCK:06d}"
            recipe = run.block_recipe(**consumed, latents=[low, high])
            if not run.draft.reuse(name, recipe, (schema.LATENTS,)):
                beside.do(partial(put, name, recipe, low, high, rowwise.columns(low, high)))
        beside.finish()
    table = run.draft.scan(schema.LATENTS).select("count", "density").collect()
    run.facts |= {
        "tokens": int(tokens.shape[0]),
        "unmasked_tokens": int(n_unmasked),
        "dead": int((table["count"] == 0).sum()),
        "median_density": table["density"].median(),
    }


class _OfDecoder:
    """Columns that follow from decoder rows alone. What all blocks share is made when the first of them is due."""

    def __init__(self, decoder: Float32[torch.Tensor, "latents d"], subject: Subject) -> None:
        self.decoder, self.subject = decoder, subject

    @cached_property
    def _unit(self) -> Float32[torch.Tensor, "latents d"]:
        import torch

        return torch.nn.functional.normalize(self.decoder, dim=-1)

    @cached_property
    def _lens(self) -> LogitLens:
        return self.subject.lens()

    def columns(self, low: int, high: int) -> list[pl.Series]:
        """`top_outputs`, `neighbours` and `neighbour_cosines` of latents [low, high)."""
        return [self._top_outputs(low, high), *self._neighbours(low, high)]

    def _top_outputs(self, low: int, high: int) -> pl.Series:
        """Tokens each direction raises most; none where directions are not of the residual stream's width."""
        if self.decoder.shape[1] != self.subject.d_model:
            found = np.empty((high - low, 0), dtype=np.uint32)
        else:
            found = self._lens.top(self.decoder[low:high], TOP_OUTPUTS)[0].astype(np.uint32)
        return _lists(found.ravel(), np.full(len(found), found.shape[1])).alias("top_outputs")

    def _neighbours(self, low: int, high: int) -> tuple[pl.Series, pl.Series]:
        """Nearest other latents by decoder cosine, descending."""
        import torch

        cosine = self._unit[low:high] @ self._unit.T
        rows = torch.arange(high - low)
        cosine[rows, rows + low] = -2.0
        k = min(NEIGHBOURS_MAX, len(self._unit) - 1)
        value, index = (found.cpu().numpy() for found in cosine.topk(k, dim=-1))
        sizes = np.maximum((value >= NEIGHBOUR_COSINE).sum(-1), min(NEIGHBOURS, k))
        kept = np.arange(k) < sizes[:, None]
        ids, cosines = _lists(index[kept].astype(np.uint32), sizes), _lists(value[kept], sizes)
        return ids.alias("neighbours"), cosines.alias("neighbour_cosines")


def _pairs_of(shards: list[Path], low: int, high: int) -> pl.DataFrame:
    """Pairs of latents [low, high), one shard after the other: read together, all of them would be in memory."""
    wanted = pl.col("latent").is_between(low, high - 1)
    return pl.concat([pl.scan_parquet(path).filter(wanted).collect() for path in shards])


def latent_statistics(
    pairs: pl.DataFrame,
    low: int,
    high: int,
    tokens: UInt32[np.ndarray, " positions"],
    masked: UInt32[np.ndarray, " masked"],
    n_unmasked: int,
) -> pl.DataFrame:
    """One row per latent in [low, high) with what its active, unmasked tokens tell.

    `pairs` has the columns of `schema.ACTIVATIONS`; `masked` is ascending. Entropy is in nats, over token ids.
    """
    position = pairs["position"].to_numpy()
    at = np.searchsorted(masked, position)
    is_masked = np.zeros(len(position), dtype=bool)
    inside = at < len(masked)
    is_masked[inside] = masked[at[inside]] == position[inside]
    kept = pairs.filter(~is_masked).with_columns(token=tokens[position[~is_masked]]).sort("latent", "activation")
    # Sums over sorted arrays, not group_by: the order in which threads add floats would be part of the content.
    latent = kept["latent"].to_numpy() - low
    value = kept["activation"].to_numpy()
    count = np.bincount(latent, minlength=high - low)
    first = np.cumsum(count) - count
    alive = count > 0
    top, total = np.zeros(high - low, dtype=np.float32), np.zeros(high - low)
    if len(value):
        top[alive] = value[(first + count - 1)[alive]]
        total[alive] = np.add.reduceat(value.astype(np.float64), first[alive])
    edges = first[:, None] + np.rint(np.linspace(0, 1, 11) * np.maximum(count - 1, 0)[:, None]).astype(np.int64)
    bins = np.minimum((value / top[latent] * BINS).astype(np.int64), BINS - 1)
    histogram = np.bincount(latent * BINS + bins, minlength=(high - low) * BINS)
    return pl.DataFrame(
        {
            "latent": np.arange(low, high, dtype=np.uint32),
            "count": count.astype(np.uint64),
            "density": count / max(n_unmasked, 1),
            "max": top,
            "mean": np.divide(total, count, out=np.zeros(high - low), where=alive),
            "quantiles": _lists(value[edges[alive].ravel()], np.where(alive, edges.shape[1], 0)),
            "histogram": _lists(histogram.astype(np.uint32), np.full(high - low, BINS)),
            "token_entropy": _entropy(latent, kept["token"].to_numpy(), count),
        }
    )


def _lists(values: Shaped[np.ndarray, " items"], sizes: Int64[np.ndarray, " rows"]) -> pl.Series:
    """Lists of the next `sizes` values each. Of Python's lists, Polars looks at each value by itself."""
    return pl.Series(pa.LargeListArray.from_arrays(np.append(0, np.cumsum(sizes)), pa.array(values)))


def _entropy(
    latent: UInt32[np.ndarray, " pairs"], token: UInt32[np.ndarray, " pairs"], count: Int64[np.ndarray, " latents"]
) -> Float64[np.ndarray, " latents"]:
    """Entropy (nats) of the token ids each latent is active on; 0 for a dead one."""
    keys, times = np.unique(latent.astype(np.uint64) << np.uint64(32) | token, return_counts=True)
    owner = (keys >> np.uint64(32)).astype(np.int64)
    share = times / count[owner]
    # bincount of nothing is int64, whatever its weights
    return np.bincount(owner, weights=-share * np.log(share), minlength=len(count)).astype(np.float64)
