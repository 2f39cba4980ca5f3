"""Null explanations: whose text a latent gets in place of its own, as a yardstick.

What belongs here: choosing partners, and the rows made of them. What their scores are held against is in `nulls.py`.

Partners of a latent are latents of the same SAE that come *before it* in the order in which latents were asked for, so
that a latent that is added later, in whichever block, is partner of none that was there: existing nulls, and what is
worked out from them, stay (docs/decisions/0013-null-partners.md). Those of the first `POOL` that were explained will
do for all: they are held in memory, whatever the width of the SAE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.explanations.explainers.base import Explained
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from jaxtyping import Int, UInt32


POOL = 1024
"""Explained latents, from the first on, that partners are taken from."""

COSINE = 0.5
"""A partner's decoder cosine is below this: a twin would be no baseline."""

NO_PARTNER = "fewer explained latents than that come before it with another text and another direction"


@dataclass(frozen=True)
class Pool:
    """The explanations that nulls of one explainer are made of."""

    rows: list[Explained]
    """In the order in which their latents were asked for."""
    before: Mapping[int, int]
    """Per explained latent of the SAE, how many others were asked for before it."""

    @classmethod
    def of(cls, explained: pl.LazyFrame, in_turn: UInt32[np.ndarray, " latents"]) -> Pool:
        """From rows of `schema.EXPLANATIONS` of one explainer; `in_turn`: latents as they were asked for."""
        good = explained.filter(status="ok")
        latents = in_turn[np.isin(in_turn, good.select("latent").collect()["latent"].to_numpy())].tolist()
        first = good.filter(pl.col("latent").is_in(latents[:POOL])).collect()
        by_latent = {row.latent: row for row in as_explained(first)}
        return cls([by_latent[latent] for latent in latents[:POOL]], {latent: i for i, latent in enumerate(latents)})

    def partners(self, row: Explained, twins: Set[int], n: int, seed: int) -> list[Explained]:
        """At most `n`, of another text and no twin: those of the lowest hashes of (seed, latent, partner)."""
        seniors = self.rows[: self.before[row.latent]]
        ids: Int[np.ndarray, " seniors"] = np.array([senior.latent for senior in seniors], dtype=np.int64)
        found: list[Explained] = []
        for i in np.argsort(counter_hash(seed, row.latent, ids), kind="stable"):
            if len(found) == n:
                break
            if seniors[i].text != row.text and seniors[i].latent not in twins:
                found.append(seniors[i])
        return found


def null_explanations(
    rows: pl.DataFrame, neighbours: pl.DataFrame, pool: Pool, names: Sequence[str], seed: int
) -> dict[str, pl.DataFrame]:
    """Tables `explanations` of some latents' nulls, one per name: the first has each latent's first partner.

    `rows` are what the explainer made of the latents; `neighbours` has latent, neighbours, neighbour_cosines. A latent
    that has no explanation has no null, and one with too few partners says so (`no_partner`).
    """
    twins = {
        latent: {n for n, c in zip(ids, cosines, strict=True) if c >= COSINE}
        for latent, ids, cosines in neighbours.select("latent", "neighbours", "neighbour_cosines").iter_rows()
    }
    made: dict[str, list[Explained]] = {name: [] for name in names}
    sources: dict[str, list[int | None]] = {name: [] for name in names}
    for row in as_explained(rows):
        good = row.status == "ok"
        partners = pool.partners(row, twins.get(row.latent, set()), len(names), seed) if good else []
        for number, name in enumerate(names):
            partner = partners[number] if number < len(partners) else None
            sources[name].append(None if partner is None else partner.latent)
            if not good:
                made[name].append(replace(row, text="", program=None, context_ids=()))
            elif partner is None:
                made[name].append(Explained(row.latent, "no_partner", NO_PARTNER))
            else:
                made[name].append(replace(partner, latent=row.latent))
    return {name: table(name, made[name], sources[name]) for name in names}


def as_explained(rows: pl.DataFrame) -> list[Explained]:
    """What is said of latents, without how it was asked and what that took: a null asks nobody."""
    return [
        Explained(r["latent"], r["status"], r["reason"], r["explanation"], r["program"], tuple(r["context_ids"]))
        for r in rows.iter_rows(named=True)
    ]


def table(name: str, rows: list[Explained], source: list[int | None] | None = None) -> pl.DataFrame:
    """Table `explanations` of one explainer. `source`: of nulls, whose text each row has."""
    return schema.EXPLANATIONS.frame(
        {
            "latent": row.latent,
            "explainer": name,
            "status": row.status,
            "reason": row.reason,
            "explanation": row.text,
            "program": row.program,
            "source_latent": source[i] if source else None,
            "context_ids": list(row.context_ids),
            "model": row.model,
            "prompt_sha256": row.prompt_sha256,
            "reply": row.reply,
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "cost_usd": row.cost_usd,
        }
        for i, row in enumerate(rows)
    )
