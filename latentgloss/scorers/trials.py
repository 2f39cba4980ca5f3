"""Trials of intruder detection: which windows are shown together, and whose marks they wear.

What belongs here: drawing trials, and the rows that are asked of them. Four test windows of one latent and decile, and
among them one of another latent of the block, each with its own marks. What answers is in `intruder.py`.
Method: docs/methods.md, Intruder.

**What a trial depends on.** The windows shown: the latent's own test sample, the seed, and which mark shapes the other
latents of the block have (a window whose shape nobody else has is not shown). The intruder: the latent of the lowest
hash that fits. Other latents are those that were asked for *before* this one (`windows.latents_in_turn`), so that a
latent that is added changes no trial; the first few of a block have fewer trials, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, UInt32

from latentgloss import schema
from latentgloss.hashing import counter_hash
from latentgloss.marks import dense_activations, marks, masked_tokens
from latentgloss.pairs import Shards
from latentgloss.population import DECILES
from latentgloss.sampling import of_block, sampled
from latentgloss.scorers.base import COLUMNS, ORDER, Asked, Plan
from latentgloss.windows import latents_in_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.corpus import Corpus
    from latentgloss.work import Work

ARM = "intruder"
SHOWN = 4
"""Windows of the latent itself in a trial."""
PASSAGES = SHOWN + 1
PER_DECILE = 2
TRIALS = PER_DECILE * DECILES
"""Of each latent, made or not."""
_WINDOWS, _LATENT, _WINDOW, _PLACE = 0x1274D, 0x1A7E7, 0x1D0C5, 0x19A6E
"""Salts: order of a latent's windows, which latent intrudes, with which window, in which place."""


@dataclass(frozen=True)
class Pool:
    """Test windows of the eligible latents of a block, by latent and window, and where each of the latents fires."""

    latents: UInt32[np.ndarray, " latents"]
    """Ascending."""
    row: Int64[np.ndarray, " n"]
    """Index into `latents`."""
    context: Int64[np.ndarray, " n"]
    column: Int64[np.ndarray, " n"]
    """Column of the window in `fires`."""
    decile: Int64[np.ndarray, " n"]
    document: Int64[np.ndarray, " n"]
    marks: Bool[np.ndarray, "n length"]
    shape: Int64[np.ndarray, " n"]
    """Number of runs of marks and of marked tokens, in one number."""
    fires: Bool[np.ndarray, "latents windows"]
    """On some token of the window, masked or not."""

    @classmethod
    def of(cls, contexts: pl.DataFrame, masked: Bool[np.ndarray, "windows length"], pairs: pl.DataFrame) -> Pool:
        """From rows of `schema.CONTEXTS` in any order, the mask of all windows of the corpus, and where latents fire.

        `pairs` are rows of `schema.ACTIVATIONS` (latent, position), all there are of these latents; of others too.
        """
        sample = contexts.filter(split="test").sort("latent", "context")
        latent, context, decile, document = (
            sample[name].to_numpy().astype(np.int64) for name in ("latent", "context", "decile", "document")
        )
        latents, row = np.unique(latent, return_inverse=True)
        windows, column = np.unique(context, return_inverse=True)
        own = marks(dense_activations(sample, masked.shape[1]), masked[context])
        runs = (own[:, 1:] & ~own[:, :-1]).sum(axis=1) + own[:, 0]
        fires = np.zeros((len(latents), len(windows)), dtype=bool)
        active = pairs.select("latent", window=pl.col("position") // masked.shape[1]).filter(
            pl.col("latent").is_in(latents.tolist()), pl.col("window").is_in(windows.tolist())
        )
        at = (np.searchsorted(known, active[name].to_numpy()) for known, name in
              ((latents, "latent"), (windows, "window")))  # fmt: skip
        fires[tuple(at)] = True
        shape = runs.astype(np.int64) * (masked.shape[1] + 1) + own.sum(axis=1)
        return cls(latents.astype(np.uint32), row, context, column, decile, document, own, shape, fires)

    def like(self, index: int) -> Int64[np.ndarray, " few"]:
        """Indices of the windows with marks of the same shape."""
        return self._by_shape[int(self.shape[index])]

    @cached_property
    def _by_shape(self) -> dict[int, Int64[np.ndarray, " few"]]:
        order = np.argsort(self.shape, kind="stable")
        shapes, first = np.unique(self.shape[order], return_index=True)
        return dict(zip(shapes.tolist(), np.split(order, first[1:]), strict=True))


