"""The stages `detection_scores`, `fuzzing_scores` and `embedding_scores`: how far an explanation can be trusted.

What belongs here: the runner that they share. What differs between scorers is a row of `table.SCORERS`. Reads
`explanations`, `contexts` and whatever a scorer asks about; writes `judgements` and `scores`. What answers is a
`protocols.Judge`. What a stage needs that is not in the store: `scorers.base.ScoreNeeds`. Definitions: docs/methods.md.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.contexts.latent_sample import of_block, sampled, smaller
from latentgloss.explanations.explainers import NULL, base_of, explainer_of
from latentgloss.pipeline.processes import with_processes
from latentgloss.scores.explained_blocks import TABLES, ExplainedBlock, write_scores
from latentgloss.scores.judges.opening import JUDGES, judge_named
from latentgloss.scores.side_by_side import BlockTask, ask_about_blocks
from latentgloss.scores.table import SCORERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    import numpy as np

    from latentgloss.config.settings import ScorerSettings
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.pipeline.stage_run import Runner, StageRun
    from latentgloss.scores.scorers.base import Asked, ScoreNeeds, Scorer
    from latentgloss.scores.side_by_side import Written
    from latentgloss.store import Blocks

BY_BLOCK = ("sampled_contexts", "sampled_negatives")
"""Inputs that are cut into blocks of latents: a block of scores depends on the same block of these alone."""


def runner(scorer: Scorer) -> Runner[ScoreNeeds]:
    """Runner of the stage `<name>_scores`."""
    return with_processes(partial(_score, scorer), _prepare, lambda run: (run.resources.vocabulary(run.model.name),))


def _score(scorer: Scorer, run: StageRun[ScoreNeeds], pool: Executor | None) -> None:
    run.check_windows()
    scoring = _Scoring(scorer, run, pool)
    ask_about_blocks(run, scoring.blocks, scoring.task, asks=scoring.asks, processes=scoring.processes)
    counts = run.draft.scan(schema.SCORES).group_by("explainer", "negatives", "status").len().collect()
    run.facts["scores"] = {f"{e} on {n}: {s}": count for e, n, s, count in counts.sort(pl.all()).iter_rows()}


class _Scoring:
    """One scorer over one partition: what is to be scored of each block, from what, and by whom."""

    def __init__(self, scorer: Scorer, run: StageRun[ScoreNeeds], pool: Executor | None) -> None:
        self.scorer, self.run = scorer, run
        self.explanations = run.input("explanations")
        self.settings: ScorerSettings = getattr(run.settings, scorer.name)
        self.plan = scorer.plan(run, run.resources.corpus(run.input("resolved_saes")), scorer.splits)
        self.judges = scorer.judges(run, self.settings)
        self.asks = any(judge.decides for judge in self.judges)
        self.names = sorted(self.explanations.manifest.blocks)
        self.blocks = sorted({name.split("-")[0] for name in self.names})
        eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY)
        self.chosen = sampled(eligibility, self.settings.sample, self.settings.seed)
        sizes = _sizes(self.settings) if self.asks else (None, None)
        self._judged_by_readers, self._nulls_judged_by_readers = (
            sampled(eligibility, n, self.settings.seed) for n in sizes
        )
        # Judges made of the vocabulary alone can judge in any process; one that asks a model is asked from here.
        names = getattr(self.settings, "judges", ())
        self.processes = pool if names and set(names) <= set(JUDGES) else None

    def task(self, block: str) -> BlockTask | None:
        """What is to be scored of a block; None if the draft has all of it."""
        mine = [name for name in self.names if name.startswith(f"{block}-")]
        # Nulls first: specificity is computed from their scores.
        mine.sort(key=lambda name: not explainer_of(name).startswith(NULL))
        due = [one for name in mine if (one := self._due(block, name, mine)) is not None]
        if not due:
            return None
        asked = self.plan.ask(block)
        if self._judged_by_readers is not None and all(
            judge.decides for judge in self.judges
        ):  # of a sparse sample that is little
            asked = asked.of(pl.Series(of_block(self._judged_by_readers, block), dtype=pl.UInt32))
        arguments = self.run.draft.own, self.scorer.name, due, asked, self.plan.arms, self.chosen
        if self.processes is not None:
            return BlockTask(asked.rows.height, _write_in_process, (self.settings.judges, *arguments))  # type: ignore[attr-defined]
        return BlockTask(asked.rows.height, _write, (*arguments, self.judges))

    def _due(self, block: str, name: str, names: Sequence[str]) -> ExplainedBlock | None:
        """What one explainer said of a block, with the recipe of its scores; None if the draft has them."""
        nulls = [null for null in names if _is_null_of(null, name)]
        recipe = self._recipe(block, name, nulls)
        if self.run.reuse(name, recipe, TABLES):
            return None
        explanations = self.explanations.read(schema.EXPLANATIONS, name)
        return ExplainedBlock(name, recipe, nulls, self._sample_of_readers(name), explanations)

    def _sample_of_readers(self, name: str) -> np.ndarray | None:
        """Latents of the SAE that judges which read are asked about, by the explainer in a block's name."""
        return self._nulls_judged_by_readers if explainer_of(name).startswith(NULL) else self._judged_by_readers

    @cached_property
    def _identities(self) -> list[dict[str, Any]]:
        return [judge.identity() for judge in self.judges]

    def _recipe(self, block: str, name: str, nulls: Sequence[str]) -> dict[str, Any]:
        """What decides the scores of one explainer's explanations of a block."""
        run, read = self.run, self._sample_of_readers(name)
        return run.block_recipe(
            settings={
                "judges": self._identities,
                "length": run.settings.contexts.length,
                "profile": run.settings.profile,
                "sample": None if self.chosen is None else of_block(self.chosen, block),
                **({} if read is None else {"of_deciders": of_block(read, block)}),
                **self.plan.identity,
            },
            explanations=self.explanations.content((), name),
            nulls=[self.explanations.content((), null) for null in nulls],
            **{
                i.stage: run.input(i.stage).content(i.parts, block if i.stage in BY_BLOCK else None)
                for i in run.stage.inputs
                if i.stage in run.recipe.inputs and i.stage != "explanations"
            },
        )


