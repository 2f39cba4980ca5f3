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
from latentgloss.sampling import of_block, sampled
from latentgloss.scorers import SCORERS
from latentgloss.scorers.trials import ARM, TRIALS, Trials
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentgloss.protocols import Judge, Task
    from latentgloss.scorers.base import Asked
    from latentgloss.work import Work

TASK: Task = "intruder"
EXPLAINER = "none"
"""In every row: no explanation is judged."""
_TABLES = (schema.TRIALS, schema.JUDGEMENTS, schema.SCORES)
_TAKEN = ("prompt_tokens", "completion_tokens", "cost_usd")


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
    spent: dict[str, dict[str, float]] = {judge.name: dict.fromkeys(_TAKEN, 0) for judge in judges}
    blocks = sorted(contexts.manifest.blocks)
    for done, block in enumerate(blocks):
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
        if not work.draft.reuse(name, recipe, _TABLES):
            table, asked = trials(block)
            eligibility = contexts.read(schema.ELIGIBILITY, block)
            work.draft.put(name, recipe, _TABLES, score_block(eligibility, table, asked, judges, spent))
        work.progress(done + 1, len(blocks), "blocks of latents")
    scored = work.draft.scan(schema.SCORES).group_by("judge", "status").len().collect()
    made = work.draft.scan(schema.TRIALS).group_by("status").len().collect()
    work.facts = {
        "scores": {f"{judge}: {status}": n for judge, status, n in scored.sort(pl.all()).iter_rows()},
        "trials": dict(made.sort(pl.all()).iter_rows()),
    }
    if any(any(taken.values()) for taken in spent.values()):
        work.facts["spent"] = spent


score_intruder = one_by_one(_intruder)
"""Runner of `intruder_scores`."""


def score_block(
    eligibility: pl.DataFrame,
    trials: pl.DataFrame,
    asked: Asked,
    judges: Sequence[Judge],
    spent: dict[str, dict[str, float]] | None = None,
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
        answers = list(judge.judge(asked.questions(TASK, texts)))
        if spent is not None:
            for taken in _TAKEN:
                spent[judge.name][taken] += sum(getattr(answer, taken) for answer in answers)
        answered = judgements.with_answers(asked.rows, answers)
        frames["judgements"].append(judgements.table(answered, key))
        frames["scores"] += [
            judgements.scores_of_trials(trials, answered, metric, key),
            judgements.unscored(out, [ARM], metric, key),
        ]
    found: dict[str, Any] = {name: pl.concat(frame) for name, frame in frames.items()}
    return {"trials": trials, **found, "scores": found["scores"].sort("judge", "latent", maintain_order=True)}
