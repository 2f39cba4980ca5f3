"""Trials of intruder detection: which windows are shown together, and whose marks they wear.

What belongs here: drawing trials, and the rows that are asked of them. Four test windows of one latent and decile, and
among them one of another latent, each with its own marks. What answers is in `intruder.py`.
Method: docs/methods.md, Intruder.

**What a trial depends on.** Intruders on a latent are those of the SAE's first `POOL` eligible latents that were asked
for *before* it (`windows.latents_in_turn`), whatever their block: a latent that is added changes no trial, and a sample
of few latents per block has trials like any other. Only a SAE's first few latents have fewer, or none
(docs/decisions/0014-intruders.md). The windows shown: the latent's own test sample, the seed, and which mark shapes its
intruders have (a window whose shape none of them has is not shown). The intruder: the latent of the lowest hash that
fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from latentgloss import schema
from latentgloss.activations.reader import ActivationReader
from latentgloss.contexts.latent_sample import latents_in_turn, sampled
from latentgloss.contexts.marks import masked_tokens
from latentgloss.contexts.population import DECILES
from latentgloss.scores.scorers.base import COLUMNS, ORDER, Asked, Plan
from latentgloss.scores.scorers.marked import Marked, cells_of
from latentgloss.statistics.counter_rng import counter_hash
from latentgloss.store.digests import frame_sha256, json_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.scores.scorers.base import ScoreNeeds


ARM = "intruder"
SHOWN = 4
"""Windows of the latent itself in a trial."""
PASSAGES = SHOWN + 1
PER_DECILE = 2
TRIALS = PER_DECILE * DECILES
"""Of each latent, made or not."""
POOL = 128
"""Latents that intrude on those that were asked for after them; with twice as many hardly more trials are made."""
_WINDOWS, _LATENT, _WINDOW, _PLACE = 0x1274D, 0x1A7E7, 0x1D0C5, 0x19A6E
"""Salts: order of a latent's windows, which latent intrudes, with which window, in which place."""


@dataclass(frozen=True)
class Drawn:
    """The trials of some latents of a block."""

    table: pl.DataFrame
    """Rows of `schema.TRIALS`: `TRIALS` of each latent."""
    rows: pl.DataFrame
    """`COLUMNS` of the windows of the trials that were made: `PASSAGES` rows each, in the order they are shown."""
    marks: Bool[np.ndarray, "rows length"]


class _Latent:
    """One latent whose trials are drawn: of `own` the one at `row`, on which the first `before` of `pool` intrude."""

    def __init__(
        self,
        own: Marked,
        pool: Marked,
        row: int,
        before: int,
        seed: int,
        silent: Bool[np.ndarray, " pool_windows"],
        present: Bool[np.ndarray, "pool_latents own_windows"],
    ) -> None:
        self.own, self.pool, self.seed, self.latent = own, pool, seed, int(own.latents[row])
        self.present = present
        self.silent = silent & (pool.row < before)
        """Windows that could intrude, if nothing else spoke against it."""
        mine = np.flatnonzero(own.row == row)
        # A window nobody could stand in for among its like would betray that it belongs.
        self.usable = mine[np.isin(own.shape[mine], np.unique(pool.shape[self.silent]))]
        self.usable = self.usable[np.argsort(counter_hash(seed ^ _WINDOWS, self.latent, own.context[self.usable]))]
        self.taken: set[int] = set()
        self.intruders: set[int] = set()

    def trial(self, number: int) -> dict[str, Any]:
        """A row of `schema.TRIALS`, with `shown`: the windows in the order they are shown, as indices into those of
        `own` with those of `pool` behind them."""
        decile = number // PER_DECILE + 1
        row = {"latent": self.latent, "trial": number, "decile": decile, "place": None, "intruder_latent": None}
        here = self.usable[self.own.decile[self.usable] == decile].tolist()
        four = self._of_other_documents([i for i in here if i not in self.taken], SHOWN, set())
        documents = {int(self.own.document[i]) for i in four}
        fifth = self._of_other_documents([i for i in here if i not in four], 1, documents)
        if len(four) < SHOWN or not fifth:
            why = f"decile {decile} has too few windows of different documents with marks like other latents'"
            return {**row, "status": "too_few", "reason": why, "contexts": [], "shown": []}
        self.taken.update(four)
        intruder = self._intruder(number, four, fifth[0], documents)
        if intruder is None:
            why = "no latent that was asked for earlier has such marks in a window that fits"
            return {**row, "status": "no_intruder", "reason": why, "contexts": [], "shown": []}
        context = int(self.pool.context[intruder])
        self.intruders.add(context)
        place = int(counter_hash(self.seed ^ _PLACE, self.latent, number).item()) % PASSAGES
        contexts = self.own.context[four].tolist()
        return {
            **row,
            "status": "ok",
            "reason": "",
            "place": place + 1,
            "intruder_latent": int(self.pool.latents[self.pool.row[intruder]]),
            "contexts": [*contexts[:place], context, *contexts[place:]],
            "shown": [*four[:place], len(self.own.context) + intruder, *four[place:]],
        }

    def _of_other_documents(self, order: list[int], n: int, documents: set[int]) -> list[int]:
        """The first `n`, each of a document of its own and of none of `documents`."""
        found: list[int] = []
        taken = set(documents)
        for i in order:
            if len(found) == n:
                break
            if (document := int(self.own.document[i])) not in taken:
                taken.add(document)
                found.append(i)
        return found

    def _intruder(self, number: int, four: list[int], fifth: int, documents: set[int]) -> int | None:
        """A window with marks like those of `fifth`, whose place among five of the latent it takes."""
        pool = self.pool
        present = np.asarray(self.present[:, four].any(axis=1))
        found = pool.like(int(self.own.shape[fifth]))
        found = found[self.silent[found] & ~present[pool.row[found]]]
        taken = (pool.document[found][:, None] == list(documents)).any(axis=1)
        found = found[~taken & ~np.isin(pool.context[found], list(self.intruders))]
        if not len(found):
            return None
        of = counter_hash(self.seed ^ _LATENT, self.latent, number, pool.latents)[pool.row[found]]
        found = found[of == of.min()]
        return int(found[counter_hash(self.seed ^ _WINDOW, self.latent, number, pool.context[found]).argmin()])


