"""Scores: how far an explanation can be trusted, judged on contexts nobody was shown.

    asked rows -> questions -> answers -> judgements -> scores

What belongs here: the runner every scorer shares. What differs between scorers is a row of `scorers.SCORERS`; from
answers to numbers is in `judgements.py`. Reads `explanations`, `contexts` and whatever a scorer asks about; writes
`judgements` and `scores`. What answers is a `protocols.Judge`. Definitions: docs/methods.md.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import judgements, schema
from latentgloss.hashing import counter_hash
from latentgloss.scorers import SCORERS
from latentgloss.work import attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from latentgloss.protocols import Judge
    from latentgloss.scorers.base import Asked, Scorer
    from latentgloss.settings import ScorerSettings
    from latentgloss.work import Work

MANY = 16
"""Blocks of explanations from which it pays to start processes."""
BY_BLOCK = ("sampled_contexts", "sampled_negatives")
"""Inputs that are cut into blocks of latents: a block of scores depends on the same block of these alone."""


def runner(scorer: Scorer) -> Callable[[Sequence[Work]], Iterator[Work]]:
    """Runner of the stage `<name>_scores`. Works of one model share the processes that judges compute in."""

    def run(works: Sequence[Work]) -> Iterator[Work]:
        for _, group in groupby(sorted(works, key=lambda work: work.model.name), key=lambda work: work.model.name):
            together = list(group)
            with Processes(scorer, together) as processes:
                for work in together:
                    work.start()
                    work.error = attempt(partial(_score, scorer, processes, work))
                    yield work

    return run


def _score(scorer: Scorer, processes: Processes, work: Work) -> None:
    explanations = work.input("explanations")
    settings: ScorerSettings = getattr(work.settings, scorer.name)
    plan = scorer.plan(work, work.workspace.corpus(work.input("resolved_saes")), scorer.splits)
    judges = scorer.judges(work, settings.judges)
    chosen = sampled(work.input("sampled_contexts").read(schema.ELIGIBILITY), settings)
    names = sorted(explanations.manifest.blocks, key=lambda name: ("null." not in name, name))
    blocks = sorted({name.split("-")[0] for name in names})
    tables = (schema.JUDGEMENTS, schema.SCORES)

    def recipe(block: str, name: str) -> dict[str, Any]:
        return work.block_recipe(
            settings={
                "judges": [judge.identity() for judge in judges],
                "length": work.settings.contexts.length,
                "profile": work.settings.profile,
                "sample": None if chosen is None else _of_block(chosen, block),
                **plan.identity,
            },
            explanations=explanations.content((), name),
            nulls=explanations.content((), _null_of(name)),
            **{
                i.stage: work.input(i.stage).content(i.parts, block if i.stage in BY_BLOCK else None)
                for i in work.stage.inputs
                if i.stage in work.recipe.inputs and i.stage != "explanations"
            },
        )

    def begin(block: str) -> tuple[dict[str, dict[str, Any]], Callable[[], list[dict[str, pl.DataFrame]]]]:
        """What of a block has to be computed, with its recipes; and its frames, in that order."""
        recipes = {name: recipe(block, name) for name in names if name.startswith(f"{block}-")}
        left = {name: made for name, made in recipes.items() if not work.draft.reuse(name, made, tables)}
        if not left:
            return left, list
        frames = [explanations.read(schema.EXPLANATIONS, name) for name in left]
        return left, processes.submit(judges, frames, plan.ask(block), plan.arms, chosen)

    def finish(left: dict[str, dict[str, Any]], frames: list[dict[str, pl.DataFrame]]) -> None:
        """Nulls come first, since what they scored is part of the others' rows."""
        for (name, made), found in zip(left.items(), frames, strict=True):
            null = _null_of(name)
            nulls = work.draft.read(schema.SCORES, null) if null in explanations.manifest.blocks else None
            scores = judgements.with_specificity(found["scores"], nulls)
            work.draft.put(name, made, tables, {**found, "scores": scores})

    begun: deque[Any] = deque()
    done = 0
    for number, block in enumerate(blocks, 1):
        begun.append(begin(block))
        while begun and (len(begun) > processes.ahead or number == len(blocks)):
            left, frames = begun.popleft()
            finish(left, frames())
            done += 1
            work.progress(done, len(blocks), "blocks of latents")
    scored = work.draft.scan(schema.SCORES).group_by("explainer", "negatives", "status").len().collect()
    work.facts = {"scores": {f"{e} on {n}: {s}": count for e, n, s, count in scored.sort(pl.all()).iter_rows()}}


def _null_of(name: str) -> str:
    """Block of the null explanations of a block of explanations (there is none of a null)."""
    block, _, explainer = name.partition("-")
    return f"{block}-null.{explainer}"


