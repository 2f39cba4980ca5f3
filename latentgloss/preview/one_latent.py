"""One latent, one prompt: what a language model would be shown, what it replies, what is read of it.

What belongs here: what `latentgloss try` finds out. It goes the way the stages go, over what is current in the store;
nothing is computed for other latents and nothing is stored (the reply cache of an engine apart).
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
from latentgloss.llm.asking import Query, ask_all
from latentgloss.llm.opening import capabilities_of
from latentgloss.llm.prompts.templates import messages_sha256
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.recipe import Recipe
from latentgloss.pipeline.stage_run import StageRun
from latentgloss.scores.judges.intruder import IntruderJudge
from latentgloss.scores.judges.reading import LlmJudge
from latentgloss.scores.scorers.intruder import Trials
from latentgloss.scores.table import SCORERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from latentgloss.config.settings import JudgedSettings
    from latentgloss.protocols import Capability, LanguageModel, Message, Reply, Request
    from latentgloss.workspace import Workspace


@dataclass(frozen=True)
class Trial:
    """A prompt and, unless it was only looked at, what came of it."""

    about: dict[str, Any]
    """Who was asked about what."""
    messages: tuple[Message, ...]
    prompt_sha256: str
    status: str = ""
    """Empty: nothing was sent."""
    reason: str = ""
    reply: str = ""
    repaired: bool = False
    """Whether `reply` is that to a second request."""
    value: Any = None
    """What was read: the explanation, or what a judge says: for each passage whether the latent is active, or in which
    place, from 1, the intruder is."""
    truth: list[bool] | int = field(default_factory=list)
    """The same, as it is."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class SilentModel:
    """A language model that answers nothing, in whose name prompts can be looked at."""

    def __init__(self, name: str, capabilities: frozenset[Capability] = frozenset()) -> None:
        self.name, self.capabilities = name, capabilities

    def identity(self) -> dict[str, Any]:
        return {"model": self.name}

    def count_tokens(self, requests: Sequence[Request]) -> list[int] | None:
        return None

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        raise LanguageModelError(f"nothing was to be sent to {self.name!r}")


def try_explainer(workspace: Workspace, partition: str, latent: int, explainer: str, *, dry: bool) -> Trial:
    """The explanation of one latent, made anew. `dry`: the prompt only.

    Raises MissingInput if contexts have not been sampled, InputError for a latent that is not explained, or an
    explainer that asks nobody.
    """
    make = EXPLAINERS.get(explainer)
    asking = [name for name, kind in EXPLAINERS.items() if issubclass(kind, LlmExplainer)]
    if make is None or not issubclass(make, LlmExplainer):
        raise InputError(f"explainer {explainer!r} has no prompt of its own", expected=f"one of {', '.join(asking)}")
    run = as_it_stands(workspace, "explanations", partition)
    settings, tools = workspace.settings.explanations, workspace.tools(partition)
    if dry:
        nobody = _nobody(workspace, settings.model or "nobody")
        settings = settings.model_copy(update={"model": nobody.name})
        tools = replace(tools, language_model=lambda name: nobody)
    made = make(settings, workspace.vocabulary(run.model.name), tools)
    evidence = _evidence(workspace, run, latent, made)
    about = {"latent": latent, "explainer": explainer, "model": made.model.name}
    return _tried(made.model, made.query(made.request(evidence)), about, dry=dry)


def _nobody(workspace: Workspace, name: str) -> SilentModel:
    """In the place of a model of that name, which need not be there: what it is asked follows from what it can do."""
    spec = workspace.registry.language_models.get(name)
    return SilentModel(name) if spec is None else SilentModel(name, capabilities_of(spec))


