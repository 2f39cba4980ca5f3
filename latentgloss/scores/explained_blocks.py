"""Scoring the explanations of one block of latents: the answers of every judge become judgements and scores.

    asked rows -> questions -> answers -> judgements -> scores

What belongs here: which rows each judge is asked about, and the score rows of latents that are not judged. All inputs
are arguments; blocks are written to the folder of the draft. The numbers are made in `judgements.py` and
`score_rows.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.machine.concurrency import until_abandoned
from latentgloss.scores import judgements, score_rows
from latentgloss.scores.scorers.base import Texts
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
"""The tables of a scored block."""


@dataclass(frozen=True)
class ExplainedBlock:
    """The explanations of a block of latents by one explainer, which are to be scored."""

    name: str
    """Name of the block of scores, which is that of the block of explanations."""
    recipe: dict[str, Any]
    """Everything that decides the scores."""
    nulls: list[str]
    """Names of the blocks with the scores of its null explanations."""
    judged_by_readers: np.ndarray | None
    """Latents that judges which read are asked about; None: all latents that are judged."""
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
    """Scores and writes one explainer after the other; arguments as in `score_explanations`.

    Null explanations must come before the explainer that they are nulls of, because specificity is computed from their
    scores.
    """
    written: Written = {}
    for block in explained:
        taken: Taken = {}
        found = score_explanations(
            scorer, block.explanations, asked, arms, judges, chosen, block.judged_by_readers, taken
        )
        nulls = [blocks.read(schema.SCORES, null) for null in block.nulls]
        found["scores"] = score_rows.with_specificity(found["scores"], nulls)
        written[block.name] = blocks.write(block.name, block.recipe, TABLES, found, facts_of(taken))
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
    """Judgements and scores of the explanations of one explainer in one block, as tables by name.

    `explained`: rows of `schema.EXPLANATIONS`. `chosen`: the latents that are judged (None: all eligible ones). Judges
    that decide read the explanation and may cost money, so they are asked about `judged_by_readers` alone among these
    (None: about all). Other eligible latents get rows of status `not_sampled`. The tokens and dollars that the answers
    took are added to `taken`.
    """
    judged = _not_sampled(explained, chosen)
    frames: list[dict[str, pl.DataFrame]] = []
    for judge in judges:
        for_judge = _not_sampled(judged, judged_by_readers) if judge.decides else judged
        frames.append(_scores_of_judge(scorer, for_judge, asked, arms, judge, taken))
    return {name: pl.concat([frame[name] for frame in frames]) for name in ("judgements", "scores")}


def _scores_of_judge(
    scorer: Scorer, explained: pl.DataFrame, asked: Asked, arms: Sequence[str], judge: Judge, taken: Taken | None
) -> dict[str, pl.DataFrame]:
    """Judgements and scores by one judge: a score row per latent and arm, without the arms that are unfair to it."""
    unfair = asked.unfair.get(judge.embedder, [])
    fair = [arm for arm in arms if arm not in unfair]
    key = {
        "explainer": explained["explainer"][0],
        "scorer": scorer.name,
        "judge": judge.name,
        "embedder": judge.embedder,
        "profile": asked.profile,
    }
    # The score of the population is a row of its own, made from the judgements of all arms.
    rows = fair if asked.population is None else [*fair, schema.POPULATION]
    missing = score_rows.unscored(explained.filter(pl.col("status") != "ok"), rows, scorer.metric, key)
    good = explained.filter(pl.col("status") == "ok").sort("latent")
    latents = good["latent"]
    if good.is_empty():
        return {"judgements": schema.JUDGEMENTS.empty(), "scores": missing}
    texts = dict(zip(latents, map(Texts._make, good.select(Texts._fields).iter_rows()), strict=True))
    for_judge = asked.where(pl.col("latent").is_in(latents.implode()) & ~pl.col("arm").is_in(unfair))
    if judge.decides:
        for_judge = for_judge.where(pl.col("split") == "test")
    answers = list(until_abandoned(judge.judge(for_judge.questions(scorer.name, texts))))
    if taken is not None:
        add_taken(taken, judge.name, answers)
    answered = judgements.with_answers(for_judge.rows, answers)
    if scorer.decides and not judge.decides:
        answered = judgements.decided(answered)
    found = [score_rows.scores_of_arm(answered, latents, arm, scorer.metric, key) for arm in fair]
    if asked.population is not None:
        ordered = [arm for arm in THRESHOLD_ARMS if arm in fair]
        found.append(score_rows.scores_of_population(answered, latents, ordered, asked.population, scorer.metric, key))
    return {
        "judgements": judgements.table(answered, key),
        "scores": pl.concat([*found, missing]).sort("latent", "negatives"),
    }


def _not_sampled(explained: pl.DataFrame, chosen: np.ndarray | None) -> pl.DataFrame:
    """The rows, with status `not_sampled` where a latent is eligible and not `chosen` (None: all are)."""
    if chosen is None:
        return explained
    out = ~pl.col("status").is_in(score_rows.NOT_ELIGIBLE) & ~pl.col("latent").is_in(chosen.tolist())
    why = pl.lit("not in the scorer's sample of latents")
    return explained.with_columns(
        status=pl.when(out).then(pl.lit("not_sampled")).otherwise("status"),
        reason=pl.when(out).then(why).otherwise("reason"),
    )
