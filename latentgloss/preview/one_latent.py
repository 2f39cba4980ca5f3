"""Tries one prompt about one latent: what a language model is shown, what it replies, and what is read of the reply.

What belongs here: what `latentgloss try` shows. Prompts are made the way the stages make them, from the current
versions in the store. Nothing is computed for other latents, and nothing is stored except in the reply cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.config.settings import LLM
from latentgloss.errors import InputError, LanguageModelError, MissingInput
from latentgloss.explanations.evidence import BlockEvidence
from latentgloss.explanations.explainers import EXPLAINERS, block_name, explainer_of
from latentgloss.explanations.explainers.llm import LlmExplainer
from latentgloss.llm.as_sent import as_sent
from latentgloss.llm.asking import Query, ask_all
from latentgloss.llm.opening import capabilities_of
from latentgloss.llm.prompts.templates import messages_sha256
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.recipe import Recipe
from latentgloss.pipeline.stage_run import StageRun
from latentgloss.scores.judges.intruder import IntruderJudge
from latentgloss.scores.judges.reading import LlmJudge
from latentgloss.scores.scorers.base import Texts
from latentgloss.scores.scorers.intruder import Trials as IntruderTrials
from latentgloss.scores.table import SCORERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.config.settings import JudgedSettings
    from latentgloss.explanations.explainers.base import Evidence
    from latentgloss.protocols import Capability, LanguageModel, Message, Reply, Request
    from latentgloss.scores.scorers.base import Asked
    from latentgloss.workspace import Workspace


@dataclass(frozen=True)
class Trial:
    """A prompt and, if it was sent, its result. `messages` are those that the model is sent."""

    about: dict[str, Any]
    """The latent, the explainer or scorer, the model, and what else identifies the prompt."""
    messages: tuple[Message, ...]
    prompt_sha256: str
    status: str = ""
    """Status of the query; empty if nothing was sent."""
    reason: str = ""
    reply: str = ""
    repaired: bool = False
    """Whether `reply` is the reply to a second request."""
    value: Any = None
    """What was read of the reply: the explanation; or, per passage, whether the judge takes the latent to be active; or
    the place, from 1, of the passage that the judge takes to be the intruder."""
    truth: list[bool] | int = field(default_factory=list)
    """The right answer, in the form of a judge's `value`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class SilentModel:
    """A language model that answers no request: it stands in for a model whose prompts are only to be shown."""

    def __init__(self, name: str, spec: LanguageModelSpec | None = None) -> None:
        """`spec`: the model's registry entry, if it has one."""
        self.name, self.spec = name, spec
        self.capabilities: frozenset[Capability] = frozenset() if spec is None else capabilities_of(spec)

    def identity(self) -> dict[str, Any]:
        """Its name only."""
        return {"model": self.name}

    def count_tokens(self, requests: Sequence[Request]) -> list[int] | None:
        """None, because it has no tokenizer."""
        return None

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Raises LanguageModelError."""
        raise LanguageModelError(
            f"a request was sent to {self.name!r} although prompts were only to be shown",
            todo="this is a defect of latentgloss; please report it",
        )


def try_explainer(workspace: Workspace, partition: str, latent: int, explainer: str, *, dry: bool) -> Trial:
    """Has an explainer explain one latent. `dry`: makes the prompt and sends nothing.

    Raises MissingInput if contexts have not been sampled, and InputError if the latent is not eligible or the explainer
    has no prompt.
    """
    make = EXPLAINERS.get(explainer)
    with_prompts = [name for name, kind in EXPLAINERS.items() if issubclass(kind, LlmExplainer)]
    if make is None or not issubclass(make, LlmExplainer):
        raise InputError(
            f"explainer {explainer!r} has no prompt of its own", expected=f"one of {', '.join(with_prompts)}"
        )
    run = as_it_stands(workspace, "explanations", partition)
    settings, tools = workspace.settings.explanations, workspace.tools(partition)
    if dry:
        silent = _silent_model(workspace, settings.model or "(none named)")
        settings = settings.model_copy(update={"model": silent.name})
        tools = replace(tools, language_model=lambda name: silent)
    made = make(settings, workspace.vocabulary(run.model.name), tools)
    evidence = _evidence(workspace, run, latent, made)
    about = {"latent": latent, "explainer": explainer, "model": made.model.name}
    return _trial(made.model, made.query(made.request(evidence)), about, dry=dry)


def _silent_model(workspace: Workspace, name: str) -> SilentModel:
    """A stand-in for the model of this name, with its capabilities, because these shape the prompt.

    The model itself need not be reachable, nor in the registry.
    """
    return SilentModel(name, workspace.registry.language_models.get(name))


def _evidence(workspace: Workspace, run: StageRun[Workspace], latent: int, explainer: LlmExplainer) -> Evidence:
    """The evidence of one latent. Raises InputError if the latent is not selected or not eligible."""
    contexts = run.input("sampled_contexts")
    block = _block(latent)
    if block in contexts.manifest.blocks:
        corpus = workspace.corpus(run.input("resolved_saes"))
        evidence = BlockEvidence(run, corpus, block, explainer.needs)
        for found in evidence.of([latent]):
            return found
        known = evidence.eligibility.filter(latent=latent)
        if known.height:
            raise InputError(
                f"latent {latent} of {run.partition} is {known['status'][0]} ({known['reason'][0]})",
                expected="an eligible latent",
            )
    raise _not_selected(run, latent)


def _not_selected(run: StageRun[Workspace], latent: int) -> InputError:
    """The error for a latent that is not among those of the SAE's registry entry."""
    return InputError(
        f"latent {latent} of {run.partition} is not selected",
        expected="a latent that `latents` of the registry entry selects",
    )


