"""What activating and non-activating contexts share: windows of a corpus, and where latents fire in them.

What belongs here: which latents are asked for, the windows a sample may hold, a block's activations gathered per
(latent, window), counter-based randomness, and the loop over blocks. Reads the corpus and `activation_cache`;
writes nothing. Used by `contexts.py` and `negatives.py` only (docs/methods.md, Data).

The *population* is the same for both: windows that hold no 13-gram of an earlier split, one per distinct text.
Which of several token-identical windows stands for the text does not depend on any latent.

Memory: one byte per token, about 20 per window, and a block's share of the activations.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8, UInt32, UInt64

from latentgloss import schema
from latentgloss.errors import InputError, SettingsError
from latentgloss.hashing import counter_hash
from latentgloss.memory import keep_freed_memory
from latentgloss.pairs import Shards, array
from latentgloss.registry import LatentRange, LatentSample, SaeSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from latentgloss.corpus import Corpus
    from latentgloss.store import Version
    from latentgloss.work import Work

T = TypeVar("T")

_CHUNK = 1 << 16  # windows hashed at once


# Latents ----------------------------------------------------------------------------------------------------


def latents_in_turn(spec: SaeSpec, n_latents: int) -> UInt32[np.ndarray, " latents"]:
    """Ids of the latents a SAE's registry entry asks for, each once, those first that were asked for first.

    A sample comes by hash, so that with the same seed a smaller one is the beginning of a larger; all latents are the
    sample of all with seed 0. A list comes as it is listed, a range from its start. Raises InputError if the SAE has
    no such latents.
    """
    asked = spec.latents
    match asked:
        case "all" | LatentSample():
            n, seed = (n_latents, 0) if asked == "all" else (asked.sample, asked.seed)
            if n > n_latents:
                raise _out_of_range(spec, f"a sample of {n} latents", f"at most {n_latents}")
            chosen = np.argsort(counter_hash(seed, np.arange(n_latents)), kind="stable")[:n]
        case LatentRange():
            if not asked.start < asked.stop <= n_latents:
                raise _out_of_range(spec, f"latents {asked.start} to {asked.stop}", f"0 <= start < stop <= {n_latents}")
            chosen = np.arange(asked.start, asked.stop)
        case _:
            chosen = np.asarray(list(dict.fromkeys(asked)), dtype=np.int64)
            wrong = chosen[(chosen < 0) | (chosen >= n_latents)]
            if wrong.size or not chosen.size:
                found = f"latents {wrong[:5].tolist()}" if wrong.size else "an empty list of latents"
                raise _out_of_range(spec, found, f"ids from 0 to {n_latents - 1}")
    return chosen.astype(np.uint32)


def selected_latents(spec: SaeSpec, n_latents: int) -> UInt32[np.ndarray, " latents"]:
    """The same, ascending."""
    return np.sort(latents_in_turn(spec, n_latents))


def _out_of_range(spec: SaeSpec, found: str, expected: str) -> InputError:
    return InputError(
        f"{spec.partition} asks for {found}",
        expected=f"{expected}, since the SAE is that wide",
        todo="correct `latents` in the registry",
    )


# Windows ----------------------------------------------------------------------------------------------------


SEVERAL, SHARED, REPEAT = range(len(schema.SPLITS), len(schema.SPLITS) + 3)
"""Kinds of window that are not usable (`Windows.kind`)."""


@dataclass(frozen=True)
class Windows:
    """All windows of a corpus; arrays are indexed by context number."""

    length: int
    """Tokens per window."""
    split: UInt8[np.ndarray, " windows"]
    """Index into `schema.SPLITS`."""
    document: UInt32[np.ndarray, " windows"]
    """Document of the middle token."""
    several: Bool[np.ndarray, " windows"]
    """Does not lie in a single document: then where documents end could tell what a latent does (decision 0012)."""
    shared: Bool[np.ndarray, " windows"]
    """Holds a whole 13-gram that an earlier split holds too."""
    repeat: Bool[np.ndarray, " windows"]
    """Neither of these, but token-identical to another window, which stands for the text."""
    drawn_from: tuple[int, ...] = tuple(range(len(schema.SPLITS)))
    """Of each split, the split whose windows its samples are drawn from."""

    @classmethod
    def of(cls, corpus: Corpus, length: int) -> Windows:
        """Raises SettingsError if no 13-gram fits a window, CorpusError if `length` does not divide sequences."""
        if length < schema.GRAM:
            raise SettingsError(
                f"contexts.length = {length}",
                expected=f"at least {schema.GRAM}: text shared between splits is found by its {schema.GRAM}-grams",
                todo="set a longer contexts.length",
            )
        split = corpus.split_of_context(length)
        shared = corpus.shares_13gram(length)
        start = np.arange(len(split), dtype=np.int64) * length
        # Spans are ascending and disjoint; BOS and separators lie between them.
        first = np.searchsorted(corpus.span_end, start, side="right")
        last = np.searchsorted(corpus.span_start, start + length, side="left") - 1
        middle = np.searchsorted(corpus.span_start, start + length // 2, side="right") - 1
        document = corpus.span_document[np.maximum(np.clip(middle, first, last), 0)]
        several = first != last
        repeat = _repeats(text_hashes(corpus.tokens.reshape(-1, length)), split, ~(several | shared))
        return cls(length, split, document, several, shared, repeat)

    def in_one_pool(self) -> Windows:
        """All windows as one pool for every split, as in the paper: nothing is kept apart, nothing dropped."""
        nothing = np.zeros(len(self.split), dtype=bool)
        pool = schema.SPLITS.index("test")
        return replace(
            self,
            split=np.full_like(self.split, pool),
            several=nothing,
            shared=nothing,
            repeat=nothing,
            drawn_from=(pool,) * len(schema.SPLITS),
        )

    @cached_property
    def usable(self) -> Bool[np.ndarray, " windows"]:
        """The windows that samples are drawn from."""
        usable: Bool[np.ndarray, " windows"] = ~(self.several | self.shared | self.repeat)
        return usable

    @cached_property
    def kind(self) -> UInt8[np.ndarray, " windows"]:
        """Split of a usable window; of others `SEVERAL`, `SHARED` or `REPEAT`, the first that holds."""
        kind = self.split.copy()
        for number, holds in ((REPEAT, self.repeat), (SHARED, self.shared), (SEVERAL, self.several)):
            kind[holds] = number
        return kind

    @cached_property
    def n_usable(self) -> Int64[np.ndarray, " splits"]:
        return np.bincount(self.split[self.usable], minlength=len(schema.SPLITS))

    def facts(self) -> dict[str, dict[str, int]]:
        """Counts of windows by split, for people."""
        counted = {
            "usable": self.usable,
            "dropped_several": self.several,
            "dropped_shared": self.shared,
            "dropped_identical": self.repeat,
        }
        return {
            f"windows_{name}": {split: int((self.split[mask] == i).sum()) for i, split in enumerate(schema.SPLITS)}
            for name, mask in counted.items()
        }


def text_hashes(tokens: UInt32[np.ndarray, "windows length"]) -> UInt64[np.ndarray, " windows"]:
    """64-bit hash of the tokens of each window. Equal texts have equal hashes; two others at odds of 2^-64."""
    hashes = np.empty(len(tokens), dtype=np.uint64)
    for low in range(0, len(tokens), _CHUNK):
        chunk = np.asarray(tokens[low : low + _CHUNK])
        hashes[low : low + _CHUNK] = counter_hash(0, *chunk.T)
    return hashes


def _repeats(
    text: UInt64[np.ndarray, " windows"],
    split: UInt8[np.ndarray, " windows"],
    candidate: Bool[np.ndarray, " windows"],
) -> Bool[np.ndarray, " windows"]:
    """Candidates that are not the one of their text: the earliest split's, there the one with the lowest hash.

    By hash and not the first, since a repeated text differs from its first occurrence in what precedes it.
    """
    repeat = np.zeros(len(text), dtype=bool)
    windows = np.flatnonzero(candidate)
    order = windows[np.lexsort((counter_hash(1, windows), split[windows], text[windows]))]
    repeat[order[1:]] = text[order[1:]] == text[order[:-1]]
    return repeat


# Where latents fire -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Where the latents of a block are active: one *cell* per (latent, window), sorted by both.

    A cell is *activating* if the latent is active on an unmasked token of it. A cell that is active on masked tokens
    only is neither activating nor non-activating.
    """

    latents: UInt32[np.ndarray, " latents"]
    row: Int64[np.ndarray, " cells"]
    """Index into `latents`."""
    window: Int64[np.ndarray, " cells"]
    first: Int64[np.ndarray, " cells"]
    """The cell's tokens are `position[first : first + count]`, masked ones included."""
    count: Int64[np.ndarray, " cells"]
    position: UInt32[np.ndarray, " tokens"]
    unmasked: Bool[np.ndarray, " tokens"]
    windows: Windows
    _order: Int64[np.ndarray, " tokens"]
    _activation: Float32[np.ndarray, " pairs"] | None
    """As read, if it was; `_order` puts it beside `position`."""

    @classmethod
    def of(
        cls,
        latents: UInt32[np.ndarray, " latents"],
        active: pl.DataFrame,
        masked: Bool[np.ndarray, " positions"],
        windows: Windows,
    ) -> Cells:
        """From rows of `schema.ACTIVATIONS` in any order; those of other latents are left out.

        Cheapest where the pairs of a latent stand together in few runs, as shards have them.
        """
        latent, position = array(active["latent"]), array(active["position"])
        run = np.append(0, np.flatnonzero(latent[1:] != latent[:-1]) + 1)[: len(latent)]
        row_of_run = _rows(latents, latent[run])
        by_row = np.argsort(row_of_run, kind="stable")
        edges_of_rows = np.searchsorted(row_of_run[by_row], np.arange(len(latents) + 1))
        by_row = by_row[: edges_of_rows[-1]]
        order, edges = members(run[by_row], np.diff(run, append=len(latent))[by_row])
        bounds = edges[edges_of_rows]  # the tokens of row i are bounds[i] to bounds[i + 1]
        position = position[order]
        opens = np.zeros(len(position) + 1, dtype=bool)
        opens[bounds] = True
        opens = opens[:-1]
        if not (opens[1:] | (position[1:] > position[:-1])).all():  # shards come by position, and that is in order
            again = np.lexsort((position, np.repeat(np.arange(len(latents)), np.diff(bounds))))
            order, position = order[again], position[again]
        window = position // np.uint32(windows.length)
        opens[1:] |= window[1:] != window[:-1]
        first = np.flatnonzero(opens)
        count = np.diff(first, append=len(position))
        row = np.repeat(np.arange(len(latents)), np.diff(np.searchsorted(first, bounds)))
        activation = array(active["activation"]) if "activation" in active.columns else None
        return cls(
            latents, row, window[first].astype(np.int64), first, count, position, ~masked[position], windows, order,
            activation,
        )  # fmt: skip

    @cached_property
    def kind(self) -> UInt8[np.ndarray, " cells"]:
        """Of the cell's window: see `Windows.kind`."""
        kind: UInt8[np.ndarray, " cells"] = self.windows.kind[self.window]
        return kind

    @cached_property
    def _masked(self) -> Int64[np.ndarray, " masked"]:
        """Indices of the masked tokens: few, so that going through them is quicker than through all."""
        return np.flatnonzero(~self.unmasked)

    @cached_property
    def activating(self) -> Bool[np.ndarray, " cells"]:
        activating = np.ones(len(self.first), dtype=bool)
        cell, n = np.unique(np.searchsorted(self.first, self._masked, side="right") - 1, return_counts=True)
        activating[cell] = n < self.count[cell]
        return activating

    @cached_property
    def activation(self) -> Float32[np.ndarray, " tokens"]:
        """Above zero."""
        assert self._activation is not None, "this stage said that it asks only where latents are active"
        activation: Float32[np.ndarray, " tokens"] = self._activation[self._order]
        return activation

    @cached_property
    def maximum(self) -> Float32[np.ndarray, " cells"]:
        """Largest activation on an unmasked token; 0 if there is none."""
        value = self.activation
        if len(self._masked):
            value = value.copy()
            value[self._masked] = 0
        # Token by token, all cells at once: most have one or two, for which a reduction per cell is slow.
        maximum: Float32[np.ndarray, " cells"] = value[self.first]
        left, n = np.flatnonzero(self.count > 1), 1
        while len(left):
            maximum[left] = np.maximum(maximum[left], value[self.first[left] + n])
            n += 1
            left = left[np.flatnonzero(self.count[left] > n)]
        return maximum

    @cached_property
    def document(self) -> UInt32[np.ndarray, " cells"]:
        document: UInt32[np.ndarray, " cells"] = self.windows.document[self.window]
        return document

    @property
    def alive(self) -> Bool[np.ndarray, " latents"]:
        """Latents that fire on some unmasked token of the corpus."""
        alive = np.zeros(len(self.latents), dtype=bool)
        alive[self.row[np.flatnonzero(self.activating)]] = True
        return alive


