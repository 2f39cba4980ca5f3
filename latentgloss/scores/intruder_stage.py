"""The stage `intruder_scores`: do the activating contexts of a latent have anything in common?

    trials -> questions -> answers -> judgements -> scores

What belongs here: the runner of the stage. It judges latents without an explanation. Reads `eligibility`, `contexts`
and `activations`; writes `trials`, `judgements` and `scores`, with explainer `none`. The trials come from
`scorers/intruder.py`, the answers from `judges/intruder.py`. If the settings name no judge, nothing is read and the
version is empty. Definitions: docs/methods.md, Intruder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.contexts.latent_sample import of_block, sampled
from latentgloss.machine.concurrency import until_abandoned
from latentgloss.pipeline.stage_run import one_by_one
from latentgloss.scores import judgements, score_rows
from latentgloss.scores.scorers.base import Texts
from latentgloss.scores.scorers.intruder import Trials
from latentgloss.scores.scorers.trials import ARM, TRIALS
from latentgloss.scores.side_by_side import BlockTask, add_taken, ask_about_blocks, facts_of
from latentgloss.scores.table import SCORERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Judge, Task
    from latentgloss.scores.scorers.base import Asked, ScoreNeeds
    from latentgloss.scores.side_by_side import Taken, Written
    from latentgloss.store import Blocks


TASK: Task = "intruder"
"""The scorer of this stage."""
EXPLAINER = "none"
"""The explainer in every row, because no explanation is judged."""
_TABLES = (schema.TRIALS, schema.JUDGEMENTS, schema.SCORES)


def _intruder(run: StageRun[ScoreNeeds]) -> None:
    settings = run.settings.intruder
    run.check_windows()
    if not settings.judges:
        run.facts = {"scores": {}}
        return
    contexts = run.input("sampled_contexts")
    judges = SCORERS[TASK].judges(run, settings)
    chosen = sampled(contexts.read(schema.ELIGIBILITY), settings.sample, settings.seed)
    trials = Trials(run, run.resources.corpus(run.input("resolved_saes")))
    identities = [judge.identity() for judge in judges]

    def task_of(block: str) -> BlockTask | None:
        """Draws the trials of a block; None if the draft has its scores."""
        sample = None if chosen is None else of_block(chosen, block)
        name, recipe = f"{block}-{EXPLAINER}", _recipe(run, block, identities, sample, trials.consumed(block))
        if run.reuse(name, recipe, _TABLES):
            return None
        eligibility, (table, asked) = contexts.read(schema.ELIGIBILITY, block), trials(block)
        return BlockTask(asked.rows.height, _write, (run.draft.own, name, recipe, eligibility, table, asked, judges))

    ask_about_blocks(run, sorted(contexts.manifest.blocks), task_of, asks=True)
    scored = run.draft.scan(schema.SCORES).group_by("judge", "status").len().collect()
    made = run.draft.scan(schema.TRIALS).group_by("status").len().collect()
    run.facts |= {
        "scores": {f"{judge}: {status}": n for judge, status, n in scored.sort(pl.all()).iter_rows()},
        "trials": dict(made.sort(pl.all()).iter_rows()),
    }


def _recipe(
    run: StageRun[ScoreNeeds],
    block: str,
    judges: list[dict[str, Any]],
    sample: list[int] | None,
    trials: dict[str, Any],
) -> dict[str, Any]:
    """Everything that decides the scores of a block.

    `judges`: their identities. `trials`: what the trials depend on (`Trials.consumed`).
    """
    return run.block_recipe(
        settings={
            "judges": judges,
            "length": run.settings.contexts.length,
            "profile": run.settings.profile,
            "sample": sample,
            "seed": run.settings.intruder.seed,
            "trials": TRIALS,
            **trials,
        },
        resolved_saes=run.input("resolved_saes").content(("cache",)),
        **{
            needed.stage: run.input(needed.stage).content(
                needed.parts, block if needed.stage == "sampled_contexts" else None
            )
            for needed in run.stage.inputs
            if needed.stage != "resolved_saes"
        },
    )


score_intruder = one_by_one(_intruder)
"""Runner of `intruder_scores`."""


def _write(
    blocks: Blocks,
    name: str,
    recipe: dict[str, Any],
    eligibility: pl.DataFrame,
    trials: pl.DataFrame,
    asked: Asked,
    judges: Sequence[Judge],
) -> Written:
    """Scores a block and writes it to the folder of the draft."""
    taken: Taken = {}
    found = score_trials(eligibility, trials, asked, judges, taken)
    return {name: blocks.write(name, recipe, _TABLES, found, facts_of(taken))}


def score_trials(
    eligibility: pl.DataFrame,
    trials: pl.DataFrame,
    asked: Asked,
    judges: Sequence[Judge],
    taken: Taken | None = None,
) -> dict[str, pl.DataFrame]:
    """Trials, judgements and scores of one block, as tables by name: a score row per latent of `eligibility` and judge.

    Eligible latents without a row in `trials` are not in the sample. The tokens and dollars that the answers took are
    added to `taken`.
    """
    metric = SCORERS[TASK].metric
    judged = trials["latent"].unique().sort()
    out = eligibility.filter(~pl.col("latent").is_in(judged.implode())).with_columns(
        status=pl.col("status").replace("eligible", "not_sampled"),
        reason=pl.when(status="eligible").then(pl.lit("not in the scorer's sample of latents")).otherwise("reason"),
    )
    frames: dict[str, list[pl.DataFrame]] = {"judgements": [], "scores": []}
    texts = dict.fromkeys(judged.to_list(), Texts("", None, ""))
    for judge in judges:
        key = {
            "explainer": EXPLAINER,
            "scorer": TASK,
            "judge": judge.name,
            "embedder": judge.embedder,
            "profile": asked.profile,
        }
        answers = list(until_abandoned(judge.judge(asked.questions(TASK, texts))))
        if taken is not None:
            add_taken(taken, judge.name, answers)
        answered = judgements.with_answers(asked.rows, answers)
        frames["judgements"].append(judgements.table(answered, key))
        frames["scores"] += [
            score_rows.scores_of_trials(trials, answered, metric, key),
            score_rows.unscored(out, [ARM], metric, key),
        ]
    found: dict[str, Any] = {name: pl.concat(frame) for name, frame in frames.items()}
    return {"trials": trials, **found, "scores": found["scores"].sort("judge", "latent", maintain_order=True)}
