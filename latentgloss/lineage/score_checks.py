"""What `lineage --verify` recomputes of scores: values, intervals and specificity.

What belongs here: pure comparisons of stored scores with values computed from their judgements, trials and null scores,
and the texts that show a score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.lineage.checks import Check, shown
from latentgloss.statistics import areas, intervals, metrics
from latentgloss.statistics.rates import Rates, overlapping_share, rate_intervals

TOLERANCE = 1e-9
"""Largest accepted difference between a stored and a recomputed value; only the order of a sum may differ."""


def score_checks(
    scores: pl.DataFrame, judgements: pl.DataFrame, nulls: pl.DataFrame | None, strata: pl.DataFrame | None
) -> list[Check]:
    """Recomputes each score of a latent with its interval from its judgements, and specificity from null scores.

    `nulls`: the latent's scores with null explanations; None: specificity is not checked. `strata`: shares of the
    strata (`schema.STRATA_SHARES`); None: scores on the population are not checked.
    """
    from latentgloss.scores.scorers.detection import THRESHOLD_ARMS

    checks = []
    for row in scores.filter(pl.col("status") == "ok").iter_rows(named=True):
        by_rank = row["metric"] == "auroc"
        shares = {row["negatives"]: 1.0}
        if row["negatives"] == schema.POPULATION:
            if strata is None:
                continue
            shares = dict(strata.filter(split=row["split"]).select("stratum", "share").iter_rows())
        judged = judgements.filter(
            pl.col("split") == row["split"],
            pl.col("negatives").is_in(list(shares)),
            pl.col("judge") == row["judge"],
            pl.col("embedder") == row["embedder"],
            pl.col("evidence" if by_rank else "prediction").is_not_null(),
        )
        # Activating contexts are judged in every arm but count only once.
        first = min(judged["negatives"].unique(), key=lambda arm: (*THRESHOLD_ARMS, arm).index(arm), default="")
        judged = judged.filter(~pl.col("truth") | (pl.col("negatives") == first))
        found = _recomputed(judged, {arm: share for arm, share in shares.items() if share}, by_rank)
        if not by_rank:
            found[row["metric"]] = found["balanced_accuracy"]
        found |= _ends(judged, shares, by_rank, whole=row["negatives"] == schema.POPULATION)
        stored = {name: row[name] for name in found if name in row}
        stored[row["metric"]] = row["score"]
        same = judged.height == row["n"] and all(_close(found[name], stored[name]) for name in stored)
        what = f"score of {row['judge']} on {row['negatives']} from its judgements"
        checks.append(Check(what, same, shown({**found, "n": judged.height}), shown({**stored, "n": row["n"]})))
        if nulls is not None and row["specificity"] is not None:
            same_key = [pl.col(name) == row[name] for name in ("negatives", "judge", "embedder")]
            null_scores = nulls.filter(same_key)["score"]
            mean = float(np.mean(null_scores.drop_nulls().to_numpy())) if null_scores.count() else float("nan")
            same = abs(row["score"] - mean - row["specificity"]) <= TOLERANCE
            what = f"specificity of {row['judge']} on {row['negatives']}"
            checks.append(Check(what, same, shown(row["score"] - mean), shown(row["specificity"])))
    return checks


def accuracy_checks(scores: pl.DataFrame, judgements: pl.DataFrame, trials: pl.DataFrame) -> list[Check]:
    """Recomputes each intruder-detection score of a latent with its interval and coverage from its judged trials."""
    windows = trials.filter(status="ok").select("trial", context="contexts").explode("context")
    checks = []
    for row in scores.filter(pl.col("status") == "ok").iter_rows(named=True):
        judged = (
            judgements.filter(judge=row["judge"])
            .join(windows, on="context")
            .group_by("trial")
            .agg(pl.col("prediction", "truth", "document"))
        ).filter(pl.col("prediction").list.drop_nulls().list.len() > 0)
        found = np.array([p == t for p, t in judged.select("prediction", "truth").iter_rows()])[None]
        members = np.array(judged["document"].to_list())[None]
        share = overlapping_share(found, np.ones_like(found), members)
        again = dict(zip(("score", "ci_low", "ci_high"), (float(value[0]) for value in share), strict=True))
        again["coverage"] = judged.height / trials.height
        stored = {name: row[name] for name in again}
        same = judged.height == row["n"] and all(_close(again[name], stored[name]) for name in again)
        what = f"score of {row['judge']} from its trials"
        checks.append(Check(what, same, shown(again | {"n": judged.height}), shown(stored | {"n": row["n"]})))
    return checks


def _recomputed(judged: pl.DataFrame, shares: dict[str, float], by_rank: bool) -> dict[str, float]:
    """AUROC, or rates and balanced accuracy; each stratum of negatives is weighted by its share."""
    positive = judged.filter("truth")
    each = {arm: judged.filter(~pl.col("truth"), pl.col("negatives") == arm) for arm in shares}
    if by_rank:
        total = 0.0
        for arm, negative in each.items():
            both = pl.concat([positive, negative])
            truth, evidence, cluster = (both[name].to_numpy()[None] for name in ("truth", "evidence", "document"))
            area = areas.auroc(truth, evidence, np.ones_like(truth), cluster)
            total += shares[arm] * float(area.value[0])
        return {"auroc": total}
    tpr = _share(positive["prediction"])
    tnr = sum(share * _share(~each[arm]["prediction"]) for arm, share in shares.items())
    return {"balanced_accuracy": (tpr + tnr) / 2, "tpr": tpr, "tnr": tnr}


def _close(found: float, stored: float | None) -> bool:
    """Whether two values agree within `TOLERANCE`; a value that cannot be computed is NaN and stored as None."""
    return bool(np.isnan(found)) if stored is None else abs(found - stored) <= TOLERANCE


def _ends(judged: pl.DataFrame, shares: dict[str, float], by_rank: bool, whole: bool) -> dict[str, float]:
    """Ends of the intervals of the values that `_recomputed` returns; documents and prompts are clusters.

    `whole`: whether the score is on the population.
    """
    truth, document, prompt, stratum = (
        series.to_numpy()[None]
        for series in (
            judged["truth"],
            judged["document"],
            judged["prompt"].fill_null(-1),
            judged["negatives"].replace_strict(list(shares), range(len(shares)), return_dtype=pl.Int8),
        )
    )
    valid, share = np.ones_like(truth), np.array([list(shares.values())])
    if by_rank:
        evidence = judged["evidence"].to_numpy()[None]
        area = areas.auroc(truth, evidence, valid, document, stratum=stratum, share=share, prompt=prompt)
        found_ends = {"ci": area, "auroc": area}
    else:
        predicted = judged["prediction"].to_numpy()[None]
        if whole:
            found = metrics.prevalence_weighted(
                truth, predicted, valid, document, stratum, share, np.array([0.5]), prompt=prompt
            )
            tnr = intervals.Interval(1 - found.fpr.value, 1 - found.fpr.high, 1 - found.fpr.low)
            rates = Rates(found.tpr, tnr, found.balanced_accuracy)
        else:
            rates = rate_intervals(truth, predicted, valid, document, prompt=prompt)
        found_ends = {"ci": rates.balanced_accuracy, "tpr": rates.tpr, "tnr": rates.tnr}
    ends = {}
    for name, interval in found_ends.items():
        ends[f"{name}_low"], ends[f"{name}_high"] = float(interval.low[0]), float(interval.high[0])
    return ends


def _share(true: pl.Series) -> float:
    return float(true.to_numpy().mean()) if len(true) else float("nan")


def filled(row: dict[str, Any]) -> dict[str, Any]:
    """The values of a row that are not None."""
    return {key: value for key, value in row.items() if value is not None}


def in_words(row: dict[str, Any]) -> str:
    """A row of `schema.SCORES` as one line: metric, score, interval and n, or the status and its reason."""
    if row["score"] is None:
        return f"{row['status']}: {row['reason']}"
    interval = "" if row["ci_low"] is None else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"{row['metric']} {row['score']:.3f}{interval}, n {row['n']}"