def _rows(latents: UInt32[np.ndarray, " latents"], of: UInt32[np.ndarray, " pairs"]) -> Shaped[np.ndarray, " pairs"]:
    """Index in `latents` (ascending) of each pair's latent; their number for a latent that is not among them."""
    low = latents[0] if len(latents) else np.uint32(0)
    width = int(latents[-1] - low) + 1 if len(latents) else 0
    if width == len(latents) and len(of) and of.min() >= low and of.max() - low < width:
        return (of - low).astype(_small(width - 1))
    rows = np.full(width + 1, len(latents), dtype=_small(len(latents)))
    rows[latents - low] = np.arange(len(latents))
    # Latents outside the range wrap around or lie beyond it: the last entry is nobody's.
    return rows[np.minimum(of - low, np.uint32(width))]


def _small(n: int) -> type[np.unsignedinteger[Any]]:
    """Least type for numbers up to n: NumPy sorts those of 8 and 16 bits in linear time."""
    return np.uint8 if n < 2**8 else np.uint16 if n < 2**16 else np.uint32


def members(
    first: Int64[np.ndarray, " cells"], count: Int64[np.ndarray, " cells"]
) -> tuple[Int64[np.ndarray, " tokens"], Int64[np.ndarray, " edges"]]:
    """Indices first[i] to first[i] + count[i] of all cells in a row, and where each cell's begin; their number last."""
    edges = np.append(0, np.cumsum(count))
    index = np.repeat(first - edges[:-1], count)
    index += np.arange(edges[-1])
    return index, edges


