"""`SCORERS`: every scorer, one row each.

What belongs here: the list of scorers, and the two questions that other rooms have about it: which judges of a scorer
ask a language model, and what decides the answers of its judges.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from latentgloss.schema import SPLITS
from latentgloss.scores.judges.intruder import IntruderJudge
from latentgloss.scores.judges.opening import (
    identities_of_contexts,
    identities_of_trials,
    identities_of_vectors,
    judges_of_contexts,
    judges_of_trials,
    judges_of_vectors,
)
from latentgloss.scores.judges.reading import LlmJudge
from latentgloss.scores.scorers import detection, fuzzing, intruder
from latentgloss.scores.scorers.base import Scorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.config import Settings
    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Task
    from latentgloss.scores.scorers.base import JudgeNeeds, Plan, ScoreNeeds


def language_judges(run: StageRun[ScoreNeeds], scorer: str) -> list[LlmJudge | IntruderJudge]:
    """The judges of a scorer that ask a language model, by the settings of the run."""
    judges = SCORERS[scorer].judges(run, getattr(run.settings, scorer))
    return [judge for judge in judges if isinstance(judge, LlmJudge | IntruderJudge)]


def _judged(task: Task, plan: Callable[[StageRun[ScoreNeeds], Corpus, tuple[str, ...]], Plan]) -> Scorer:
    """A scorer of explanations whose judgements are yes or no."""
    judges, identities = partial(judges_of_contexts, task), partial(identities_of_contexts, task)
    return Scorer(task, "balanced_accuracy", SPLITS, plan, judges, identities)


SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        _judged("detection", detection.plan),
        _judged("fuzzing", fuzzing.plan),
        Scorer("intruder", "accuracy", ("test",), intruder.plan, judges_of_trials, identities_of_trials),
        Scorer("embedding", "auroc", ("test",), detection.plan_of_vectors, judges_of_vectors, identities_of_vectors),
    )
}


def identities(needs: JudgeNeeds, settings: Settings, scorer: str) -> dict[str, dict[str, Any]]:
    """Everything that decides the answers of a scorer's judges, by the judge's name in the settings.

    Raises SettingsError or InputError for an unknown judge, language model or embedder.
    """
    found: dict[str, dict[str, Any]] = SCORERS[scorer].identities(needs, getattr(settings, scorer))
    return found
