"""Scores: how far an explanation can be trusted, judged on contexts nobody was shown.

    asked rows -> questions -> answers -> judgements -> scores

What belongs here: the runner every scorer shares. What differs between scorers is a row of `scorers.SCORERS`; from
answers to numbers is in `judgements.py`. Reads `explanations`, `contexts` and whatever a scorer asks about; writes
`judgements` and `scores`. What answers is a `protocols.Judge`. Definitions: docs/methods.md.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from latentgloss import judgements, schema
from latentgloss.sampling import of_block, sampled
from latentgloss.scorers import SCORERS
from latentgloss.scorers.detection import THRESHOLD_ARMS
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from latentgloss.protocols import Answer, Judge
    from latentgloss.scorers.base import Asked, Scorer
    from latentgloss.settings import ScorerSettings
    from latentgloss.work import Work

NULL = "null:"
TAKEN = ("prompt_tokens", "completion_tokens", "cost_usd")
Spent = dict[str, dict[str, float]]
"""Per judge, what its answers took."""
BY_BLOCK = ("sampled_contexts", "sampled_negatives")
"""Inputs that are cut into blocks of latents: a block of scores depends on the same block of these alone."""


def runner(scorer: Scorer) -> Callable[[Sequence[Work]], Iterator[Work]]:
    """Runner of the stage `<name>_scores`."""
    return one_by_one(partial(_score, scorer))


def _score(scorer: Scorer, work: Work) -> None:
    work.check_windows()
    explanations = work.input("explanations")
    settings: ScorerSettings = getattr(work.settings, scorer.name)
    plan = scorer.plan(work, work.workspace.corpus(work.input("resolved_saes")), scorer.splits)
    judges = scorer.judges(work, settings)
    eligibility = work.input("sampled_contexts").read(schema.ELIGIBILITY)
    chosen = sampled(eligibility, settings.sample, settings.seed)
    asks = any(judge.decides for judge in judges)
    of_deciders = sampled(eligibility, settings.llm.sample, settings.seed) if asks else None  # type: ignore[attr-defined]
    names = sorted(explanations.manifest.blocks)
    blocks = sorted({name.split("-")[0] for name in names})
    spent: Spent = {}
    tables = (schema.JUDGEMENTS, schema.SCORES)
    for done, block in enumerate(blocks):
        asked: Asked | None = None
        nulls: dict[str, pl.DataFrame] = {}
        rows = [(name, explanations.read(schema.EXPLANATIONS, name)) for name in names if name.startswith(f"{block}-")]
        for name, explained in sorted(rows, key=lambda row: "null." not in row[0]):
            explainer = explained["explainer"][0]
            null_name = f"{block}-null.{explainer}"
            recipe = work.block_recipe(
                settings={
                    "judges": [judge.identity() for judge in judges],
                    "length": work.settings.contexts.length,
                    "profile": work.settings.profile,
                    "sample": None if chosen is None else of_block(chosen, block),
                    **({} if of_deciders is None else {"of_deciders": of_block(of_deciders, block)}),
                    **plan.identity,
                },
                explanations=explanations.content((), name),
                nulls=explanations.content((), null_name),
                **{
                    i.stage: work.input(i.stage).content(i.parts, block if i.stage in BY_BLOCK else None)
                    for i in work.stage.inputs
                    if i.stage in work.recipe.inputs and i.stage != "explanations"
                },
            )
            if not work.draft.reuse(name, recipe, tables):
                asked = plan.ask(block) if asked is None else asked
                found = score_block(scorer, explained, asked, plan.arms, judges, chosen, of_deciders, spent)
                found["scores"] = judgements.with_specificity(found["scores"], nulls.get(f"{NULL}{explainer}"))
                work.draft.put(name, recipe, tables, found)
            if explainer.startswith(NULL):
                nulls[explainer] = work.draft.read(schema.SCORES, name)
        work.progress(done + 1, len(blocks), "blocks of latents")
    scored = work.draft.scan(schema.SCORES).group_by("explainer", "negatives", "status").len().collect()
    work.facts = {"scores": {f"{e} on {n}: {s}": count for e, n, s, count in scored.sort(pl.all()).iter_rows()}}
    if any(any(taken.values()) for taken in spent.values()):
        work.facts["spent"] = spent


def score_block(
    scorer: Scorer,
    explained: pl.DataFrame,
    asked: Asked,
    arms: list[str],
    judges: Sequence[Judge],
    chosen: np.ndarray | None = None,
    of_deciders: np.ndarray | None = None,
    spent: Spent | None = None,
) -> dict[str, pl.DataFrame]:
    """Judgements and scores of one explainer's explanations (rows of `schema.EXPLANATIONS`) of one block.

    `chosen`: the latents that are judged, and of them `of_deciders` by judges that decide, which read and are paid;
    the other eligible ones get rows of status `not_sampled`. What the answers took is added to `spent`.
    """
    everything = _left_out(explained, chosen)
    frames: list[dict[str, pl.DataFrame]] = []
    for judge in judges:
        explained = _left_out(everything, of_deciders) if judge.decides else everything
        good = explained.filter(pl.col("status") == "ok").sort("latent")
        texts = dict(zip(good["latent"], good.select("explanation", "program").iter_rows(), strict=True))
        mine = asked.of(good["latent"])
        key = {
            "explainer": explained["explainer"][0],
            "scorer": scorer.name,
            "judge": judge.name,
            "embedder": judge.embedder,
            "profile": asked.profile,
        }
        # Scores of the population are a row of their own, made of judgements in all arms.
        rows = arms if asked.population is None else [*arms, schema.POPULATION]
        missing = judgements.unscored(explained.filter(pl.col("status") != "ok"), rows, scorer.metric, key)
        if good.is_empty():
            frames.append({"judgements": schema.JUDGEMENTS.empty(), "scores": missing})
            continue
        put = mine.where(pl.col("split") == "test") if judge.decides else mine
        answers = list(judge.judge(put.questions(scorer.name, texts)))
        if spent is not None:
            _spend(spent.setdefault(judge.name, dict.fromkeys(TAKEN, 0)), answers)
        answered = judgements.with_answers(put.rows, answers)
        if scorer.decides and not judge.decides:
            answered = judgements.decided(answered)
        found = [judgements.scores(answered, good["latent"], arm, scorer.metric, key) for arm in arms]
        if asked.population is not None:
            ordered = [arm for arm in THRESHOLD_ARMS if arm in arms]
            found.append(
                judgements.scores_of_population(answered, good["latent"], ordered, asked.population, scorer.metric, key)
            )
        frames.append(
            {
                "judgements": judgements.table(answered, key),
                "scores": pl.concat([*found, missing]).sort("latent", "negatives"),
            }
        )
    return {name: pl.concat([frame[name] for frame in frames]) for name in ("judgements", "scores")}


def _left_out(explained: pl.DataFrame, chosen: np.ndarray | None) -> pl.DataFrame:
    """With status `not_sampled` where a latent is eligible and not chosen."""
    if chosen is None:
        return explained
    out = ~pl.col("status").is_in(judgements.NOT_ELIGIBLE) & ~pl.col("latent").is_in(chosen.tolist())
    why = pl.lit("not in the scorer's sample of latents")
    return explained.with_columns(
        status=pl.when(out).then(pl.lit("not_sampled")).otherwise("status"),
        reason=pl.when(out).then(why).otherwise("reason"),
    )


def _spend(taken: dict[str, float], answers: list[Answer]) -> None:
    for name in TAKEN:
        taken[name] += sum(getattr(answer, name) for answer in answers)


score_detection = runner(SCORERS["detection"])
score_fuzzing = runner(SCORERS["fuzzing"])
score_embedding = runner(SCORERS["embedding"])
