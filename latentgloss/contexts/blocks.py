"""The loop over blocks of latents that both sampling stages share."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from jaxtyping import Bool, UInt32

from latentgloss import schema
from latentgloss.activations.reader import ActivationReader
from latentgloss.config.entries import SaeSpec
from latentgloss.contexts.firing import Cells
from latentgloss.contexts.latent_sample import selected_latents
from latentgloss.contexts.windows import Windows
from latentgloss.machine.memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.store import Version


T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """What a stage that goes through the blocks of a SAE reads."""

    corpus: Corpus
    windows: Windows
    masked: Bool[np.ndarray, " positions"]
    shards: ActivationReader
    due: list[UInt32[np.ndarray, " _"]]
    """Latents of the blocks that have to be computed."""
    workers: int

    def each(self, blocks: Sequence[UInt32[np.ndarray, " _"]], use: Callable[[int, Cells], T]) -> Iterator[T]:
        """use(index, where its latents fire) of every block, in their order, several at a time.

        Blocks hold ascending ids and are ascending themselves. Threads are enough: NumPy, Polars, Arrow and hashing
        let go of the interpreter while they work.
        """

        def run(index: int, active: pl.DataFrame) -> T:
            return use(index, Cells.of(blocks[index], active, self.masked, self.windows))

        with ThreadPoolExecutor(self.workers) as pool:
            running: deque[Future[T]] = deque()
            try:
                for index, active in self.shards.sweep(blocks):
                    running.append(pool.submit(run, index, active))
                    if len(running) > self.workers:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()


def blocks_of(latents: UInt32[np.ndarray, " latents"]) -> list[UInt32[np.ndarray, " _"]]:
    """Ascending ids, cut where a block begins; of none there is no block."""
    return np.split(latents, np.flatnonzero(np.diff(latents // schema.BLOCK)) + 1) if len(latents) else []


def by_block(
    run: StageRun[Any],
    corpus: Corpus,
    prepare: Callable[[Source], Callable[[Cells], Mapping[str, pl.DataFrame]]],
    *,
    strengths: bool = True,
    **consumed: Any,
) -> Windows:
    """Writes one block of the work's tables per 256 latent ids; returns the windows for their counts.

    `prepare` is called once, and only if some block has to be computed; what it returns gives a block's tables.
    A block's recipe holds the block's own latents, so that one more latent leaves the other blocks as they are, and
    what else is `consumed`. Without `strengths` cells know where latents are active, not how strongly. Raises
    InputError if the SAE has no such latents, and what `Windows.of` raises.
    """
    resolved, cache = run.input("resolved_saes"), run.input("activation_cache")
    declared = resolved.json("resolved.json")
    # The pinned choice of latents, which the registry may have left behind.
    spec = SaeSpec.model_validate({**run.sae.model_dump(), "latents": declared["latents"]})
    latents = selected_latents(spec, declared["n_latents"])
    windows = Windows.of(corpus, run.settings.contexts.length)
    if run.settings.contexts.pool == "one":
        windows = windows.in_one_pool()
    consumed |= {
        "resolved_saes": resolved.content(("cache",)),
        "activation_cache": cache.content(("activations", "masked")),
    }
    due: list[tuple[str, dict[str, Any], UInt32[np.ndarray, " _"]]] = []
    for chosen in blocks_of(latents):
        name = f"{chosen[0] // schema.BLOCK:06d}"
        recipe = run.block_recipe(latents=chosen.tolist(), **consumed)
        if not run.draft.reuse(name, recipe, run.stage.tables):
            due.append((name, recipe, chosen))
    if not due:
        return windows
    keep_freed_memory()
    blocks = [chosen for _, _, chosen in due]
    shards = ActivationReader(cache.tables(schema.ACTIVATIONS.name), strengths=strengths)
    workers = run.settings.machine.workers or os.cpu_count() or 1
    source = Source(corpus, windows, _masked(cache, corpus), shards, blocks, workers)
    compute = prepare(source)

    def put(index: int, cells: Cells) -> int:
        name, recipe, chosen = due[index]
        run.draft.put(name, recipe, run.stage.tables, compute(cells))
        return len(chosen)

    done = len(latents) - sum(map(len, blocks))
    for n in source.each(blocks, put):
        done += n
        run.progress(done, len(latents), "latents")
    return windows


def _masked(cache: Version, corpus: Corpus) -> Bool[np.ndarray, " positions"]:
    masked = np.zeros(corpus.tokens.size, dtype=bool)
    masked[cache.read(schema.MASKED)["position"].to_numpy()] = True
    return masked