@dataclass(frozen=True)
class Drawn:
    """The trials of some latents of a block."""

    table: pl.DataFrame
    """Rows of `schema.TRIALS`: `TRIALS` of each latent."""
    rows: pl.DataFrame
    """`COLUMNS` of the windows of the trials that were made: `PASSAGES` rows each, in the order they are shown."""
    marks: Bool[np.ndarray, "rows length"]


class _Latent:
    """One latent whose trials are drawn."""

    def __init__(self, pool: Pool, row: int, seed: int, before: Bool[np.ndarray, " latents"]) -> None:
        self.pool, self.row, self.seed, self.latent = pool, row, seed, int(pool.latents[row])
        mine = np.flatnonzero(pool.row == row)
        self.silent = ~pool.fires[row, pool.column] & before[pool.row]
        """Windows that could intrude, if nothing else spoke against it."""
        # A window nobody could stand in for among its like would betray that it belongs.
        self.usable = mine[np.isin(pool.shape[mine], np.unique(pool.shape[self.silent]))]
        self.usable = self.usable[np.argsort(counter_hash(seed ^ _WINDOWS, self.latent, pool.context[self.usable]))]
        self.taken: set[int] = set()
        self.intruders: set[int] = set()

    def trial(self, number: int) -> dict[str, Any]:
        """A row of `schema.TRIALS`, with `shown`: indices into the pool of the windows, in the order they are shown."""
        decile = number // PER_DECILE + 1
        row = {"latent": self.latent, "trial": number, "decile": decile, "place": None, "intruder_latent": None}
        here = self.usable[self.pool.decile[self.usable] == decile].tolist()
        four = self._of_other_documents([i for i in here if i not in self.taken], SHOWN, set())
        documents = {int(self.pool.document[i]) for i in four}
        fifth = self._of_other_documents([i for i in here if i not in four], 1, documents)
        if len(four) < SHOWN or not fifth:
            why = f"decile {decile} has too few windows of different documents with marks like other latents'"
            return {**row, "status": "too_few", "reason": why, "contexts": [], "shown": []}
        self.taken.update(four)
        intruder = self._intruder(number, four, fifth[0], documents)
        if intruder is None:
            why = "no other latent of the block has such marks in a window that fits"
            return {**row, "status": "no_intruder", "reason": why, "contexts": [], "shown": []}
        self.intruders.add(int(self.pool.context[intruder]))
        place = int(counter_hash(self.seed ^ _PLACE, self.latent, number).item()) % PASSAGES
        shown = [*four[:place], intruder, *four[place:]]
        return {
            **row, "status": "ok", "reason": "", "place": place + 1, "shown": shown,
            "intruder_latent": int(self.pool.latents[self.pool.row[intruder]]),
            "contexts": self.pool.context[shown].tolist(),
        }  # fmt: skip

    def _of_other_documents(self, order: list[int], n: int, documents: set[int]) -> list[int]:
        """The first `n`, each of a document of its own and of none of `documents`."""
        found: list[int] = []
        taken = set(documents)
        for i in order:
            if len(found) == n:
                break
            if (document := int(self.pool.document[i])) not in taken:
                taken.add(document)
                found.append(i)
        return found

    def _intruder(self, number: int, four: list[int], fifth: int, documents: set[int]) -> int | None:
        """A window with marks like those of `fifth`, whose place among five of the latent it takes."""
        pool = self.pool
        present = np.asarray(pool.fires[:, pool.column[four]].any(axis=1))
        found = pool.like(fifth)
        found = found[self.silent[found] & ~present[pool.row[found]]]
        taken = (pool.document[found][:, None] == list(documents)).any(axis=1)
        found = found[~taken & ~np.isin(pool.context[found], list(self.intruders))]
        if not len(found):
            return None
        of = counter_hash(self.seed ^ _LATENT, self.latent, number, pool.latents)[pool.row[found]]
        found = found[of == of.min()]
        return int(found[counter_hash(self.seed ^ _WINDOW, self.latent, number, pool.context[found]).argmin()])


