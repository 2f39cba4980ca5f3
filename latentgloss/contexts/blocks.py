"""Blocks: the loop over blocks of latents that both sampling stages share.

What belongs here: which blocks of a run are stale, and handing the cells of each to the code that samples from them, in
threads. Reads the corpus, `resolved_saes` and `activation_cache`; writes the blocks of the run's tables. What is
sampled is in `contexts/activating.py` and `contexts/negatives.py`.

Memory: one byte per token of the corpus (the mask), about 20 bytes per window, and the activations of the blocks that
are read at once.
"""

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
    """What a stage that samples from the blocks of an SAE reads."""

    corpus: Corpus
    windows: Windows
    masked: Bool[np.ndarray, " positions"]
    """Whether each position of the corpus is masked."""
    shards: ActivationReader
    due: list[UInt32[np.ndarray, " _"]]
    """Latents of each block that has to be computed."""
    workers: int
    """Threads that compute blocks."""

    def each(self, blocks: Sequence[UInt32[np.ndarray, " _"]], use: Callable[[int, Cells], T]) -> Iterator[T]:
        """Yields use(index, cells) of every block in their order, computing several blocks at once.

        Blocks hold ascending ids and are ascending themselves. Threads suffice, because NumPy, Polars, Arrow and
        hashing release the interpreter lock while they compute.
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
    """The latents (ascending) of each block that has any; an empty list for no latents."""
    return np.split(latents, np.flatnonzero(np.diff(latents // schema.BLOCK)) + 1) if len(latents) else []


def by_block(
    run: StageRun[Any],
    corpus: Corpus,
    prepare: Callable[[Source], Callable[[Cells], Mapping[str, pl.DataFrame]]],
    *,
    strengths: bool = True,
    **consumed: Any,
) -> Windows:
    """Writes the run's tables, one block per 256 latent ids, and returns the windows for their counts.

    `prepare` is called once, and only if some block has to be computed; it returns the function that turns the cells of
    a block into its tables. A block's recipe holds the block's own latents and `consumed`, what its rows depend on
    besides activations. So one more latent leaves the other blocks fresh. Without `strengths`, cells know where latents
    are active but not how strongly.

    Raises InputError if the SAE does not have the selected latents, and what `Windows.of` raises.
    """
    cache = run.input("activation_cache")
    latents = _pinned_latents(run)
    windows = Windows.of(corpus, run.settings.contexts.length)
    if run.settings.contexts.pool == "one":
        windows = windows.in_one_pool()
    consumed |= {
        "resolved_saes": run.input("resolved_saes").content(("cache",)),
        "activation_cache": cache.content(("activations", "masked")),
    }
    due: list[tuple[str, dict[str, Any], UInt32[np.ndarray, " _"]]] = []
    for block in blocks_of(latents):
        name = f"{block[0] // schema.BLOCK:06d}"
        recipe = run.block_recipe(latents=block.tolist(), **consumed)
        if not run.draft.reuse(name, recipe, run.stage.tables):
            due.append((name, recipe, block))
    if not due:
        return windows
    keep_freed_memory()
    blocks = [block for _, _, block in due]
    shards = ActivationReader(cache.tables(schema.ACTIVATIONS.name), strengths=strengths)
    workers = run.settings.machine.workers or os.cpu_count() or 1
    source = Source(corpus, windows, _masked(cache, corpus), shards, blocks, workers)
    compute = prepare(source)

    def write(index: int, cells: Cells) -> int:
        name, recipe, block = due[index]
        run.draft.put(name, recipe, run.stage.tables, compute(cells))
        return len(block)

    done = len(latents) - sum(map(len, blocks))
    for n_latents in source.each(blocks, write):
        done += n_latents
        run.progress(done, len(latents), "latents")
    return windows


def _pinned_latents(run: StageRun[Any]) -> UInt32[np.ndarray, " latents"]:
    """The latents selected when `resolved_saes` was made; the registry may have changed since."""
    resolved = run.input("resolved_saes").json("resolved.json")
    spec = SaeSpec.model_validate({**run.sae.model_dump(), "latents": resolved["latents"]})
    return selected_latents(spec, resolved["n_latents"])


def _masked(cache: Version, corpus: Corpus) -> Bool[np.ndarray, " positions"]:
    masked = np.zeros(corpus.tokens.size, dtype=bool)
    masked[cache.read(schema.MASKED)["position"].to_numpy()] = True
    return masked
