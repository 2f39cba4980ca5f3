"""Scorers: what is asked about explanations, and the judges that answer from an explanation alone.

`SCORERS` is the list of all scorers, `JUDGES` that of judges of contexts; what a row of the first is, `base.py` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import SettingsError
from latentgloss.schema import SPLITS
from latentgloss.scorers import detection, fuzzing
from latentgloss.scorers.base import JudgeOfContexts, Scorer
from latentgloss.scorers.cosine import CosineJudge, cosine_judge
from latentgloss.scorers.executed import ExecutedJudge

if TYPE_CHECKING:
    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.protocols import Judge
    from latentgloss.settings import EmbeddingSettings, JudgedSettings
    from latentgloss.work import Work
    from latentgloss.workspace import Workspace

JUDGES: dict[str, type[JudgeOfContexts]] = {"executed": ExecutedJudge}


def judge_named(name: str, vocabulary: Vocabulary) -> Judge:
    """Raises SettingsError for a judge there is none of."""
    return _judge(name)(vocabulary)


def judges_of_contexts(work: Work, settings: JudgedSettings) -> list[Judge]:
    """Judges that need nothing but the model's vocabulary. Raises SettingsError for a judge there is none of."""
    vocabulary = work.workspace.vocabulary(work.model.name)
    return [judge_named(name, vocabulary) for name in settings.judges]


def identities_of_contexts(workspace: Workspace, settings: JudgedSettings) -> dict[str, dict[str, Any]]:
    """Raises SettingsError for a judge there is none of."""
    return {name: _judge(name).identity() for name in settings.judges}


def judges_of_vectors(work: Work, settings: EmbeddingSettings) -> list[Judge]:
    """The cosine judge with each embedder of the settings. Raises InputError for an embedder there is none of."""
    workspace, corpus = work.workspace, work.workspace.corpus(work.input("resolved_saes"))
    return [cosine_judge(workspace, work.model.name, corpus, name) for name in settings.embedders]


def identities_of_vectors(workspace: Workspace, settings: EmbeddingSettings) -> dict[str, dict[str, Any]]:
    """Raises InputError for an embedder there is none of."""
    judge = {"judge": CosineJudge.name, "version": CosineJudge.version}
    return {name: {**judge, "embedder": workspace.embedder(name).identity()} for name in settings.embedders}


def _judge(name: str) -> type[JudgeOfContexts]:
    if name not in JUDGES:
        raise SettingsError(
            f"judge {name!r} is unknown",
            expected=f"one of {', '.join(sorted(JUDGES))}",
            todo="correct `judges` of the scorer in latentgloss.toml",
        )
    return JUDGES[name]


SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer("detection", "balanced_accuracy", SPLITS, detection.plan, judges_of_contexts, identities_of_contexts),
        Scorer("fuzzing", "balanced_accuracy", SPLITS, fuzzing.plan, judges_of_contexts, identities_of_contexts),
        Scorer("embedding", "auroc", ("test",), detection.plan_of_vectors, judges_of_vectors, identities_of_vectors),
    )
}


def identities(workspace: Workspace, scorer: str) -> dict[str, dict[str, Any]]:
    """Per judge of a scorer, everything that decides its answers. Raises SettingsError."""
    settings = getattr(workspace.settings, scorer)
    found: dict[str, dict[str, Any]] = SCORERS[scorer].identities(workspace, settings)
    return found
