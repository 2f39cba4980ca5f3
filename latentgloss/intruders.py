"""Intruder detection: are a latent's activating contexts alike at all? Judged without an explanation.

    trials -> questions -> answers -> judgements -> scores

What belongs here: the runner of `intruder_scores`. Reads `eligibility`, `contexts` and `activations`; writes `trials`,
`judgements` and `scores`, with explainer `none`. Which windows make a trial is in `scorers/trials.py`, who answers in
`scorers/intruder.py`. Without a judge in the settings nothing is read and the version is empty.
Definitions: docs/methods.md, Intruder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import judgements, schema
from latentgloss.ahead import BLOCKS, CONTEXTS, Threads, heeding
from latentgloss.sampling import of_block, sampled
from latentgloss.scorers import SCORERS
from latentgloss.scorers.trials import ARM, TRIALS, Trials
from latentgloss.scoring import facts_of, gather, spend
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from latentgloss.blocks import Blocks
    from latentgloss.protocols import Judge, Task
    from latentgloss.scorers.base import Asked
    from latentgloss.scoring import Spent, Written
    from latentgloss.work import Work

TASK: Task = "intruder"
EXPLAINER = "none"
"""In every row: no explanation is judged."""
_TABLES = (schema.TRIALS, schema.JUDGEMENTS, schema.SCORES)


def _intruder(work: Work) -> None:
    settings = work.settings.intruder
    work.check_windows()
    if not settings.judges:
        work.facts = {"scores": {}}
        return
    contexts = work.input("sampled_contexts")
    judges = SCORERS[TASK].judges(work, settings)
    chosen = sampled(contexts.read(schema.ELIGIBILITY), settings.sample, settings.seed)
    trials = Trials(work, work.workspace.corpus(work.input("resolved_saes")))
    blocks = sorted(contexts.manifest.blocks)

    def begun(threads: Threads) -> Iterator[tuple[int, Callable[[], Written]]]:
        """Draws the trials of block after block and has them judged."""
        for block in blocks:
            recipe = work.block_recipe(
                settings={
                    "judges": [judge.identity() for judge in judges],
                    "length": work.settings.contexts.length,
                    "profile": work.settings.profile,
                    "sample": None if chosen is None else of_block(chosen, block),
                    "seed": settings.seed,
                    "trials": TRIALS,
                    **trials.consumed(block),
                },
                resolved_saes=work.input("resolved_saes").content(("cache",)),
                **{
                    i.stage: work.input(i.stage).content(i.parts, block if i.stage == "sampled_contexts" else None)
                    for i in work.stage.inputs
                    if i.stage != "resolved_saes"
                },
            )
            name = f"{block}-{EXPLAINER}"
            if work.reuse(name, recipe, _TABLES):
                yield 0, dict
                continue
            eligibility, (table, asked) = contexts.read(schema.ELIGIBILITY, block), trials(block)
            yield (
                asked.rows.height,
                threads.submit(_written, work.draft.own, name, recipe, eligibility, table, asked, judges).result,
            )

    with Threads() as threads:
        gather(work, begun(threads), len(blocks), most=BLOCKS, contexts=CONTEXTS)
    scored = work.draft.scan(schema.SCORES).group_by("judge", "status").len().collect()
    made = work.draft.scan(schema.TRIALS).group_by("status").len().collect()
    work.facts |= {
        "scores": {f"{judge}: {status}": n for judge, status, n in scored.sort(pl.all()).iter_rows()},
        "trials": dict(made.sort(pl.all()).iter_rows()),
    }


score_intruder = one_by_one(_intruder)
"""Runner of `intruder_scores`."""


def _written(
    blocks: Blocks,
    name: str,
    recipe: dict[str, Any],
    eligibility: pl.DataFrame,
    trials: pl.DataFrame,
    asked: Asked,
    judges: Sequence[Judge],
) -> Written:
    """Scores a block and writes it."""
    spent: Spent = {}
    found = score_block(eligibility, trials, asked, judges, spent)
    return {name: blocks.write(name, recipe, _TABLES, found, facts_of(spent))}


def score_block(
    eligibility: pl.DataFrame,
    trials: pl.DataFrame,
    asked: Asked,
    judges: Sequence[Judge],
    spent: Spent | None = None,
) -> dict[str, pl.DataFrame]:
    """Trials, judgements and scores of one block: a score row of every latent asked for and judge.

    What the answers took is added to `spent`. Eligible latents without a row in `trials` are not in the sample.
    """
    metric = SCORERS[TASK].metric
    judged = trials["latent"].unique().sort()
    out = eligibility.filter(~pl.col("latent").is_in(judged.implode())).with_columns(
        status=pl.col("status").replace("eligible", "not_sampled"),
        reason=pl.when(status="eligible").then(pl.lit("not in the scorer's sample of latents")).otherwise("reason"),
    )
    frames: dict[str, list[pl.DataFrame]] = {"judgements": [], "scores": []}
    texts: dict[int, tuple[str, str | None]] = dict.fromkeys(judged.to_list(), ("", None))
    for judge in judges:
        key = {"explainer": EXPLAINER, "scorer": TASK, "judge": judge.name, "embedder": judge.embedder,
               "profile": asked.profile}  # fmt: skip
        answers = list(heeding(judge.judge(asked.questions(TASK, texts))))
        if spent is not None:
            spend(spent, judge.name, answers)
        answered = judgements.with_answers(asked.rows, answers)
        frames["judgements"].append(judgements.table(answered, key))
        frames["scores"] += [
            judgements.scores_of_trials(trials, answered, metric, key),
            judgements.unscored(out, [ARM], metric, key),
        ]
    found: dict[str, Any] = {name: pl.concat(frame) for name, frame in frames.items()}
    return {"trials": trials, **found, "scores": found["scores"].sort("judge", "latent", maintain_order=True)}
