"""Null explanations: each latent is given another latent's explanation, as a baseline.

What belongs here: choosing the *partners*, whose explanations are taken, and building the rows. How scores are
compared with those of the nulls is in `statistics/specificity.py`.

The partners of a latent belong to the same SAE and come *before it* in the order in which the registry selects them.
A latent that is added later, in whichever block, is therefore no partner of an earlier one, and existing nulls and
everything computed from them stay the same (docs/decisions/0013-null-partners.md). Partners are taken from the first
`POOL` explained latents only; these are held in memory, whatever the width of the SAE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.explanations.explainers.base import Explained
from latentgloss.explanations.labels import shortened
from latentgloss.statistics.counter_rng import counter_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from jaxtyping import Int, UInt32


POOL = 1024
"""Number of explained latents, from the first on, that serve as partners."""

COSINE = 0.5
"""A partner's decoder cosine is below this, because a latent of nearly the same direction would be no baseline."""

NO_PARTNER = "fewer explained latents than that come before it with another text and another direction"
"""Reason in rows of status `no_partner`. It is stored, so new wording is new content."""


@dataclass(frozen=True)
class Pool:
    """The explanations that serve as null explanations of one explainer."""

    rows: list[Explained]
    """In the order in which the registry selects their latents."""
    before: Mapping[int, int]
    """Per explained latent of the SAE, how many explained latents come before it in that order."""

    @classmethod
    def of(cls, explained: pl.LazyFrame, in_turn: UInt32[np.ndarray, " latents"]) -> Pool:
        """The pool of one explainer from its rows of `schema.EXPLANATIONS`.

        `in_turn`: the SAE's latents in the order in which partners come before one another.
        """
        good = explained.filter(status="ok")
        latents = in_turn[np.isin(in_turn, good.select("latent").collect()["latent"].to_numpy())].tolist()
        first = good.filter(pl.col("latent").is_in(latents[:POOL])).collect()
        by_latent = {row.latent: row for row in as_explained(first)}
        return cls([by_latent[latent] for latent in latents[:POOL]], {latent: i for i, latent in enumerate(latents)})

    def partners(self, row: Explained, twins: Set[int], n: int, seed: int) -> list[Explained]:
        """At most `n` partners of the latent of `row`: those with the lowest hashes of (seed, latent, partner).

        Latents in `twins` and latents with the same text as `row` are left out.
        """
        earlier = self.rows[: self.before[row.latent]]
        ids: Int[np.ndarray, " earlier"] = np.array([other.latent for other in earlier], dtype=np.int64)
        found: list[Explained] = []
        for i in np.argsort(counter_hash(seed, row.latent, ids), kind="stable"):
            if len(found) == n:
                break
            if earlier[i].text != row.text and earlier[i].latent not in twins:
                found.append(earlier[i])
        return found


def null_explanations(
    rows: pl.DataFrame, neighbours: pl.DataFrame, pool: Pool, names: Sequence[str], seed: int
) -> dict[str, pl.DataFrame]:
    """The null explanations of some latents as one table `explanations` per name.

    `rows`: the explainer's own rows of the latents. `neighbours`: columns latent, neighbours and neighbour_cosines.
    The first name gets each latent's first partner, the second its second, and so on. A latent without an explanation
    keeps its status and has no null; a latent with too few partners gets a row of status `no_partner`.
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
    """Rows of `schema.EXPLANATIONS` without model, prompt, reply, tokens and cost: a null needs no request.

    Coverage and kind are left out, too: they are of the latent for which a text was made, and not of its new one.
    """
    return [
        Explained(
            r["latent"],
            r["status"],
            r["reason"],
            r["explanation"],
            r["label"],
            program=r["program"],
            context_ids=tuple(r["context_ids"]),
        )
        for r in rows.iter_rows(named=True)
    ]


def table(name: str, rows: list[Explained], source: list[int | None] | None = None) -> pl.DataFrame:
    """Table `explanations` of one explainer. `source`: for nulls, the latent whose explanation each row has."""
    return schema.EXPLANATIONS.frame(
        {
            "latent": row.latent,
            "explainer": name,
            "status": row.status,
            "reason": row.reason,
            "explanation": row.text,
            "label": row.label or shortened(row.text),
            "coverage": row.coverage,
            "kind": row.kind,
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
