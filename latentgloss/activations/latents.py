"""Latents: the table `latents` of an SAE, once all its active pairs are on disk.

What belongs here: statistics of each latent from the tables `activations` and `masked` (counts, quantiles, a histogram,
entropy), and what follows from its decoder direction (tokens it raises, nearest other latents). Reads the draft's own
shards and the SAE's decoder, float32 [latents, d] on the device of the pass; writes one block of the table `latents`
per 256 ids into the same draft.

Memory does not grow with the number of tokens: statistics are made for a few latents at once, so many that they have
about `STATISTICS_ROWS` pairs, and pairs are read shard by shard.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt32

from latentgloss import schema
from latentgloss.errors import SubjectError
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
"""Bins of a latent's histogram, from 0 to its maximum."""

STATISTICS_ROWS = 2**18
"""Pairs in memory at once while statistics are made, approximately."""

TOP_OUTPUTS = 10
"""Tokens listed in `top_outputs`."""

NEIGHBOURS, NEIGHBOURS_MAX, NEIGHBOUR_COSINE = 10, 64, 0.5
"""The first ten neighbours are listed, and others of at least this cosine up to 64."""


def write_latents(
    run: StageRun[Any], decoder: Float32[torch.Tensor, "latents d"], subject: Subject, corpus: Corpus
) -> None:
    """Writes the table `latents` of a run whose shards are complete, and adds counts to the run's facts."""
    masked = run.draft.scan(schema.MASKED).select("position").unique().collect()["position"].sort().to_numpy()
    shards = run.draft.paths(schema.ACTIVATIONS)
    rows = sum(pq.read_metadata(path).num_rows for path in shards)
    step = max(1, min(schema.BLOCK, STATISTICS_ROWS * len(decoder) // max(rows, 1)))
    tokens = corpus.tokens.reshape(-1)
    n_unmasked = tokens.shape[0] - len(masked)
    consumed: dict[str, Any] = {
        "resolved_saes": run.input("resolved_saes").content(("cache",)),
        "shards": json_sha256({n: b.parts for n, b in run.draft.blocks.items() if n.startswith("shard-")}),
        **run.recipe.content.get("external", {}),  # which lens, where that has changed
    }
    from_decoder = _FromDecoder(decoder, subject)

    def write(name: str, recipe: dict[str, Any], low: int, high: int, of_decoder: list[pl.Series]) -> None:
        statistics = pl.concat(
            latent_statistics(_pairs_of(shards, a, b), a, b, tokens, masked, n_unmasked)
            for a, b in ((a, min(a + step, high)) for a in range(low, high, step))
        )
        run.draft.put(name, recipe, (schema.LATENTS,), {"latents": statistics.with_columns(of_decoder)})

    with BackgroundWorkers(subject.device.type, run.settings.machine.workers) as background:
        for low in range(0, len(decoder), schema.BLOCK):
            high = min(low + schema.BLOCK, len(decoder))
            name = f"{low // schema.BLOCK:06d}"
            recipe = run.block_recipe(**consumed, latents=[low, high])
            if not run.draft.reuse(name, recipe, (schema.LATENTS,)):
                background.do(partial(write, name, recipe, low, high, from_decoder.columns(low, high)))
        background.finish()
    table = run.draft.scan(schema.LATENTS).select("count", "density").collect()
    run.facts |= {
        "tokens": int(tokens.shape[0]),
        "unmasked_tokens": int(n_unmasked),
        "dead": int((table["count"] == 0).sum()),
        "median_density": table["density"].median(),
        **({"no_top_outputs": from_decoder.no_lens} if from_decoder.no_lens else {}),
    }


class _FromDecoder:
    """Columns that follow from the decoder alone. What all blocks share is made when the first stale block needs it."""

    def __init__(self, decoder: Float32[torch.Tensor, "latents d"], subject: Subject) -> None:
        self.decoder, self.subject = decoder, subject
        self.no_lens = ""
        """Why `top_outputs` is empty; empty if it is not."""

    @cached_property
    def _unit(self) -> Float32[torch.Tensor, "latents d"]:
        import torch

        return torch.nn.functional.normalize(self.decoder, dim=-1)

    @cached_property
    def _has_direction(self) -> Bool[torch.Tensor, " latents"]:
        """Whether a latent's decoder row is not zero. One of zeros has no neighbours, and is none."""
        from latentgloss.saes.coder import has_direction

        return has_direction(self.decoder)

    @cached_property
    def _lens(self) -> LogitLens | None:
        """The model's lens; None, with the reason in `no_lens`, if there is none for these directions."""
        if self.decoder.shape[1] != self.subject.d_model:
            self.no_lens = f"decoder rows have width {self.decoder.shape[1]}, not the residual stream's"
            return None
        try:
            return self.subject.lens()
        except SubjectError as e:
            self.no_lens = e.found
            return None

    def columns(self, low: int, high: int) -> list[pl.Series]:
        """`top_outputs`, `neighbours` and `neighbour_cosines` of latents [low, high)."""
        return [self._top_outputs(low, high), *self._neighbours(low, high)]

    def _top_outputs(self, low: int, high: int) -> pl.Series:
        """The tokens that each direction raises most.

        Empty lists if there is no lens; an empty list for a row of zeros.
        """
        if self._lens is None:
            found = np.empty((high - low, 0), dtype=np.uint32)
        else:
            found = self._lens.top(self.decoder[low:high], TOP_OUTPUTS)[0].astype(np.uint32)
        sizes = np.where(self._has_direction[low:high].cpu().numpy(), found.shape[1], 0)
        return _lists(found[sizes > 0].ravel(), sizes).alias("top_outputs")

    def _neighbours(self, low: int, high: int) -> tuple[pl.Series, pl.Series]:
        """Nearest other latents by decoder cosine, descending, and their cosines."""
        import torch

        cosine = self._unit[low:high] @ self._unit.T
        rows = torch.arange(high - low)
        cosine[rows, rows + low] = -2.0  # excludes the latent itself
        cosine[:, ~self._has_direction] = -2.0
        k = min(NEIGHBOURS_MAX, len(self._unit) - 1)
        value, index = (part.cpu().numpy() for part in cosine.topk(k, dim=-1))
        found = (value > -1.5).sum(-1)  # neighbours that there are
        sizes = np.maximum((value >= NEIGHBOUR_COSINE).sum(-1), np.minimum(NEIGHBOURS, found))
        sizes[~self._has_direction[low:high].cpu().numpy()] = 0
        kept = np.arange(k) < sizes[:, None]
        ids, cosines = _lists(index[kept].astype(np.uint32), sizes), _lists(value[kept], sizes)
        return ids.alias("neighbours"), cosines.alias("neighbour_cosines")


def _pairs_of(shards: list[Path], low: int, high: int) -> pl.DataFrame:
    """Pairs of latents [low, high). Shards are read one after the other: a joint scan would hold all in memory."""
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
    """Columns of `schema.LATENTS` that follow from active unmasked tokens, one row per latent in [low, high).

    `pairs`: rows of `schema.ACTIVATIONS` of these latents. `masked`: positions, ascending. `n_unmasked`: unmasked
    tokens of the corpus. Entropy is in nats, over token ids.
    """
    position = pairs["position"].to_numpy()
    index = np.searchsorted(masked, position)
    is_masked = np.zeros(len(position), dtype=bool)
    inside = index < len(masked)
    is_masked[inside] = masked[index[inside]] == position[inside]
    kept = pairs.filter(~is_masked).with_columns(token=tokens[position[~is_masked]]).sort("latent", "activation")
    # Sums are over sorted arrays instead of `group_by`, so that the order in which threads add decides no digit.
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
    """A column of lists, in which row i holds the next sizes[i] values. Arrow makes it faster than Python lists do."""
    return pl.Series(pa.LargeListArray.from_arrays(np.append(0, np.cumsum(sizes)), pa.array(values)))


def _entropy(
    latent: UInt32[np.ndarray, " pairs"], token: UInt32[np.ndarray, " pairs"], count: Int64[np.ndarray, " latents"]
) -> Float64[np.ndarray, " latents"]:
    """Entropy (nats) of the token ids that each latent is active on; 0 for a dead latent."""
    keys, times = np.unique(latent.astype(np.uint64) << np.uint64(32) | token, return_counts=True)
    latent_of_key = (keys >> np.uint64(32)).astype(np.int64)
    share = times / count[latent_of_key]
    # Without any keys, bincount returns int64 whatever its weights.
    return np.bincount(latent_of_key, weights=-share * np.log(share), minlength=len(count)).astype(np.float64)