def draw(own: Marked, pool: Marked, before: Mapping[int, int], seed: int) -> Drawn:
    """Every trial of some latents of `own`, made or not. `before`: which, and how many of the pool's first intrude."""
    speaks, present = own.fires_in(pool.context), pool.fires_in(own.context)
    rows: list[dict[str, Any]] = []
    for row, latent in enumerate(own.latents.tolist()):
        if latent in before:
            one = _Latent(own, pool, row, before[latent], seed, ~speaks[row], present)
            rows += [one.trial(number) for number in range(TRIALS)]
    shown = np.array([i for row in rows for i in row["shown"]], dtype=np.int64)
    table = schema.TRIALS.frame({name: row[name] for name in schema.TRIALS.schema} for row in rows)
    made = table.filter(status="ok")
    of, trial, place = (np.repeat(made[name].to_numpy(), PASSAGES) for name in ("latent", "trial", "place"))
    at_place = np.tile(np.arange(PASSAGES, dtype=np.uint64), made.height)
    truth = at_place + 1 != place
    context, decile, document, marked = (
        np.concatenate([getattr(own, name), getattr(pool, name)])[shown]
        for name in ("context", "decile", "document", "marks")
    )
    asked = pl.DataFrame(
        {
            "latent": of,
            "part": trial,
            "place": at_place,
            "context": context.astype(np.uint32),
            "decile": np.where(truth, decile, 0).astype(np.uint8),
            "document": document.astype(np.uint32),
            "truth": truth,
            "index": np.arange(len(shown)),
        }
    ).with_columns(
        arm=pl.lit(ARM),
        split=pl.lit("test"),
        stratum=pl.when("truth").then(pl.lit("activating")).otherwise(pl.lit(ARM)),
        status=pl.lit("ok"),
        reason=pl.lit(""),
    )
    asked = asked.sort(ORDER)
    return Drawn(table, asked.select(COLUMNS), marked[asked["index"].to_numpy()])