class Processes:
    """Where blocks are judged: in processes with the judges in them, started when first needed; or here.

    Here where one process is all there is to be, where there is too little to do, or where a judge does not compute
    (what waits for a server or sits on a GPU gains nothing by being there twice). Results are the same.
    """

    def __init__(self, scorer: Scorer, works: Sequence[Work]) -> None:
        self.scorer = scorer
        blocks = sum(len(work.input("explanations").manifest.blocks) for work in works)
        workers = works[0].settings.machine.workers or os.cpu_count() or 1
        self.n = workers if blocks >= MANY else 1
        self._pool: ProcessPoolExecutor | None = None

    @property
    def ahead(self) -> int:
        """Blocks worth beginning before the first of them is finished."""
        return self.n if self._pool else 0

    def submit(
        self,
        judges: list[Judge],
        explained: list[pl.DataFrame],
        asked: Asked,
        arms: list[str],
        chosen: np.ndarray | None,
    ) -> Callable[[], list[dict[str, pl.DataFrame]]]:
        """Begins a block; what it returns waits for the frames, one per frame of explanations."""
        if self.n == 1 or not all(judge.computes for judge in judges):
            return partial(_score_all, self.scorer, judges, explained, asked, arms, chosen)
        if self._pool is None:
            # Not fork: the model's threads may be alive in this process, and a forked child would wait for ever.
            context = multiprocessing.get_context("spawn")
            # Judges that compute are the same for all SAEs of a model.
            self._pool = ProcessPoolExecutor(self.n, context, _prepare, (self.scorer, judges))
        return self._pool.submit(_score_there, explained, asked, arms, chosen).result

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_prepared: tuple[Scorer, list[Judge]] | None = None


def _prepare(scorer: Scorer, judges: list[Judge]) -> None:
    global _prepared
    _prepared = scorer, judges


def _score_there(*block: Any) -> list[dict[str, pl.DataFrame]]:
    """Runs in a process of the pool."""
    assert _prepared is not None
    return _score_all(*_prepared, *block)


def _score_all(
    scorer: Scorer,
    judges: list[Judge],
    explained: list[pl.DataFrame],
    asked: Asked,
    arms: list[str],
    chosen: np.ndarray | None,
) -> list[dict[str, pl.DataFrame]]:
    return [score_block(scorer, frame, asked, arms, judges, chosen) for frame in explained]


def sampled(eligibility: pl.DataFrame, settings: ScorerSettings) -> np.ndarray | None:
    """The eligible latents that are judged, ascending; None: all of them.

    Those of the lowest hashes of seed and latent, so that a smaller sample is part of a larger one, and a latent that
    comes or goes changes the sample by one.
    """
    if settings.sample is None:
        return None
    eligible = eligibility.filter(pl.col("status") == "eligible")["latent"].to_numpy()
    order = np.argsort(counter_hash(settings.seed, eligible), kind="stable")
    return np.sort(eligible[order[: settings.sample]])


def _of_block(latents: np.ndarray, block: str) -> list[int]:
    return [int(latent) for latent in latents[latents // schema.BLOCK == int(block)]]


def score_block(
    scorer: Scorer,
    explained: pl.DataFrame,
    asked: Asked,
    arms: list[str],
    judges: Sequence[Judge],
    chosen: np.ndarray | None = None,
) -> dict[str, pl.DataFrame]:
    """Judgements and scores of one explainer's explanations (rows of `schema.EXPLANATIONS`) of one block.

    `chosen`: the latents that are judged; the other eligible ones get rows of status `not_sampled`.
    """
    if chosen is not None:
        out = ~pl.col("status").is_in(judgements.NOT_ELIGIBLE) & ~pl.col("latent").is_in(chosen.tolist())
        why = pl.lit(f"not among the {len(chosen)} latents sampled")
        explained = explained.with_columns(
            status=pl.when(out).then(pl.lit("not_sampled")).otherwise("status"),
            reason=pl.when(out).then(why).otherwise("reason"),
        )
    good = explained.filter(pl.col("status") == "ok").sort("latent")
    texts = dict(zip(good["latent"], good.select("explanation", "program").iter_rows(), strict=True))
    mine = asked.of(good["latent"])
    frames: list[dict[str, pl.DataFrame]] = []
    for judge in judges:
        key = {
            "explainer": explained["explainer"][0],
            "scorer": scorer.name,
            "judge": judge.name,
            "embedder": judge.embedder,
            "profile": asked.profile,
        }
        missing = judgements.unscored(explained.filter(pl.col("status") != "ok"), arms, scorer.metric, key)
        if good.is_empty():
            frames.append({"judgements": schema.JUDGEMENTS.empty(), "scores": missing})
            continue
        answered = judgements.with_answers(mine.rows, list(judge.judge(mine.questions(scorer.name, texts))))
        if scorer.decides:
            answered = judgements.decided(answered)
        found = [judgements.scores(answered, good["latent"], arm, scorer.metric, key) for arm in arms]
        frames.append(
            {
                "judgements": judgements.table(answered, key),
                "scores": pl.concat([*found, missing]).sort("latent", "negatives"),
            }
        )
    return {name: pl.concat([frame[name] for frame in frames]) for name in ("judgements", "scores")}


score_detection = runner(SCORERS["detection"])
score_fuzzing = runner(SCORERS["fuzzing"])