def draw(pool: Pool, latents: list[int], seed: int, in_turn: UInt32[np.ndarray, " asked"] | None = None) -> Drawn:
    """Every trial of these latents of the pool, made or not.

    `in_turn`: latents as they were asked for; only those before a latent intrude on it. None: all others may.
    """
    rows: list[dict[str, Any]] = []
    turn = {} if in_turn is None else {int(latent): i for i, latent in enumerate(in_turn)}
    turns = np.array([turn.get(int(latent), -1) for latent in pool.latents])
    for latent in latents:
        row = int(np.searchsorted(pool.latents, latent))
        before = np.ones(len(turns), bool) if in_turn is None else turns < turns[row]
        one = _Latent(pool, row, seed, before)
        rows += [one.trial(number) for number in range(TRIALS)]
    shown = np.array([i for row in rows for i in row["shown"]], dtype=np.int64)
    table = schema.TRIALS.frame({name: row[name] for name in schema.TRIALS.schema} for row in rows)
    made = table.filter(status="ok")
    of, trial, place = (np.repeat(made[name].to_numpy(), PASSAGES) for name in ("latent", "trial", "place"))
    at_place = np.tile(np.arange(PASSAGES, dtype=np.uint64), made.height)
    truth = at_place + 1 != place
    asked = pl.DataFrame(
        {
            "latent": of,
            "part": trial,
            "place": at_place,
            "context": pool.context[shown].astype(np.uint32),
            "decile": np.where(truth, pool.decile[shown], 0).astype(np.uint8),
            "document": pool.document[shown].astype(np.uint32),
            "truth": truth,
            "index": shown,
        }
    ).with_columns(
        arm=pl.lit(ARM),
        split=pl.lit("test"),
        stratum=pl.when("truth").then(pl.lit("activating")).otherwise(pl.lit(ARM)),
        status=pl.lit("ok"),
        reason=pl.lit(""),
    )
    asked = asked.sort(ORDER)
    return Drawn(table, asked.select(COLUMNS), pool.marks[asked["index"].to_numpy()])


def turn_of(work: Work, block: str | None = None) -> UInt32[np.ndarray, " latents"]:
    """Latents in the order in which they were asked for; of one block if it is named."""
    in_turn = latents_in_turn(work.sae, work.input("resolved_saes").json("resolved.json")["n_latents"])
    return in_turn if block is None else in_turn[in_turn // schema.BLOCK == int(block)]


def drawing(work: Work, corpus: Corpus) -> Callable[[str], tuple[pl.DataFrame, Asked]]:
    """Makes ready what gives the trials of a block, and what is asked: of the latents that the settings sample."""
    contexts, cache = work.input("sampled_contexts"), work.input("activation_cache")
    length, settings = work.settings.contexts.length, work.settings.intruder
    masked = masked_tokens(cache, corpus, length)
    chosen = sampled(contexts.read(schema.ELIGIBILITY), settings.sample, settings.seed)
    in_turn = turn_of(work)
    shards: list[Shards] = []  # their footers are read when the first block is

    def of(block: str) -> tuple[pl.DataFrame, Asked]:
        shards.extend([] if shards else [Shards(cache.tables(schema.ACTIVATIONS.name), strengths=False)])
        first = int(block) * schema.BLOCK
        (pairs,) = shards[0].read([(first, first + schema.BLOCK)])
        pool = Pool.of(contexts.read(schema.CONTEXTS, block), masked, pairs)
        judged = pool.latents.tolist() if chosen is None else of_block(chosen, block)
        drawn = draw(pool, judged, settings.seed, in_turn)
        at = drawn.rows["context"].to_numpy()
        asked = Asked(drawn.rows, corpus.contexts(at, length), drawn.marks, masked[at], profile=work.settings.profile)
        return drawn.table, asked

    return of


def plan(work: Work, corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """One arm, of the test split."""
    of = drawing(work, corpus)
    return Plan([ARM], {"trials": TRIALS, "seed": work.settings.intruder.seed}, lambda block: of(block)[1])
