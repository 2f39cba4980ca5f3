"""The stages `detection_scores`, `fuzzing_scores` and `embedding_scores`: how far an explanation can be trusted.

What belongs here: the runner that they share. A row of `table.SCORERS` holds what differs between scorers. Reads
`explanations`, `contexts` and the other inputs of the scorer; writes `judgements` and `scores`. A `protocols.Judge`
gives the answers. `scorers.base.ScoreNeeds` lists what the stages need that is not in the store. Definitions:
docs/methods.md.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.contexts.latent_sample import of_block, sampled, smaller
from latentgloss.explanations.explainers import NULL, base_of, explainer_of
from latentgloss.pipeline.processes import with_processes
from latentgloss.pipeline.stage_run import one_by_one
from latentgloss.scores.explained_blocks import TABLES, ExplainedBlock, write_scores
from latentgloss.scores.first_explained import MadeReady
from latentgloss.scores.judges.cosine import CosineJudge
from latentgloss.scores.judges.opening import JUDGES, judge_named
from latentgloss.scores.side_by_side import BlockTask, ask_about_blocks
from latentgloss.scores.table import SCORERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from latentgloss.config.settings import ScorerSettings
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.pipeline.stage_run import Runner, StageRun
    from latentgloss.protocols import Judge
    from latentgloss.scores.scorers.base import Asked, ScoreNeeds, Scorer
    from latentgloss.scores.side_by_side import Written
    from latentgloss.store import Blocks

BY_BLOCK = ("sampled_contexts", "sampled_negatives")
"""Inputs that are stored in blocks of latents. A block of scores depends on the same block of these inputs alone."""


EMBEDDED_AHEAD = 64
"""Blocks whose texts and contexts are embedded together."""


def runner(scorer: Scorer) -> Runner[ScoreNeeds]:
    """The runner of the stage `<name>_scores` of a scorer."""
    if not scorer.decides:  # judges that can work in any process answer yes or no
        return one_by_one(partial(_score, scorer, pool=None))
    return with_processes(partial(_score, scorer), _prepare, lambda run: (run.resources.vocabulary(run.model.name),))


def _score(scorer: Scorer, run: StageRun[ScoreNeeds], pool: Executor | None) -> None:
    """Scores one partition, in the processes of `pool` if the judges can work there."""
    run.check_windows()
    scoring = _Scoring(scorer, run, pool)
    scoring.embed_ahead()
    ask_about_blocks(run, scoring.blocks, scoring.task, asks=scoring.asks, processes=scoring.processes)
    counts = run.draft.scan(schema.SCORES).group_by("explainer", "negatives", "status").len().collect()
    run.facts["scores"] = {f"{e} on {n}: {s}": count for e, n, s, count in counts.sort(pl.all()).iter_rows()}
    ready = {base_of(explainer_of(name)): block.facts.get("ready") for name, block in run.draft.blocks.items()}
    if any(ready.values()):
        run.facts["ready"] = {explainer: facts for explainer, facts in sorted(ready.items()) if facts}


class _Scoring:
    """One scorer on one partition: its judges, its samples of latents, and the task for each block."""

    def __init__(self, scorer: Scorer, run: StageRun[ScoreNeeds], pool: Executor | None) -> None:
        self.scorer, self.run = scorer, run
        self.explanations = run.input("explanations")
        self.settings: ScorerSettings = getattr(run.settings, scorer.name)
        self.plan = scorer.plan(run, run.resources.corpus(run.input("resolved_saes")), scorer.splits)
        self.judges = scorer.judges(run, self.settings)
        self._ready: dict[str, list[Judge]] = {}
        self.asks = any(judge.decides for judge in self.judges)
        self.names = sorted(self.explanations.manifest.blocks)
        self.blocks = sorted({name.split("-")[0] for name in self.names})
        eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY)
        self.chosen = sampled(eligibility, self.settings.sample, self.settings.seed)
        sizes = _sizes(self.settings) if self.asks else (None, None)
        self._judged_by_readers, self._nulls_judged_by_readers = (
            sampled(eligibility, n, self.settings.seed) for n in sizes
        )
        # A judge that needs nothing but the vocabulary can judge in any process; one that asks a model stays in this.
        names = getattr(self.settings, "judges", ())
        self.processes = pool if names and set(names) <= set(JUDGES) else None

    def embed_ahead(self) -> None:
        """Embeds what many blocks ask about together: texts are computed in groups, which one block seldom fills."""
        judges = [judge for judge in self.judges if isinstance(judge, CosineJudge)]
        for first in range(0, len(self.blocks), EMBEDDED_AHEAD) if judges else ():
            texts: list[str] = []
            contexts = [np.empty(0, np.uint32)]
            for block in self.blocks[first : first + EMBEDDED_AHEAD]:
                chosen = pl.lit(True) if self.chosen is None else pl.col("latent").is_in(of_block(self.chosen, block))
                contexts.append(self.plan.ask(block).rows.filter(chosen)["context"].to_numpy())
                for name in self.names:
                    if name.startswith(f"{block}-"):
                        explained = self.explanations.read(schema.EXPLANATIONS, name).filter(chosen, status="ok")
                        texts += explained["explanation"].to_list()
            for judge in judges:
                judge.embed_ahead(texts, np.concatenate(contexts))

    def task(self, block: str) -> BlockTask | None:
        """The scoring of a block; None if the draft has all of it."""
        names = [name for name in self.names if name.startswith(f"{block}-")]
        # Nulls first, because specificity is computed from their scores.
        names.sort(key=lambda name: not explainer_of(name).startswith(NULL))
        due = [explained for name in names if (explained := self._due(block, name, names)) is not None]
        if not due:
            return None
        asked = self.plan.ask(block)
        if self._judged_by_readers is not None and all(judge.decides for judge in self.judges):
            # A sparse sample has few latents in a block; the rows of the others are not needed.
            asked = asked.of(pl.Series(of_block(self._judged_by_readers, block), dtype=pl.UInt32))
        arguments = self.run.draft.own, self.scorer.name, due, asked, self.plan.arms, self.chosen
        if self.processes is not None:
            return BlockTask(asked.rows.height, _write_in_process, (self.settings.judges, *arguments))  # type: ignore[attr-defined]
        judges = {explained.name: self._judges_of(explained.name) for explained in due}
        return BlockTask(asked.rows.height, _write, (*arguments, judges))

    def _judges_of(self, name: str) -> list[Judge]:
        """The judges, made ready for the explainer in the name of a block."""
        explainer = base_of(explainer_of(name))
        if explainer not in self._ready:
            self._ready[explainer] = [
                judge.for_explainer(explainer) if isinstance(judge, MadeReady) else judge for judge in self.judges
            ]
        return self._ready[explainer]

    def _due(self, block: str, name: str, names: Sequence[str]) -> ExplainedBlock | None:
        """The explanations of an explainer in a block, with the recipe of their scores; None if the draft has these."""
        nulls = [null for null in names if _is_null_of(null, name)]
        recipe = self._recipe(block, name, nulls)
        if self.run.reuse(name, recipe, TABLES):
            return None
        explanations = self.explanations.read(schema.EXPLANATIONS, name)
        return ExplainedBlock(name, recipe, nulls, self._sample_of_readers(name), explanations)

    def _sample_of_readers(self, name: str) -> np.ndarray | None:
        """Latents of the SAE that judges which read are asked about, for the explainer in the name of a block."""
        return self._nulls_judged_by_readers if explainer_of(name).startswith(NULL) else self._judged_by_readers

    def _recipe(self, block: str, name: str, nulls: Sequence[str]) -> dict[str, Any]:
        """Everything that decides the scores of the explanations of one explainer in a block."""
        run, readers = self.run, self._sample_of_readers(name)
        return run.block_recipe(
            settings={
                "judges": [judge.identity() for judge in self._judges_of(name)],
                "length": run.settings.contexts.length,
                "profile": run.settings.profile,
                "sample": None if self.chosen is None else of_block(self.chosen, block),
                **({} if readers is None else {"of_deciders": of_block(readers, block)}),
                **self.plan.identity,
            },
            explanations=self.explanations.content((), name),
            nulls=[self.explanations.content((), null) for null in nulls],
            **{
                needed.stage: run.input(needed.stage).content(needed.parts, block if needed.stage in BY_BLOCK else None)
                for needed in run.stage.inputs
                if needed.stage in run.recipe.inputs and needed.stage != "explanations"
            },
        )


def _sizes(settings: Any) -> tuple[int | None, int | None]:
    """Sample sizes for judges that read: (explanations, null explanations); None: every latent."""
    own = settings.llm
    return smaller(own.sample), smaller(own.sample, own.null_sample)


def _is_null_of(null: str, name: str) -> bool:
    """Whether the block `null` has null explanations of the explainer whose block is `name`."""
    null, name = explainer_of(null), explainer_of(name)
    return null.startswith(NULL) and not name.startswith(NULL) and base_of(null) == name


def _write(blocks: Blocks, scorer: str, *rest: Any) -> Written:
    """`write_scores` for the scorer of that name."""
    return write_scores(blocks, SCORERS[scorer], *rest)


# Runs in a process of the pool ------------------------------------------------------------------------------------

_vocabulary: Vocabulary | None = None


def _prepare(vocabulary: Vocabulary) -> None:
    """Keeps the vocabulary for all tasks of this process."""
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
    """As `_write`, with judges that this process makes from the vocabulary it was started with.

    `names`: the judges.
    """
    assert _vocabulary is not None
    judges = [judge_named(name, _vocabulary) for name in names]
    same = {block.name: judges for block in explained}
    return write_scores(blocks, SCORERS[scorer], explained, asked, arms, chosen, same)


score_detection = runner(SCORERS["detection"])
score_fuzzing = runner(SCORERS["fuzzing"])
score_embedding = runner(SCORERS["embedding"])
