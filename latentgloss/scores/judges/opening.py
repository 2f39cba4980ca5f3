"""Scorers: what is asked about explanations, and the judges that answer from an explanation alone.

`SCORERS` is the list of all scorers, `JUDGES` that of judges of contexts; what a row of the first is, `base.py` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from latentgloss.config.settings import LLM
from latentgloss.errors import SettingsError
from latentgloss.protocols import Judge
from latentgloss.scores.judges.cosine import CosineJudge, cosine_judge
from latentgloss.scores.judges.executing import ExecutedJudge
from latentgloss.scores.judges.intruder import IntruderJudge, MarkedTokens
from latentgloss.scores.judges.reading import LlmJudge

if TYPE_CHECKING:
    from latentgloss.config.settings import EmbeddingSettings, IntruderSettings, JudgedSettings, LlmJudgeSettings
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Judge, Task
    from latentgloss.scores.scorers.base import JudgeNeeds, ScoreNeeds


JUDGES: dict[str, type[JudgeOfContexts]] = {"executed": ExecutedJudge}
JUDGES_OF_TRIALS: dict[str, type[JudgeOfContexts]] = {"tokens": MarkedTokens}
"""Of intruder detection, which has no explanation to execute."""


def judge_named(name: str, vocabulary: Vocabulary) -> Judge:
    """A judge that needs nothing but the vocabulary. Raises SettingsError if there is none of that name."""
    return judge_type(name)(vocabulary)


def language_judge(needs: JudgeNeeds, name: str, task: Task, model: str, settings: LlmJudgeSettings) -> LlmJudge:
    """A language model as judge of contexts of a subject model. Loads neither.

    Raises InputError if there is no language model of that name, SettingsError if its scores would pass for others'.
    """
    _check_name(name)
    return LlmJudge(needs.language_model(name), task, lambda: needs.vocabulary(model), settings)


def intruder_judge(needs: JudgeNeeds, name: str, model: str) -> IntruderJudge:
    """The same, of trials."""
    _check_name(name)
    return IntruderJudge(needs.language_model(name), lambda: needs.vocabulary(model))


def _check_name(name: str) -> None:
    if name in {*JUDGES, *JUDGES_OF_TRIALS, CosineJudge.name}:
        raise SettingsError(
            f"a language model is called {name!r}, as another judge is",
            expected="names that tell judges apart in score tables",
            todo="rename it in the registry",
        )


def judges_of_contexts(task: Task, run: StageRun[ScoreNeeds], settings: JudgedSettings) -> list[Judge]:
    """Judges of a scorer by name. Raises SettingsError or InputError for one there is none of."""
    vocabulary = run.resources.vocabulary(run.model.name)
    return [
        language_judge(run.resources, name.removeprefix(LLM), task, run.model.name, settings.llm)
        if name.startswith(LLM)
        else judge_named(name, vocabulary)
        for name in settings.judges
    ]


def identities_of_contexts(task: Task, needs: JudgeNeeds, settings: JudgedSettings) -> dict[str, dict[str, Any]]:
    """Raises SettingsError or InputError for a judge there is none of."""
    return {
        name: language_judge(needs, name.removeprefix(LLM), task, "", settings.llm).identity()
        if name.startswith(LLM)
        else judge_type(name).identity()
        for name in settings.judges
    }


def judges_of_trials(run: StageRun[ScoreNeeds], settings: IntruderSettings) -> list[Judge]:
    """Judges of intruder detection by name. Raises SettingsError or InputError for one there is none of."""
    needs = run.resources
    return [
        intruder_judge(needs, name.removeprefix(LLM), run.model.name)
        if name.startswith(LLM)
        else judge_type(name, JUDGES_OF_TRIALS)(needs.vocabulary(run.model.name))
        for name in settings.judges
    ]


def identities_of_trials(needs: JudgeNeeds, settings: IntruderSettings) -> dict[str, dict[str, Any]]:
    """Raises SettingsError or InputError for a judge there is none of."""
    return {
        name: intruder_judge(needs, name.removeprefix(LLM), "").identity()
        if name.startswith(LLM)
        else judge_type(name, JUDGES_OF_TRIALS).identity()
        for name in settings.judges
    }


def judges_of_vectors(run: StageRun[ScoreNeeds], settings: EmbeddingSettings) -> list[Judge]:
    """The cosine judge with each embedder of the settings. Raises InputError for an embedder there is none of."""
    needs, corpus = run.resources, run.resources.corpus(run.input("resolved_saes"))
    return [cosine_judge(needs, run.model.name, corpus, name, run.progress) for name in settings.embedders]


def identities_of_vectors(needs: JudgeNeeds, settings: EmbeddingSettings) -> dict[str, dict[str, Any]]:
    """Raises InputError for an embedder there is none of."""
    judge = {"judge": CosineJudge.name, "version": CosineJudge.version}
    if len(settings.embedders) > 1:
        judge["arms"] = "its own"  # an arm was left out for all when it was unfair to one: such results are stale
    return {name: {**judge, "embedder": needs.embedder(name).identity()} for name in settings.embedders}


def judge_type(name: str, known: dict[str, type[JudgeOfContexts]] = JUDGES) -> type[JudgeOfContexts]:
    if name not in known:
        raise SettingsError(
            f"judge {name!r} is unknown",
            expected=f"one of {', '.join(sorted(known))}, or {LLM}NAME with the name of a language model",
            todo="correct `judges` of the scorer in latentgloss.toml",
        )
    return known[name]


class JudgeOfContexts(Judge, Protocol):
    """A judge that is made of nothing but the model's vocabulary; settings name it, `scorers.JUDGES` knows it."""

    def __init__(self, vocabulary: Vocabulary) -> None: ...

    @classmethod
    def identity(cls) -> dict[str, Any]: ...
