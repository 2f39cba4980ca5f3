"""Scorers: what is asked about explanations, and the judges that answer from an explanation alone.

`SCORERS` is the list of all scorers, `JUDGES` that of judges of contexts; what a row of the first is, `base.py` says.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from latentgloss.errors import SettingsError
from latentgloss.schema import SPLITS
from latentgloss.scorers import detection, fuzzing, trials
from latentgloss.scorers.base import JudgeOfContexts, Scorer
from latentgloss.scorers.cosine import CosineJudge, cosine_judge
from latentgloss.scorers.executed import ExecutedJudge
from latentgloss.scorers.intruder import IntruderJudge, MarkedTokens
from latentgloss.scorers.llm_judge import LlmJudge
from latentgloss.settings import LLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.corpus import Corpus
    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.protocols import Judge, Task
    from latentgloss.scorers.base import Plan
    from latentgloss.settings import EmbeddingSettings, IntruderSettings, JudgedSettings, LlmJudgeSettings
    from latentgloss.work import Work
    from latentgloss.workspace import Workspace

JUDGES: dict[str, type[JudgeOfContexts]] = {"executed": ExecutedJudge}
JUDGES_OF_TRIALS: dict[str, type[JudgeOfContexts]] = {"tokens": MarkedTokens}
"""Of intruder detection, which has no explanation to execute."""


def judge_named(name: str, vocabulary: Vocabulary) -> Judge:
    """A judge that needs nothing but the vocabulary. Raises SettingsError if there is none of that name."""
    return _judge(name)(vocabulary)


def language_judge(workspace: Workspace, name: str, task: Task, model: str, settings: LlmJudgeSettings) -> LlmJudge:
    """A language model as judge of contexts of a subject model. Loads neither.

    Raises InputError if there is no language model of that name, SettingsError if its scores would pass for others'.
    """
    _check_name(name)
    return LlmJudge(workspace.language_model(name), task, lambda: workspace.vocabulary(model), settings)


def intruder_judge(workspace: Workspace, name: str, model: str) -> IntruderJudge:
    """The same, of trials."""
    _check_name(name)
    return IntruderJudge(workspace.language_model(name), lambda: workspace.vocabulary(model))


def _check_name(name: str) -> None:
    if name in {*JUDGES, *JUDGES_OF_TRIALS, CosineJudge.name}:
        raise SettingsError(
            f"a language model is called {name!r}, as another judge is",
            expected="names that tell judges apart in score tables",
            todo="rename it in the registry",
        )


def judges_of_contexts(task: Task, work: Work, settings: JudgedSettings) -> list[Judge]:
    """Judges of a scorer by name. Raises SettingsError or InputError for one there is none of."""
    vocabulary = work.workspace.vocabulary(work.model.name)
    return [
        language_judge(work.workspace, name.removeprefix(LLM), task, work.model.name, settings.llm)
        if name.startswith(LLM)
        else judge_named(name, vocabulary)
        for name in settings.judges
    ]


def identities_of_contexts(task: Task, workspace: Workspace, settings: JudgedSettings) -> dict[str, dict[str, Any]]:
    """Raises SettingsError or InputError for a judge there is none of."""
    return {
        name: language_judge(workspace, name.removeprefix(LLM), task, "", settings.llm).identity()
        if name.startswith(LLM)
        else _judge(name).identity()
        for name in settings.judges
    }


def judges_of_trials(work: Work, settings: IntruderSettings) -> list[Judge]:
    """Judges of intruder detection by name. Raises SettingsError or InputError for one there is none of."""
    workspace = work.workspace
    return [
        intruder_judge(workspace, name.removeprefix(LLM), work.model.name)
        if name.startswith(LLM)
        else _judge(name, JUDGES_OF_TRIALS)(workspace.vocabulary(work.model.name))
        for name in settings.judges
    ]


def language_judges(work: Work, scorer: str) -> list[LlmJudge | IntruderJudge]:
    """Those judges of a scorer's settings that ask a language model."""
    judges = SCORERS[scorer].judges(work, getattr(work.settings, scorer))
    return [judge for judge in judges if isinstance(judge, LlmJudge | IntruderJudge)]


def identities_of_trials(workspace: Workspace, settings: IntruderSettings) -> dict[str, dict[str, Any]]:
    """Raises SettingsError or InputError for a judge there is none of."""
    return {
        name: intruder_judge(workspace, name.removeprefix(LLM), "").identity()
        if name.startswith(LLM)
        else _judge(name, JUDGES_OF_TRIALS).identity()
        for name in settings.judges
    }


def judges_of_vectors(work: Work, settings: EmbeddingSettings) -> list[Judge]:
    """The cosine judge with each embedder of the settings. Raises InputError for an embedder there is none of."""
    workspace, corpus = work.workspace, work.workspace.corpus(work.input("resolved_saes"))
    return [cosine_judge(workspace, work.model.name, corpus, name, work.progress) for name in settings.embedders]


def identities_of_vectors(workspace: Workspace, settings: EmbeddingSettings) -> dict[str, dict[str, Any]]:
    """Raises InputError for an embedder there is none of."""
    judge = {"judge": CosineJudge.name, "version": CosineJudge.version}
    if len(settings.embedders) > 1:
        judge["arms"] = "its own"  # an arm was left out for all when it was unfair to one: such results are stale
    return {name: {**judge, "embedder": workspace.embedder(name).identity()} for name in settings.embedders}


def _judge(name: str, known: dict[str, type[JudgeOfContexts]] = JUDGES) -> type[JudgeOfContexts]:
    if name not in known:
        raise SettingsError(
            f"judge {name!r} is unknown",
            expected=f"one of {', '.join(sorted(known))}, or {LLM}NAME with the name of a language model",
            todo="correct `judges` of the scorer in latentgloss.toml",
        )
    return known[name]


def _judged(task: Task, plan: Callable[[Work, Corpus, tuple[str, ...]], Plan]) -> Scorer:
    judges, identities = partial(judges_of_contexts, task), partial(identities_of_contexts, task)
    return Scorer(task, "balanced_accuracy", SPLITS, plan, judges, identities)


SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        _judged("detection", detection.plan),
        _judged("fuzzing", fuzzing.plan),
        Scorer("intruder", "accuracy", ("test",), trials.plan, judges_of_trials, identities_of_trials),
        Scorer("embedding", "auroc", ("test",), detection.plan_of_vectors, judges_of_vectors, identities_of_vectors),
    )
}


def identities(workspace: Workspace, scorer: str) -> dict[str, dict[str, Any]]:
    """Per judge of a scorer, everything that decides its answers. Raises SettingsError."""
    settings = getattr(workspace.settings, scorer)
    found: dict[str, dict[str, Any]] = SCORERS[scorer].identities(workspace, settings)
    return found
