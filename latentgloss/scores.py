"""Scores: how far an explanation can be trusted, judged on contexts nobody was shown.

    asked rows -> questions -> answers -> judgements -> scores

What belongs here: the runner every scorer shares. What differs between scorers is a row of `scorers.SCORERS`; from
answers to numbers is in `judgements.py`. Reads `explanations`, `contexts` and whatever a scorer asks about; writes
`judgements` and `scores`. What answers is a `protocols.Judge`. Definitions: docs/methods.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import judgements, schema
from latentgloss.ahead import BLOCKS, CONTEXTS, Threads, heeding
from latentgloss.explainers import NULL, base_of, explainer_of
from latentgloss.processes import with_processes
from latentgloss.sampling import of_block, sampled, smaller
from latentgloss.scorers import JUDGES, SCORERS, judge_named
from latentgloss.scorers.detection import THRESHOLD_ARMS
from latentgloss.scoring import facts_of, gather, spend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    import numpy as np

    from latentgloss.blocks import Blocks
    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.protocols import Judge
    from latentgloss.scorers.base import Asked, Scorer
    from latentgloss.scoring import Spent, Written
    from latentgloss.settings import ScorerSettings
    from latentgloss.work import Runner, Work

TABLES = (schema.JUDGEMENTS, schema.SCORES)
AHEAD = 2
"""Blocks that processes score while one is written."""
BY_BLOCK = ("sampled_contexts", "sampled_negatives")
"""Inputs that are cut into blocks of latents: a block of scores depends on the same block of these alone."""


def runner(scorer: Scorer) -> Runner:
    """Runner of the stage `<name>_scores`."""
    return with_processes(partial(_score, scorer), _prepare, lambda work: (work.workspace.vocabulary(work.model.name),))


def _score(scorer: Scorer, work: Work, pool: Executor | None) -> None:
    work.check_windows()
    explanations = work.input("explanations")
    settings: ScorerSettings = getattr(work.settings, scorer.name)
    plan = scorer.plan(work, work.workspace.corpus(work.input("resolved_saes")), scorer.splits)
    judges = scorer.judges(work, settings)
    eligibility = work.input("sampled_contexts").read(schema.ELIGIBILITY)
    chosen = sampled(eligibility, settings.sample, settings.seed)
    asking = any(judge.decides for judge in judges)
    sizes = _sizes(settings) if asking else (None, None)
    read, read_of_nulls = (sampled(eligibility, n, settings.seed) for n in sizes)
    names = sorted(explanations.manifest.blocks)
    blocks = sorted({name.split("-")[0] for name in names})
    # Judges that are made of nothing but the vocabulary judge anywhere; whoever asks a model asks it from here.
    names_of_judges = getattr(settings, "judges", ())
    computing = pool if names_of_judges and set(names_of_judges) <= set(JUDGES) else None

    def of_deciders(name: str) -> np.ndarray | None:
        return read_of_nulls if explainer_of(name).startswith(NULL) else read

    def recipe_of(block: str, name: str, nulls: list[str]) -> dict[str, Any]:
        few = of_deciders(name)
        return work.block_recipe(
            settings={
                "judges": [judge.identity() for judge in judges],
                "length": work.settings.contexts.length,
                "profile": work.settings.profile,
                "sample": None if chosen is None else of_block(chosen, block),
                **({} if few is None else {"of_deciders": of_block(few, block)}),
                **plan.identity,
            },
            explanations=explanations.content((), name),
            nulls=[explanations.content((), of) for of in nulls],
            **{
                i.stage: work.input(i.stage).content(i.parts, block if i.stage in BY_BLOCK else None)
                for i in work.stage.inputs
                if i.stage in work.recipe.inputs and i.stage != "explanations"
            },
        )

    def begun(threads: Threads) -> Iterator[tuple[int, Callable[[], Written]]]:
        """Has block after block scored."""
        for block in blocks:
            mine = [name for name in names if name.startswith(f"{block}-")]
            # Nulls first: specificity is worked out from their scores.
            mine.sort(key=lambda name: not explainer_of(name).startswith(NULL))
            nulls = {name: [null for null in mine if _is_null_of(null, name)] for name in mine}
            recipes = {name: recipe_of(block, name, nulls[name]) for name in mine}
            due = [name for name in mine if not work.reuse(name, recipes[name], TABLES)]
            if not due:
                yield 0, dict
                continue
            told = [
                _Told(name, recipes[name], nulls[name], of_deciders(name), explanations.read(schema.EXPLANATIONS, name))
                for name in due
            ]
            asked = plan.ask(block)
            if read is not None and all(judge.decides for judge in judges):  # of a sparse sample that is little
                asked = asked.of(pl.Series(of_block(read, block), dtype=pl.UInt32))
            task = work.draft.own, scorer.name, told, asked, plan.arms, chosen
            if computing is not None:
                yield asked.rows.height, computing.submit(_score_there, names_of_judges, *task).result
            elif asking:
                yield asked.rows.height, threads.submit(_score_all, *task, judges).result
            else:
                yield asked.rows.height, partial(_score_all, *task, judges)

    most = AHEAD if computing is not None else BLOCKS if asking else 0
    with Threads() as threads:
        gather(work, begun(threads), len(blocks), most=most, contexts=CONTEXTS if asking else None)
    counts = work.draft.scan(schema.SCORES).group_by("explainer", "negatives", "status").len().collect()
    work.facts["scores"] = {f"{e} on {n}: {s}": count for e, n, s, count in counts.sort(pl.all()).iter_rows()}


def _sizes(settings: Any) -> tuple[int | None, int | None]:
    """Latents that judges that decide are put, and those whose nulls are."""
    own = settings.llm
    return smaller(own.sample), smaller(own.sample, own.null_sample)


def _is_null_of(null: str, name: str) -> bool:
    """Of names of blocks."""
    null, name = explainer_of(null), explainer_of(name)
    return null.startswith(NULL) and not name.startswith(NULL) and base_of(null) == name


_vocabulary: Vocabulary | None = None


def _prepare(vocabulary: Vocabulary) -> None:
    global _vocabulary
    _vocabulary = vocabulary


@dataclass(frozen=True)
class _Told:
    """What is to be scored: the explanations of a block by one explainer."""

    name: str
    recipe: dict[str, Any]
    nulls: list[str]
    """Names of the blocks with its nulls' scores."""
    of_deciders: np.ndarray | None
    explanations: pl.DataFrame