# The loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a stage that goes through the blocks of a SAE reads."""

    corpus: Corpus
    windows: Windows
    masked: Bool[np.ndarray, " positions"]
    shards: Shards
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
    work: Work,
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
    resolved, cache = work.input("resolved_saes"), work.input("activation_cache")
    declared = resolved.json("resolved.json")
    # The pinned choice of latents, which the registry may have left behind.
    spec = SaeSpec.model_validate({**work.sae.model_dump(), "latents": declared["latents"]})
    latents = selected_latents(spec, declared["n_latents"])
    corpus = work.workspace.corpus(resolved)
    windows = Windows.of(corpus, work.settings.contexts.length)
    if work.settings.contexts.pool == "one":
        windows = windows.in_one_pool()
    consumed |= {
        "resolved_saes": resolved.content(("cache",)),
        "activation_cache": cache.content(("activations", "masked")),
    }
    due: list[tuple[str, dict[str, Any], UInt32[np.ndarray, " _"]]] = []
    for chosen in blocks_of(latents):
        name = f"{chosen[0] // schema.BLOCK:06d}"
        recipe = work.block_recipe(latents=chosen.tolist(), **consumed)
        if not work.draft.reuse(name, recipe, work.stage.tables):
            due.append((name, recipe, chosen))
    if not due:
        return windows
    keep_freed_memory()
    blocks = [chosen for _, _, chosen in due]
    shards = Shards(cache.tables(schema.ACTIVATIONS.name), strengths=strengths)
    workers = work.settings.machine.workers or os.cpu_count() or 1
    source = Source(corpus, windows, _masked(cache, corpus), shards, blocks, workers)
    compute = prepare(source)

    def put(index: int, cells: Cells) -> int:
        name, recipe, chosen = due[index]
        work.draft.put(name, recipe, work.stage.tables, compute(cells))
        return len(chosen)

    done = len(latents) - sum(map(len, blocks))
    for n in source.each(blocks, put):
        done += n
        work.progress(done, len(latents), "latents")
    return windows


def _masked(cache: Version, corpus: Corpus) -> Bool[np.ndarray, " positions"]:
    masked = np.zeros(corpus.tokens.size, dtype=bool)
    masked[cache.read(schema.MASKED)["position"].to_numpy()] = True
    return masked
