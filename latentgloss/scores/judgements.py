"""From the answers of judges to judgements.

    asked rows + answers -> judgements -> (with a threshold) predictions

What belongs here: the table `judgements` of one explainer, judge and block. Which rows are asked is decided by the
scorer (`scorers/`); scores are made in `score_rows.py`. Nothing is read or written. Definitions: docs/methods.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.scores.padded import Padded
from latentgloss.statistics import metrics

if TYPE_CHECKING:
    from latentgloss.protocols import Answer


def with_answers(asked: pl.DataFrame, answers: list[Answer]) -> pl.DataFrame:
    """Adds the answers of a judge to the rows that were asked (`Asked.rows`).

    The answers are for the rows of status `ok`, in order; other rows keep their status and reason. Evidence that is NaN
    becomes null. A row whose status is not `ok` afterwards has neither evidence nor prediction nor probability.
    """
    sizes = [len(answer.evidence) for answer in answers]
    answered_rows = asked.with_row_index("row").filter(pl.col("status") == "ok").select("row")
    optional: dict[str, pl.Series] = {}
    for name, dtype in (("prediction", pl.Boolean), ("probability", pl.Float32)):
        values: list[Any] = []
        for answer, size in zip(answers, sizes, strict=True):
            given = getattr(answer, name)
            values += [None] * size if given is None else given.tolist()
        optional[name] = pl.Series(values, dtype=dtype)
    status = [s for a, size in zip(answers, sizes, strict=True) for s in (a.status or ["ok"] * size)]
    reason = [s for a, size in zip(answers, sizes, strict=True) for s in (a.reason or [""] * size)]
    prompts = [[None] * size if a.prompt is None else a.prompt.tolist() for a, size in zip(answers, sizes, strict=True)]
    evidence = np.concatenate([np.empty(0, np.float32), *(a.evidence for a in answers)])
    columns = answered_rows.with_columns(
        evidence=pl.Series(evidence, dtype=pl.Float32).fill_nan(None),
        **optional,
        prompt=pl.Series([p for several in prompts for p in several], dtype=pl.Int64),
        answer=pl.Series(status, dtype=pl.String),
        why=pl.Series(reason, dtype=pl.String),
    )
    frame = (
        asked.with_row_index("row")
        .join(columns, on="row", how="left", maintain_order="left")
        .with_columns(status=pl.coalesce("answer", "status"), reason=pl.coalesce("why", "reason"))
        .drop("row", "answer", "why")
    )
    # A failed answer says nothing, whatever numbers came with it.
    numbers = pl.col("evidence", "prediction", "probability")
    return frame.with_columns(pl.when(pl.col("status") == "ok").then(numbers))


def decided(answered: pl.DataFrame) -> pl.DataFrame:
    """Adds `threshold`, and a prediction wherever the judge gave evidence without deciding itself."""
    # Without a threshold, evidence decides nothing: the judgement stays open and the latent is unscored.
    taus = thresholds(answered).with_columns(pl.col("threshold").fill_nan(None))
    answered = answered.join(taus, on="latent", how="left", maintain_order="left")
    return answered.with_columns(prediction=pl.coalesce("prediction", pl.col("evidence") >= pl.col("threshold")))


def thresholds(answered: pl.DataFrame) -> pl.DataFrame:
    """The threshold of each latent: columns `latent` and `threshold`, in the unit of the evidence, NaN if unknown.

    It is chosen on the select split. Where that has fewer than 20 judgements of a class, the threshold is shrunk
    towards the one chosen on the explain split (`metrics.shrink`).
    """
    found: dict[str, pl.DataFrame] = {}
    for split in ("select", "explain"):
        padded = Padded(answered.filter(pl.col("split") == split))
        truth, evidence = padded("truth"), padded("evidence", np.nan)
        valid = padded.asked & ~np.isnan(evidence)
        tau = metrics.youden_threshold(evidence, truth, valid)
        fewest = np.minimum((truth & valid).sum(1), (~truth & valid).sum(1))
        found[split] = pl.DataFrame({"latent": padded.latents, "tau": tau, "n": fewest}).with_columns(
            pl.col("latent").cast(pl.UInt32)
        )
    both = found["explain"].join(found["select"], on="latent", how="full", coalesce=True, suffix="_select")
    value = metrics.shrink(
        both["tau_select"].fill_null(np.nan).to_numpy(),
        both["n_select"].fill_null(0).to_numpy(),
        both["tau"].fill_null(np.nan).to_numpy(),
    )
    return both.select("latent").with_columns(threshold=value)


def table(answered: pl.DataFrame, key: dict[str, str]) -> pl.DataFrame:
    """The table `judgements`. `key`: the values of its columns explainer, scorer, judge, embedder and profile."""
    frame = answered.rename({"arm": "negatives"}).with_columns(**{k: pl.lit(v) for k, v in key.items()})
    return schema.JUDGEMENTS.conform(frame.select(list(schema.JUDGEMENTS.schema)))