def _score_all(
    blocks: Blocks,
    scorer: str,
    told: list[_Told],
    asked: Asked,
    arms: list[str],
    chosen: np.ndarray | None,
    judges: Sequence[Judge],
) -> Written:
    """Scores and writes, one explainer after the other; nulls come first."""
    done: Written = {}
    for one in told:
        spent: Spent = {}
        found = score_block(SCORERS[scorer], one.explanations, asked, arms, judges, chosen, one.of_deciders, spent)
        theirs = [blocks.read(schema.SCORES, null) for null in one.nulls]
        found["scores"] = judgements.with_specificity(found["scores"], theirs)
        done[one.name] = blocks.write(one.name, one.recipe, TABLES, found, facts_of(spent))
    return done


def _score_there(
    names: Sequence[str],
    blocks: Blocks,
    scorer: str,
    told: list[_Told],
    asked: Asked,
    arms: list[str],
    chosen: np.ndarray | None,
) -> Written:
    """The same in a process of the pool, by judges it makes itself."""
    assert _vocabulary is not None
    judges = [judge_named(name, _vocabulary) for name in names]
    return _score_all(blocks, scorer, told, asked, arms, chosen, judges)


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
        unfair = asked.unfair.get(judge.embedder, [])
        fair = [arm for arm in arms if arm not in unfair]
        explained = _left_out(everything, of_deciders) if judge.decides else everything
        good = explained.filter(pl.col("status") == "ok").sort("latent")
        texts = dict(zip(good["latent"], good.select("explanation", "program").iter_rows(), strict=True))
        mine = asked.where(pl.col("latent").is_in(good["latent"].implode()) & ~pl.col("arm").is_in(unfair))
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
        if good.is_empty():
            frames.append({"judgements": schema.JUDGEMENTS.empty(), "scores": missing})
            continue
        put = mine.where(pl.col("split") == "test") if judge.decides else mine
        answers = list(heeding(judge.judge(put.questions(scorer.name, texts))))
        if spent is not None:
            spend(spent, judge.name, answers)
        answered = judgements.with_answers(put.rows, answers)
        if scorer.decides and not judge.decides:
            answered = judgements.decided(answered)
        found = [judgements.scores(answered, good["latent"], arm, scorer.metric, key) for arm in fair]
        if asked.population is not None:
            ordered = [arm for arm in THRESHOLD_ARMS if arm in fair]
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


score_detection = runner(SCORERS["detection"])
score_fuzzing = runner(SCORERS["fuzzing"])
score_embedding = runner(SCORERS["embedding"])