class Trials:
    """The trials of a SAE, drawn block by block when called: of the latents that the settings sample.

    Memory: the mask, a byte per token; windows of the latents that intrude, and all windows they fire in; beside these
    one block at a time.
    """

    def __init__(self, run: StageRun[ScoreNeeds], corpus: Corpus, only: int | None = None) -> None:
        """`only`: of this latent alone, whatever the sample."""
        self.corpus, self.profile = corpus, run.settings.profile
        self.contexts, self.cache = run.input("sampled_contexts"), run.input("activation_cache")
        self.length, self.settings = run.settings.contexts.length, run.settings.intruder
        eligibility = self.contexts.read(schema.ELIGIBILITY)
        chosen = sampled(eligibility, self.settings.sample, self.settings.seed) if only is None else [only]
        eligible = eligibility.filter(status="eligible")["latent"].to_numpy()
        n_latents = run.input("resolved_saes").json("resolved.json")["n_latents"]
        turn = np.full(n_latents, n_latents)
        in_turn = latents_in_turn(run.sae, n_latents)
        turn[in_turn] = np.arange(len(in_turn))
        eligible = eligible[np.argsort(turn[eligible], kind="stable")]
        self.intruders = eligible[:POOL]
        """In the order in which they were asked for."""
        judged = np.ones(len(eligible), dtype=bool) if chosen is None else np.isin(eligible, chosen)
        self._judged = eligible[judged]
        self._before = np.minimum(np.flatnonzero(judged), POOL)
        """How many of them intrude on each of the latents judged."""

    def consumed(self, block: str) -> dict[str, Any]:
        """For the block's recipe: what its trials depend on beside its own contexts and where latents fire."""
        before = self._of_block(block)
        return {
            "before": list(before.values()),
            "intruders": json_sha256(self._contents[: max(before.values(), default=0)]),
        }

    def __call__(self, block: str) -> tuple[pl.DataFrame, Asked]:
        """Rows of `schema.TRIALS` of a block, and what is asked."""
        before = self._of_block(block)
        judged = np.array(list(before), dtype=np.uint32)
        ranges = [(int(judged[0]), int(judged[-1]) + 1)] if before else []
        cells = cells_of(self._shards.read(ranges), judged, self.length)
        own = Marked.of(judged, self.contexts.read(schema.CONTEXTS, block), self._masked, cells)
        drawn = draw(own, self._pool, before, self.settings.seed)
        at = drawn.rows["context"].to_numpy()
        tokens = self.corpus.contexts(at, self.length)
        return drawn.table, Asked(drawn.rows, tokens, drawn.marks, self._masked[at], profile=self.profile)

    def _of_block(self, block: str) -> dict[int, int]:
        """The latents judged, ascending, with how many intrude on each."""
        here = self._judged // schema.BLOCK == int(block)
        return dict(sorted(zip(self._judged[here].tolist(), self._before[here].tolist(), strict=True)))

    @cached_property
    def _of_intruders(self) -> pl.DataFrame:
        """Their test contexts."""
        mine = pl.col("latent").is_in(self.intruders.tolist())
        blocks = sorted({f"{latent // schema.BLOCK:06d}" for latent in self.intruders.tolist()})
        found = [self.contexts.scan(schema.CONTEXTS, b).filter(mine, split="test").collect() for b in blocks]
        return pl.concat([schema.CONTEXTS.empty(), *found])

    @cached_property
    def _contents(self) -> list[tuple[int, str]]:
        """Each intruder with the hash of its test contexts, in turn."""
        rows = self._of_intruders.sort("latent", "order").partition_by("latent", as_dict=True)
        return [(latent, frame_sha256(rows[(latent,)])) for latent in self.intruders.tolist()]

    @cached_property
    def _masked(self) -> Bool[np.ndarray, "windows length"]:
        return masked_tokens(self.cache, self.corpus, self.length)

    @cached_property
    def _paths(self) -> list[Path]:
        return self.cache.tables(schema.ACTIVATIONS.name)

    @cached_property
    def _shards(self) -> ActivationReader:
        return ActivationReader(self._paths, strengths=False)

    @cached_property
    def _pool(self) -> Marked:
        """They are of anywhere in the SAE: the whole cache is read once, a shard at a time, and little of it kept."""
        ranges = [(latent, latent + 1) for latent in sorted(self.intruders.tolist())]
        each = (ActivationReader([path], strengths=False).read(ranges) for path in self._paths)
        cells = pl.concat([cells_of(pairs, self.intruders, self.length) for pairs in ([], *each)])
        return Marked.of(self.intruders, self._of_intruders, self._masked, cells)


def plan(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """One arm, of the test split."""
    of = Trials(run, corpus)
    return Plan([ARM], {"trials": TRIALS, "seed": run.settings.intruder.seed}, lambda block: of(block)[1])