def try_judge(
    workspace: Workspace,
    partition: str,
    latent: int,
    judge: str,
    *,
    scorer: str = "detection",
    explainer: str | None = None,
    text: str | None = None,
    number: int = 0,
    dry: bool,
) -> Trial:
    """Sends a judge one of its prompts about one latent: prompt `number`, from 0, of the test split in the first arm.

    The explanation is `text`, or else the stored one of `explainer` (default: the first explainer in the settings). For
    scorer `intruder`, the prompt is one trial and has no explanation. `dry`: makes the prompt and sends nothing. Raises
    MissingInput if a stage has not been materialised, and InputError if latent, scorer, explanation or prompt does not
    exist.
    """
    if scorer == "intruder":
        return _try_intruder(workspace, partition, latent, judge, number, dry=dry)
    if scorer not in ("detection", "fuzzing"):
        raise InputError(f"scorer {scorer!r} has no prompts", expected="detection, fuzzing or intruder")
    not_needed = {"explanations"} if text is not None else set()
    run = as_it_stands(workspace, f"{scorer}_scores", partition, without=not_needed)
    settings: JudgedSettings = getattr(workspace.settings, scorer)
    if text is None:
        explainer = explainer or workspace.settings.explanations.explainers[0]
        text = _stored_text(run, latent, explainer)
    name, model = _judging_model(workspace, judge, dry=dry)
    made = LlmJudge(model, SCORERS[scorer].name, lambda: workspace.vocabulary(run.model.name), settings.llm)
    arm, asked = _asked(workspace, run, scorer, latent)
    rows = asked.rows.group_by("split", "part", maintain_order=True).agg("truth")
    step = settings.llm.per_prompt
    truths = [truth[i : i + step] for truth in rows["truth"].to_list() for i in range(0, len(truth), step)]
    questions = asked.questions(made.task, {latent: Texts(text, None, "")})
    prompts = [query for question in questions for query in made.queries(question)]
    _check_number(number, len(prompts))
    about = {
        "latent": latent,
        "scorer": scorer,
        "judge": name,
        "explainer": explainer,
        "explanation": text,
        "negatives": arm,
        "prompt": number,
        "prompts": len(prompts),
    }
    trial = _trial(model, prompts[number], about, dry=dry)
    return replace(trial, value=trial.value and trial.value.active, truth=truths[number])


def _judging_model(workspace: Workspace, judge: str, *, dry: bool) -> tuple[str, LanguageModel]:
    """The name of a judge without the prefix `llm:`, and its language model; silent if `dry`."""
    name = judge.removeprefix(LLM)
    return name, _silent_model(workspace, name) if dry else workspace.language_model(name)


def _asked(workspace: Workspace, run: StageRun[Workspace], scorer: str, latent: int) -> tuple[str, Asked]:
    """The first arm of a scorer, and the test contexts in it that judges are asked about for one latent.

    Raises InputError if there are none.
    """
    plan = SCORERS[scorer].plan(run, workspace.corpus(run.input("resolved_saes")), ("test",))
    arm = plan.arms[0]
    if _block(latent) in run.input("sampled_contexts").manifest.blocks:
        chosen = (pl.col("latent") == latent) & (pl.col("arm") == arm) & (pl.col("status") == "ok")
        asked = plan.ask(_block(latent)).where(chosen)
        if not asked.rows.is_empty():
            return arm, asked
    raise InputError(f"{scorer} asks nothing about latent {latent} of {run.partition}", expected="an eligible latent")


