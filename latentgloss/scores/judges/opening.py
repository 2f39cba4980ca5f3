"""Judges by name: makes the judges that the settings of a scorer name, or returns their identities.

What belongs here: the lists of judges that need nothing but a vocabulary (`JUDGES`, `JUDGES_OF_TRIALS`), and the two
functions that each scorer of `table.SCORERS` has for its judges: one that makes them for a run, and one that returns
their identities without loading a model.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from latentgloss.config.settings import EMBEDDER, LLM
from latentgloss.errors import SettingsError
from latentgloss.protocols import Judge
from latentgloss.scores.first_explained import first_explained
from latentgloss.scores.judges.cosine import CENTRE, CosineJudge, cosine_judge
from latentgloss.scores.judges.executing import ExecutedJudge
from latentgloss.scores.judges.intruder import IntruderJudge, MarkedTokens
from latentgloss.scores.judges.labels.judge import LabelJudge
from latentgloss.scores.judges.labels.opening import label_judge
from latentgloss.scores.judges.reading import LlmJudge

if TYPE_CHECKING:
    from latentgloss.config.settings import EmbeddingSettings, IntruderSettings, JudgedSettings, LlmJudgeSettings
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Judge, Task
    from latentgloss.scores.scorers.base import JudgeNeeds, ScoreNeeds


JUDGES: dict[str, type[JudgeOfContexts]] = {"executed": ExecutedJudge}
"""Judges of contexts, for detection and fuzzing."""
JUDGES_OF_TRIALS: dict[str, type[JudgeOfContexts]] = {"tokens": MarkedTokens}
"""Judges of trials, for intruder detection, which has no explanation to execute."""


def judge_named(name: str, vocabulary: Vocabulary) -> Judge:
    """A judge of contexts that needs nothing but the vocabulary. Raises SettingsError for an unknown judge."""
    return judge_type(name)(vocabulary)


def language_judge(needs: JudgeNeeds, name: str, task: Task, model: str, settings: LlmJudgeSettings) -> LlmJudge:
    """The language model `name` as judge of contexts of the subject model `model`. Loads neither.

    Raises InputError for an unknown language model, SettingsError if it has the name of another judge.
    """
    _check_name(name)
    return LlmJudge(needs.language_model(name), task, lambda: needs.vocabulary(model), settings)


def intruder_judge(needs: JudgeNeeds, name: str, model: str) -> IntruderJudge:
    """The language model `name` as judge of trials; loads nothing and raises the same as `language_judge`."""
    _check_name(name)
    return IntruderJudge(needs.language_model(name), lambda: needs.vocabulary(model))


def _check_name(name: str) -> None:
    """Raises SettingsError if scores by this language model could be taken for those of another judge."""
    if name in {*JUDGES, *JUDGES_OF_TRIALS, CosineJudge.name, LabelJudge.name}:
        raise SettingsError(
            f"a language model is named {name!r}, which is the name of another judge",
            expected="different names, since score tables distinguish judges by name",
            todo="rename the language model in the registry",
        )


def judges_of_contexts(task: Task, run: StageRun[ScoreNeeds], settings: JudgedSettings) -> list[Judge]:
    """The judges of contexts that the settings of a scorer name, in that order.

    Raises SettingsError for an unknown judge, InputError for an unknown language model or embedder.
    """
    found: list[Judge] = []
    for name in settings.judges:
        if name.startswith(LLM):
            model = name.removeprefix(LLM)
            found.append(language_judge(run.resources, model, task, run.model.name, settings.llm))
        elif name.startswith(EMBEDDER):
            found.append(label_judge(task, run, name.removeprefix(EMBEDDER)))
        else:
            found.append(judge_named(name, run.resources.vocabulary(run.model.name)))
    return found


def identities_of_contexts(task: Task, needs: JudgeNeeds, settings: JudgedSettings) -> dict[str, dict[str, Any]]:
    """The identities of the judges that `judges_of_contexts` makes, by the name in the settings; raises the same."""
    found: dict[str, dict[str, Any]] = {}
    for name in settings.judges:
        if name.startswith(LLM):
            found[name] = language_judge(needs, name.removeprefix(LLM), task, "", settings.llm).identity()
        elif name.startswith(EMBEDDER):
            embedder = needs.embedder(name.removeprefix(EMBEDDER)).identity()
            found[name] = {"judge": LabelJudge.name, "version": LabelJudge.version, "embedder": embedder}
        else:
            found[name] = judge_type(name).identity()
    return found


def judges_of_trials(run: StageRun[ScoreNeeds], settings: IntruderSettings) -> list[Judge]:
    """The judges of trials that the settings name, in that order; raises the same as `judges_of_contexts`."""
    needs = run.resources
    return [
        intruder_judge(needs, name.removeprefix(LLM), run.model.name)
        if name.startswith(LLM)
        else judge_type(name, JUDGES_OF_TRIALS)(needs.vocabulary(run.model.name))
        for name in settings.judges
    ]


def identities_of_trials(needs: JudgeNeeds, settings: IntruderSettings) -> dict[str, dict[str, Any]]:
    """The identities of the judges that `judges_of_trials` makes, by the name in the settings; raises the same."""
    return {
        name: intruder_judge(needs, name.removeprefix(LLM), "").identity()
        if name.startswith(LLM)
        else judge_type(name, JUDGES_OF_TRIALS).identity()
        for name in settings.judges
    }


def judges_of_vectors(run: StageRun[ScoreNeeds], settings: EmbeddingSettings) -> list[Judge]:
    """The cosine judge with each embedder that the settings name. Raises InputError for an unknown embedder."""
    needs, resolved = run.resources, run.input("resolved_saes")
    corpus = needs.corpus(resolved)

    @cache
    def texts(explainer: str) -> list[str]:
        first = first_explained(run.input("explanations"), explainer, run.sae, resolved, CENTRE)
        return first["explanation"].to_list()

    return [cosine_judge(needs, run.model.name, corpus, name, run.progress, texts) for name in settings.embedders]


def identities_of_vectors(needs: JudgeNeeds, settings: EmbeddingSettings) -> dict[str, dict[str, Any]]:
    """The identities of the judges that `judges_of_vectors` makes, by embedder; raises the same."""
    judge = {"judge": CosineJudge.name, "version": CosineJudge.version}
    if len(settings.embedders) > 1:
        # Formerly, an arm that was unfair to one embedder was left out for all. Results of that time are stale.
        judge["arms"] = "its own"
    return {name: {**judge, "embedder": needs.embedder(name).identity()} for name in settings.embedders}


def judge_type(name: str, known: dict[str, type[JudgeOfContexts]] = JUDGES) -> type[JudgeOfContexts]:
    """The class of a judge by its name among those `known`. Raises SettingsError for an unknown judge."""
    if name not in known:
        more = f"{EMBEDDER}NAME with the name of an embedder, " if known is JUDGES else ""
        raise SettingsError(
            f"judge {name!r} is unknown",
            expected=f"one of {', '.join(sorted(known))}, {more}or {LLM}NAME with the name of a language model",
            todo="correct `judges` in the scorer's settings in latentgloss.toml",
        )
    return known[name]


class JudgeOfContexts(Judge, Protocol):
    """A judge that needs nothing but the subject model's vocabulary. Settings name it by its key in a list above."""

    def __init__(self, vocabulary: Vocabulary) -> None: ...

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Everything that decides its answers."""