def _sizes(settings: Any) -> tuple[int | None, int | None]:
    """Sample sizes for judges that read: (explanations, null explanations). None: every latent."""
    own = settings.llm
    return smaller(own.sample), smaller(own.sample, own.null_sample)


def _is_null_of(null: str, name: str) -> bool:
    """Whether one block, by its name, holds a null of the explainer of another."""
    null, name = explainer_of(null), explainer_of(name)
    return null.startswith(NULL) and not name.startswith(NULL) and base_of(null) == name


def _write(blocks: Blocks, scorer: str, *rest: Any) -> Written:
    return write_scores(blocks, SCORERS[scorer], *rest)


# In a process of the pool ------------------------------------------------------------------------------------

_vocabulary: Vocabulary | None = None


def _prepare(vocabulary: Vocabulary) -> None:
    global _vocabulary
    _vocabulary = vocabulary


def _write_in_process(
    names: Sequence[str],
    blocks: Blocks,
    scorer: str,
    explained: Sequence[ExplainedBlock],
    asked: Asked,
    arms: Sequence[str],
    chosen: np.ndarray | None,
) -> Written:
    """As `_write`, with judges that this process makes of the vocabulary it was started with."""
    assert _vocabulary is not None
    judges = [judge_named(name, _vocabulary) for name in names]
    return write_scores(blocks, SCORERS[scorer], explained, asked, arms, chosen, judges)


score_detection = runner(SCORERS["detection"])
score_fuzzing = runner(SCORERS["fuzzing"])
score_embedding = runner(SCORERS["embedding"])