def _try_intruder(workspace: Workspace, partition: str, latent: int, judge: str, number: int, *, dry: bool) -> Trial:
    """Sends a judge trial `number`, from 0, of intruder detection for one latent."""
    run = as_it_stands(workspace, "intruder_scores", partition)
    name, model = _judging_model(workspace, judge, dry=dry)
    made = IntruderJudge(model, lambda: workspace.vocabulary(run.model.name))
    corpus = workspace.corpus(run.input("resolved_saes"))
    table, asked = IntruderTrials(run, corpus, only=latent)(_block(latent))
    drawn = table.filter(status="ok").to_dicts()
    if not drawn:
        reasons = table["reason"].unique().sort().to_list()
        raise InputError(
            f"there is no trial of latent {latent} of {partition}" + "".join(f"; {reason}" for reason in reasons)
        )
    _check_number(number, len(drawn))
    (question,) = islice(asked.questions("intruder", {latent: Texts("", None, "")}), number, number + 1)
    (planned,) = made.planned(question)
    chosen = drawn[number]
    about = {
        "latent": latent,
        "scorer": "intruder",
        "judge": name,
        "trial": chosen["trial"],
        "decile": chosen["decile"],
        "intruder_latent": chosen["intruder_latent"],
        "prompt": number,
        "prompts": len(drawn),
    }
    trial = _trial(model, planned.query, about, dry=dry)
    return replace(trial, value=trial.value and trial.value.place + 1, truth=chosen["place"])


def _check_number(number: int, prompts: int) -> None:
    """Raises InputError if there is no prompt of this number."""
    if not 0 <= number < prompts:
        raise InputError(f"there is no prompt {number}", expected=f"0 to {prompts - 1}")


def _block(latent: int) -> str:
    """The name of a latent's block."""
    return f"{latent // schema.BLOCK:06d}"


def _stored_text(run: StageRun[Workspace], latent: int, explainer: str) -> str:
    """The stored explanation of one latent. Raises InputError if there is none."""
    version = run.input("explanations")
    name = block_name(_block(latent), explainer)
    known = sorted(set(map(explainer_of, version.manifest.blocks)))
    if explainer not in known:
        raise InputError(f"there are no explanations of {explainer!r}", expected=f"one of {', '.join(known)}")
    rows = version.read(schema.EXPLANATIONS, name).filter(latent=latent) if name in version.manifest.blocks else None
    if rows is None or rows.is_empty():
        raise _not_selected(run, latent)
    if rows["status"][0] != "ok":
        raise InputError(
            f"{explainer} has no explanation of latent {latent}: {rows['status'][0]} ({rows['reason'][0]})",
            todo="give an explanation of your own with --text",
        )
    return str(rows["explanation"][0])


def as_it_stands(
    workspace: Workspace, name: str, partition: str, without: set[str] | None = None
) -> StageRun[Workspace]:
    """A run of a stage on the current version of each input, even if the versions do not belong together.

    `without`: inputs that may be missing. Raises MissingInput if another input has no version.
    """
    stage = STAGES[name]
    inputs: dict[str, Any] = {}
    for needed in stage.inputs:
        version = workspace.store.current(needed.stage, partition)
        if version is not None:
            inputs[needed.stage] = {partition: version}
        elif needed.stage not in (without or set()):
            raise MissingInput(
                f"{needed.stage} of {partition} has not been materialised", todo=f"materialise {needed.stage} first"
            )
    run = StageRun(
        stage,
        partition,
        Recipe({}, inputs),
        workspace,
        settings=workspace.settings,
        registry=workspace.registry,
        store=workspace.store,
    )
    run.check_windows()
    return run


def _trial(model: LanguageModel, query: Query[Any], about: dict[str, Any], *, dry: bool) -> Trial:
    """The trial of one query; `dry`: without sending it."""
    spec = getattr(model, "spec", None)
    shown = query.request if spec is None else as_sent(spec, query.request)
    prompt = Trial(about, shown.messages, messages_sha256(query.request.messages))
    if dry:
        return prompt
    (result,) = ask_all(model, [query])
    return replace(
        prompt,
        status=result.status,
        reason=result.reason,
        reply=result.reply,
        repaired=result.repaired,
        value=result.value,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        cost_usd=result.cost_usd,
    )
