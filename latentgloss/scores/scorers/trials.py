"""Trials of intruder detection: which windows are shown together, and with which marks.

What belongs here: drawing trials from arrays of windows. A trial shows four test windows of one latent and decile, and
one window of another latent, the intruder, each with its own marks. Nothing is read or written; `intruder.py` reads the
windows. Method: docs/methods.md, Intruder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from latentgloss import schema
from latentgloss.contexts.population import DECILES
from latentgloss.scores.scorers.base import COLUMNS, ORDER
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentgloss.scores.scorers.marked import Marked


ARM = "intruder"
"""The only arm, the stratum of intruders, and the key of the answer in JSON replies."""
SHOWN = 4
"""Windows of the latent itself in a trial."""
PASSAGES = SHOWN + 1
"""Windows in a trial, the intruder included."""
PER_DECILE = 2
"""Trials of each decile of a latent."""
TRIALS = PER_DECILE * DECILES
"""Trials of each latent, including those that cannot be made."""
_WINDOWS, _LATENT, _WINDOW, _PLACE = 0x1274D, 0x1A7E7, 0x1D0C5, 0x19A6E
"""Salts: of the order of a latent's windows, of the latent that intrudes, of its window, and of the place."""


@dataclass(frozen=True)
class Drawn:
    """The trials of some latents of a block."""

    table: pl.DataFrame
    """`TRIALS` rows of `schema.TRIALS` for each latent."""
    rows: pl.DataFrame
    """`COLUMNS`: `PASSAGES` rows for each trial that could be made, in the order in which they are shown."""
    marks: Bool[np.ndarray, "rows length"]
    """Tokens of these windows that are shown as active."""


class _Latent:
    """One latent whose trials are drawn: the one at `row` of `own`. Intruders come from the first `before` of `pool`.

    `silent`: windows of `pool` in which the latent does not fire. `present`: which latents of `pool` fire in which
    windows of `own`.
    """

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
        """Windows of the pool that may intrude, other conditions aside."""
        windows = np.flatnonzero(own.row == row)
        # A window with a mark shape that no intruder has would show that it belongs to the latent.
        self.usable = windows[np.isin(own.shape[windows], np.unique(pool.shape[self.silent]))]
        self.usable = self.usable[np.argsort(counter_hash(seed ^ _WINDOWS, self.latent, own.context[self.usable]))]
        """Windows of the latent that may be shown, in the order in which they are tried."""
        self.taken: set[int] = set()
        """Windows of the latent that were chosen for earlier trials."""
        self.intruders: set[int] = set()
        """Contexts that intrude in earlier trials."""

    def trial(self, number: int) -> dict[str, Any]:
        """A row of `schema.TRIALS`, with `shown` in addition: the windows in the order in which they are shown.

        They are indices into the windows of `own`, followed by those of `pool`.
        """
        decile = number // PER_DECILE + 1
        row = {"latent": self.latent, "trial": number, "decile": decile, "place": None, "intruder_latent": None}
        usable = self.usable[self.own.decile[self.usable] == decile].tolist()
        four = self._of_distinct_documents([i for i in usable if i not in self.taken], SHOWN, set())
        documents = {int(self.own.document[i]) for i in four}
        fifth = self._of_distinct_documents([i for i in usable if i not in four], 1, documents)
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

    def _of_distinct_documents(self, order: list[int], n: int, documents: set[int]) -> list[int]:
        """The first `n` windows of `order` from distinct documents, none of which is among `documents`."""
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
        """A window of the pool with the mark shape of `fifth`, a window of the latent that it replaces.

        `four`: the other windows of the trial, which are from `documents`. None if no window fits.
        """
        pool = self.pool
        present = np.asarray(self.present[:, four].any(axis=1))
        found = pool.like(int(self.own.shape[fifth]))
        found = found[self.silent[found] & ~present[pool.row[found]]]
        taken = (pool.document[found][:, None] == list(documents)).any(axis=1)
        found = found[~taken & ~np.isin(pool.context[found], list(self.intruders))]
        if not len(found):
            return None
        latent_hash = counter_hash(self.seed ^ _LATENT, self.latent, number, pool.latents)[pool.row[found]]
        found = found[latent_hash == latent_hash.min()]
        return int(found[counter_hash(self.seed ^ _WINDOW, self.latent, number, pool.context[found]).argmin()])


def draw(own: Marked, pool: Marked, before: Mapping[int, int], seed: int) -> Drawn:
    """All trials of some latents of `own`, including those that cannot be made.

    `before`: the latents, each with the number of latents, from the first of `pool` on, that may intrude on it.
    """
    fires, present = own.fires_in(pool.context), pool.fires_in(own.context)
    rows: list[dict[str, Any]] = []
    for row, latent in enumerate(own.latents.tolist()):
        if latent in before:
            of_latent = _Latent(own, pool, row, before[latent], seed, ~fires[row], present)
            rows += [of_latent.trial(number) for number in range(TRIALS)]
    shown = np.array([i for row in rows for i in row["shown"]], dtype=np.int64)
    table = schema.TRIALS.frame({name: row[name] for name in schema.TRIALS.schema} for row in rows)
    made = table.filter(status="ok")
    latent_of_row, trial, place = (np.repeat(made[name].to_numpy(), PASSAGES) for name in ("latent", "trial", "place"))
    at_place = np.tile(np.arange(PASSAGES, dtype=np.uint64), made.height)
    truth = at_place + 1 != place
    context, decile, document, marked = (
        np.concatenate([getattr(own, name), getattr(pool, name)])[shown]
        for name in ("context", "decile", "document", "marks")
    )
    asked = pl.DataFrame(
        {
            "latent": latent_of_row,
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
