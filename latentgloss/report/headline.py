"""The report's first screen: one row per SAE, and the latents that are explained best, middling and worst.

What belongs here: choosing from the tables of a workspace what people look at first. Pure functions over rows of
`schema.REPORT` and `schema.SCORES`; printing is the command line's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.explanations.explainers import BASELINE, NULL
from latentgloss.schema import POPULATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ARMS = (("detection", ("random", "same_document", "neighbour", "similar")), ("fuzzing", ("donor", "random")))
"""The scorers of the first screen, each with its kinds of negatives; the first kind that was scored is shown."""
METRIC = "balanced_accuracy"
USUAL = "executed"
"""The judge of the first screen, if it has judged; else the first by name."""


@dataclass(frozen=True)
class Summary:
    """A scorer's median over the latents of one SAE; None where there is no such score."""

    negatives: str
    judge: str
    profile: str
    n_scored: int
    median: float | None
    low: float | None
    """Ends of the median's 95 % bootstrap interval over latents."""
    high: float | None
    null: float | None
    """The median with other latents' explanations."""
    baseline: float | None
    """The median of the explainer `token_table`."""


@dataclass(frozen=True)
class Headline:
    """One SAE on the first screen."""

    partition: str
    control: bool
    n_latents: int
    """Latents that the registry entry selects."""
    n_eligible: int
    n_explained: int
    scores: Mapping[str, Summary]
    """By scorer, those of `ARMS` that were scored."""


def shown_explainer(report: pl.DataFrame, explainers: Iterable[str]) -> str | None:
    """The explainer of the first screen: of those in the settings the first with scores that is no baseline."""
    scored = set(report.filter(pl.col("n_scored") > 0)["explainer"])
    shown = [name for name in explainers if name in scored and not name.startswith(NULL) and name != BASELINE]
    return shown[0] if shown else None


def headlines(report: pl.DataFrame, explainer: str) -> list[Headline]:
    """One row per SAE of a report (`schema.REPORT`), trained SAEs before controls, else by name."""
    found: list[Headline] = []
    for (partition,), rows in report.group_by("partition", maintain_order=True):
        own = rows.filter(explainer=explainer)
        first = rows.row(0, named=True)
        scores = {scorer: summary for scorer, kinds in ARMS if (summary := _summary(rows, scorer, kinds, explainer))}
        found.append(
            Headline(
                str(partition),
                first["control"],
                first["n_latents"],
                first["n_eligible"],
                own["n_explained"][0] if own.height else 0,
                scores,
            )
        )
    return sorted(found, key=lambda row: (row.control, row.partition))


def _summary(rows: pl.DataFrame, scorer: str, kinds: Sequence[str], explainer: str) -> Summary | None:
    """The median of an explainer by the first kind of negatives that has scores, and by `USUAL` or the first judge."""
    scored = rows.filter(scorer=scorer, metric=METRIC, explainer=explainer).filter(pl.col("n_scored") > 0)
    scored = scored.sort(pl.col("judge") != USUAL, maintain_order=True)
    for kind in kinds:
        for row in scored.filter(negatives=kind).head(1).iter_rows(named=True):
            alike = rows.filter(
                scorer=scorer, metric=METRIC, negatives=kind, judge=row["judge"], profile=row["profile"]
            )
            medians = dict(alike.select("explainer", "median").iter_rows())
            return Summary(
                kind,
                row["judge"],
                row["profile"],
                row["n_scored"],
                row["median"],
                row["median_low"],
                row["median_high"],
                medians.get(f"{NULL}{explainer}"),
                medians.get(BASELINE),
            )
    return None


def of_first_arm(scores: pl.DataFrame) -> pl.DataFrame:
    """Of rows of `schema.SCORES`, those for the first kind of negatives of `ARMS`; never those of the population."""
    order = list(dict.fromkeys(kind for _, kinds in ARMS for kind in kinds))
    rank = pl.col("negatives").replace_strict(order, range(len(order)), default=len(order), return_dtype=pl.Int64)
    first = rank == rank.min().over("latent", "explainer", "scorer", "judge", "embedder")
    return scores.filter(pl.col("negatives") != POPULATION).filter(first)


def best_median_worst(scores: pl.DataFrame, explainer: str, summary: Summary) -> list[tuple[str, dict[str, Any]]]:
    """The best, the median and the worst latent of one SAE by one scorer, as far as there are so many.

    `scores`: rows of `schema.SCORES`. Each row has latent, score, and null: the mean of the scores with other latents'
    explanations, None if there are none. Ties go to the lower latent id.
    """
    alike = scores.filter(judge=summary.judge, negatives=summary.negatives, status="ok")
    null = (
        alike.filter(pl.col("explainer").str.starts_with(f"{NULL}{explainer}"))
        .group_by("latent")
        .agg(null=pl.col("score").mean())
    )
    ranked = (
        alike.filter(explainer=explainer)
        .select("latent", "score")
        .join(null, on="latent", how="left")
        .sort("score", "latent", descending=[True, False])
    )
    rows = ranked.to_dicts()
    last = len(rows) - 1
    places: dict[int, str] = {}
    for place, index in (("Best", 0), ("Worst", last), ("Median", last // 2)):
        if rows:
            places.setdefault(index, place)
    return [(places[index], rows[index]) for index in sorted(places)]
