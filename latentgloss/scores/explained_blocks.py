"""Scoring the explanations of one block of latents: every judge's answers become judgements and scores.

    asked rows -> questions -> answers -> judgements -> scores

What belongs here: which rows are put to which judge, and the rows of latents that are not judged. Everything is handed
in; blocks are written to the draft's folder. From answers to numbers is in `judgements.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.machine.concurrency import until_abandoned
from latentgloss.scores import judgements
from latentgloss.scores.scorers.detection import THRESHOLD_ARMS
from latentgloss.scores.side_by_side import add_taken, facts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from latentgloss.protocols import Judge
    from latentgloss.scores.scorers.base import Asked, Scorer
    from latentgloss.scores.side_by_side import Taken, Written
    from latentgloss.store import Blocks

TABLES = (schema.JUDGEMENTS, schema.SCORES)


@dataclass(frozen=True)
class ExplainedBlock:
    """The explanations of a block of latents by one explainer, to be scored."""

    name: str
    recipe: dict[str, Any]
    nulls: list[str]
    """Names of the blocks that hold its nulls' scores."""
    judged_by_readers: np.ndarray | None
    """Latents that judges which read are asked about; None: all that are judged."""
    explanations: pl.DataFrame
    """Rows of `schema.EXPLANATIONS`."""


def write_scores(
    blocks: Blocks,
    scorer: Scorer,
    explained: Sequence[ExplainedBlock],
    asked: Asked,
    arms: Sequence[str],
    chosen: np.ndarray | None,
    judges: Sequence[Judge],
) -> Written:
    """Scores and writes one explainer after the other. Nulls must come first: specificity is computed from them."""
    written: Written = {}
    for one in explained:
        taken: Taken = {}
        found = score_explanations(scorer, one.explanations, asked, arms, judges, chosen, one.judged_by_readers, taken)
        nulls = [blocks.read(schema.SCORES, null) for null in one.nulls]
        found["scores"] = judgements.with_specificity(found["scores"], nulls)
        written[one.name] = blocks.write(one.name, one.recipe, TABLES, found, facts_of(taken))
    return written


def score_explanations(
    scorer: Scorer,
    explained: pl.DataFrame,
    asked: Asked,
    arms: Sequence[str],
    judges: Sequence[Judge],
    chosen: np.ndarray | None = None,
    judged_by_readers: np.ndarray | None = None,
    taken: Taken | None = None,
) -> dict[str, pl.DataFrame]:
    """Judgements and scores of one explainer's explanations (rows of `schema.EXPLANATIONS`) of one block.

    `chosen`: the latents that are judged (None: all eligible ones); of these, `judged_by_readers` are put to judges that
    decide, which read and may be paid. Other eligible latents get rows of status `not_sampled`. What the answers took is
    added to `taken`.
    """
    judged = _left_out(explained, chosen)
    frames: list[dict[str, pl.DataFrame]] = []
    for judge in judges:
        mine = _left_out(judged, judged_by_readers) if judge.decides else judged
        frames.append(_scores_of_judge(scorer, mine, asked, arms, judge, taken))
    return {name: pl.concat([frame[name] for frame in frames]) for name in ("judgements", "scores")}


def _scores_of_judge(
    scorer: Scorer, explained: pl.DataFrame, asked: Asked, arms: Sequence[str], judge: Judge, taken: Taken | None
) -> dict[str, pl.DataFrame]:
    """Judgements and scores by one judge: a score row per latent and arm that is a fair question to it."""
    unfair = asked.unfair.get(judge.embedder, [])
    fair = [arm for arm in arms if arm not in unfair]
    key = {
        "explainer": explained["explainer"][0],
        "scorer": scorer.name,
        "judge": judge.name,
        "embedder": judge.embedder,
        "profile": asked.profile,
    }
    # Scores of the population are a row of their own, made of judgements in all arms.
    rows = fair if asked.population is None else [*fair, schema.POPULATION]
    missing = judgements.unscored(explained.filter(pl.col("status") != "ok"), rows, scorer.metric, key)
    good = explained.filter(pl.col("status") == "ok").sort("latent")
    latents = good["latent"]
    if good.is_empty():
        return {"judgements": schema.JUDGEMENTS.empty(), "scores": missing}
    texts = dict(zip(latents, good.select("explanation", "program").iter_rows(), strict=True))
    put = asked.where(pl.col("latent").is_in(latents.implode()) & ~pl.col("arm").is_in(unfair))
    if judge.decides:
        put = put.where(pl.col("split") == "test")
    answers = list(until_abandoned(judge.judge(put.questions(scorer.name, texts))))
    if taken is not None:
        add_taken(taken, judge.name, answers)
    answered = judgements.with_answers(put.rows, answers)
    if scorer.decides and not judge.decides:
        answered = judgements.decided(answered)
    found = [judgements.scores(answered, latents, arm, scorer.metric, key) for arm in fair]
    if asked.population is not None:
        ordered = [arm for arm in THRESHOLD_ARMS if arm in fair]
        found.append(judgements.scores_of_population(answered, latents, ordered, asked.population, scorer.metric, key))
    return {
        "judgements": judgements.table(answered, key),
        "scores": pl.concat([*found, missing]).sort("latent", "negatives"),
    }


def _left_out(explained: pl.DataFrame, chosen: np.ndarray | None) -> pl.DataFrame:
    """The rows with status `not_sampled` where a latent is eligible and not chosen."""
    if chosen is None:
        return explained
    out = ~pl.col("status").is_in(judgements.NOT_ELIGIBLE) & ~pl.col("latent").is_in(chosen.tolist())
    why = pl.lit("not in the scorer's sample of latents")
    return explained.with_columns(
        status=pl.when(out).then(pl.lit("not_sampled")).otherwise("status"),
        reason=pl.when(out).then(why).otherwise("reason"),
    )