def _evidence(workspace: Workspace, run: StageRun[Workspace], latent: int, made: LlmExplainer) -> Any:
    contexts = run.input("sampled_contexts")
    block = f"{latent // schema.BLOCK:06d}"
    if block in contexts.manifest.blocks:
        corpus = workspace.corpus(run.input("resolved_saes"))
        evidence = BlockEvidence(run, corpus, block, made.needs)
        for one in evidence.of([latent]):
            return one
        known = evidence.eligibility.filter(latent=latent)
        if known.height:
            raise InputError(
                f"latent {latent} of {run.partition} is {known['status'][0]} ({known['reason'][0]})",
                expected="an eligible latent",
            )
    raise InputError(
        f"latent {latent} of {run.partition} was not asked for",
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
    """One prompt of a judge about one latent, of the test split in its first arm; prompt `number` from 0.

    The explanation is `text`, or the stored one of `explainer` (default: the first of the settings). Raises
    MissingInput if something has not been materialised, InputError for what there is none of. Of `intruder` it is one
    trial, without any explanation.
    """
    if scorer == "intruder":
        return _try_intruder(workspace, partition, latent, judge, number, dry=dry)
    if scorer not in ("detection", "fuzzing"):
        raise InputError(f"scorer {scorer!r} has no prompts", expected="detection, fuzzing or intruder")
    run = as_it_stands(
        workspace, f"{scorer}_scores", partition, without={"explanations"} if text is not None else set()
    )
    settings: JudgedSettings = getattr(workspace.settings, scorer)
    if text is None:
        explainer = explainer or workspace.settings.explanations.explainers[0]
        text = _stored(run, latent, explainer)
    name = judge.removeprefix(LLM)
    model: LanguageModel = _nobody(workspace, name) if dry else workspace.language_model(name)
    made = LlmJudge(model, SCORERS[scorer].name, lambda: workspace.vocabulary(run.model.name), settings.llm)
    plan = SCORERS[scorer].plan(run, workspace.corpus(run.input("resolved_saes")), ("test",))
    everything = plan.ask(f"{latent // schema.BLOCK:06d}") if _has_block(run, latent) else None
    mine = (
        None
        if everything is None
        else everything.where(
            (pl.col("latent") == latent) & (pl.col("arm") == plan.arms[0]) & (pl.col("status") == "ok")
        )
    )
    if mine is None or mine.rows.is_empty():
        raise InputError(f"{scorer} asks nothing about latent {latent} of {partition}", expected="an eligible latent")
    rows = mine.rows.group_by("split", "part", maintain_order=True).agg("truth")
    step = settings.llm.per_prompt
    truths = [truth[i : i + step] for truth in rows["truth"].to_list() for i in range(0, len(truth), step)]
    questions = mine.questions(made.task, {latent: (text, None)})
    prompts = [query for question in questions for query in made.queries(question)]
    _check(number, len(prompts))
    about = {
        "latent": latent,
        "scorer": scorer,
        "judge": name,
        "explainer": explainer,
        "explanation": text,
        "negatives": plan.arms[0],
        "prompt": number,
        "prompts": len(prompts),
    }
    tried = _tried(model, prompts[number], about, dry=dry)
    return replace(tried, value=tried.value and tried.value.active, truth=truths[number])


def _try_intruder(workspace: Workspace, partition: str, latent: int, judge: str, number: int, *, dry: bool) -> Trial:
    """One of the trials that were made, `number` from 0."""
    run = as_it_stands(workspace, "intruder_scores", partition)
    name = judge.removeprefix(LLM)
    model: LanguageModel = _nobody(workspace, name) if dry else workspace.language_model(name)
    made = IntruderJudge(model, lambda: workspace.vocabulary(run.model.name))
    corpus = workspace.corpus(run.input("resolved_saes"))
    table, asked = Trials(run, corpus, only=latent)(f"{latent // schema.BLOCK:06d}")
    trials = table.filter(status="ok").to_dicts()
    if not trials:
        why = table["reason"].unique().sort().to_list()
        raise InputError(
            f"there is no trial of latent {latent} of {partition}" + "".join(f"; {reason}" for reason in why)
        )
    _check(number, len(trials))
    (question,) = islice(asked.questions("intruder", {latent: ("", None)}), number, number + 1)
    (planned,) = made.planned(question)
    trial = trials[number]
    about = {
        "latent": latent,
        "scorer": "intruder",
        "judge": name,
        "trial": trial["trial"],
        "decile": trial["decile"],
        "intruder_latent": trial["intruder_latent"],
        "prompt": number,
        "prompts": len(trials),
    }
    tried = _tried(model, planned.query, about, dry=dry)
    return replace(tried, value=tried.value and tried.value.place + 1, truth=trial["place"])


def _check(number: int, prompts: int) -> None:
    if not 0 <= number < prompts:
        raise InputError(f"there is no prompt {number}", expected=f"0 to {prompts - 1}")


def _has_block(run: StageRun[Workspace], latent: int) -> bool:
    return f"{latent // schema.BLOCK:06d}" in run.input("sampled_contexts").manifest.blocks


def _stored(run: StageRun[Workspace], latent: int, explainer: str) -> str:
    version = run.input("explanations")
    name = block_name(f"{latent // schema.BLOCK:06d}", explainer)
    known = sorted(set(map(explainer_of, version.manifest.blocks)))
    if explainer not in known:
        raise InputError(f"there are no explanations of {explainer!r}", expected=f"one of {', '.join(known)}")
    rows = version.read(schema.EXPLANATIONS, name).filter(latent=latent) if name in version.manifest.blocks else None
    if rows is None or rows.is_empty():
        raise InputError(f"latent {latent} of {run.partition} was not asked for")
    if rows["status"][0] != "ok":
        raise InputError(
            f"{explainer} has no explanation of latent {latent}: {rows['status'][0]} ({rows['reason'][0]})",
            todo="judge a sentence of your own (--text)",
        )
    return str(rows["explanation"][0])


def as_it_stands(
    workspace: Workspace, name: str, partition: str, without: set[str] | None = None
) -> StageRun[Workspace]:
    """What a stage would work on, with the current version of each input, whatever it was made from."""
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


def _tried(model: LanguageModel, query: Query[Any], about: dict[str, Any], *, dry: bool) -> Trial:
    messages = query.request.messages
    prompt = Trial(about, messages, messages_sha256(messages))
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
