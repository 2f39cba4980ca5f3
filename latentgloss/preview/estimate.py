"""What the language models of a workspace will be asked, and what that will cost, before anything is spent.

What belongs here: what will be asked, and what the counts (`prompt_counts.py`) come to. Prompts are made the way the
stages make them, from the contexts and explanations that are current. No weights are loaded, nothing is sent, nothing
is written.

- **Exact** are requests, those already answered (in the reply cache), and prompt tokens, where the inputs are there.
- **At most:** tokens of replies (`max_tokens` each), explanations that judges will read and nobody has written yet.
- **Sampled** where more latents than `most` are asked about: by hash, from at most `BLOCKS` blocks, with an interval.
- **Not counted:** the second request where a reply cannot be read; how much that would be at most is said beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.config.settings import LLM
from latentgloss.contexts.latent_sample import sampled, smaller
from latentgloss.errors import LatentglossError
from latentgloss.explanations.evidence import BlockEvidence
from latentgloss.explanations.explainers import (
    EXPLAINERS,
    NULL,
    base_of,
    block_name,
    explainer_of,
    in_order,
    without_number,
)
from latentgloss.explanations.explainers.replies import LONGEST
from latentgloss.llm.ledger import Cost
from latentgloss.preview.counts import (
    AGAIN,
    CACHED,
    COMPLETION,
    PROMPT,
    REQUESTS,
    Counter,
    Counts,
    extrapolated,
    sample_of,
)
from latentgloss.preview.one_latent import as_it_stands
from latentgloss.scores.table import SCORERS, language_judges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import UInt32

    from latentgloss.explanations.explainers.base import AskingExplainer
    from latentgloss.llm.asking import Planned
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.workspace import State, Workspace


STAGES_THAT_ASK = ("explanations", "detection_scores", "fuzzing_scores", "intruder_scores")
MOST = 256
"""Latents counted per stage and partition, where nothing else is said."""
CHUNK = 32
"""Latents whose prompts are held at a time: a judge has hundreds for each."""
UNWRITTEN = 1000
"""Tokens that an explanation is taken to have which no model writes and nobody has made yet: long for a pattern."""

Progress = Callable[[str, int, int], None]
"""Told the stage and partition, latents counted, latents to count."""


@dataclass
class Estimate:
    """What one model will be asked by one stage for one partition."""

    stage: str
    model: str
    partition: str
    state: str
    because: str
    problem: str = ""
    """Why nothing could be counted; then all numbers are 0."""
    latents: int = 0
    """That it is asked about."""
    counted: int = 0
    """Of those, the ones whose prompts were counted; the rest is extrapolated."""
    requests: int = 0
    cached: int = 0
    """Answered already: neither sent nor paid for. Everything below is of the others."""
    prompt_tokens: int = 0
    prompt_tokens_low: int = 0
    prompt_tokens_high: int = 0
    """Interval of 95 % where latents were sampled, else both ends are `prompt_tokens`."""
    completion_tokens_most: int = 0
    completion_tokens_expected: int | None = None
    """By what the model's replies in this stage had so far; None: there are none."""
    repair_tokens_most: int = 0
    """What comes on top if every reply has to be asked for once more."""
    paid: bool = False
    usd_expected: float | None = None
    usd_most: float = 0.0
    """Without second requests, at full price: what a vendor asks less for (cached prefixes) is not foreseen."""
    usd_most_repaired: float = 0.0
    """With a second request for every one."""
    tokens_per_second: float | None = None
    hours: float | None = None
    """At that throughput, of prompts and replies (expected, else at most)."""
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether requests and prompt tokens are counts."""
        return not self.notes and not self.problem


def estimate(
    workspace: Workspace,
    partitions: Iterable[str] | None = None,
    *,
    most: int = MOST,
    tokens_per_second: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Estimate]:
    """One row per stage, partition and model of what is stale or missing and asks a language model, in stage order.

    `most`: latents whose prompts are counted per stage and partition. Whatever prevents counting is a row, too.
    """
    states = workspace.states()
    chosen = None if partitions is None else set(partitions)
    for state in states:
        if state.asset not in STAGES_THAT_ASK or state.state == "fresh":
            continue
        if chosen is not None and state.partition not in chosen:
            continue
        try:
            rows = _of_stage(workspace, state, states, most, progress)
        except LatentglossError as e:
            names = ", ".join(asked_models(workspace, state.asset))
            rows = [Estimate(state.asset, names, state.partition, state.state, state.because, str(e))] if names else []
        for row in rows:
            if not row.problem:
                _priced(workspace, row, tokens_per_second)
            yield row


def asked_models(workspace: Workspace, stage: str) -> list[str]:
    """Names of the language models that a stage asks by the settings."""
    settings = workspace.settings
    if stage == "explanations":
        asking = [n for n in in_order(settings.explanations) if EXPLAINERS[base_of(n)].asks]
        names = [settings.explanations.model or "(none named)"] if asking else []
        if "best_of_k" in asking and settings.explanations.best_of_k.judge:
            names.append(settings.explanations.best_of_k.judge)
        return list(dict.fromkeys(names))
    judges = getattr(settings, stage.removesuffix("_scores")).judges
    return [name.removeprefix(LLM) for name in judges if name.startswith(LLM)]


def total(rows: Sequence[Estimate]) -> dict[str, Any]:
    """Sums over rows. Intervals of different rows are taken to be independent."""
    added = (
        "latents",
        "requests",
        "cached",
        "prompt_tokens",
        "completion_tokens_most",
        "repair_tokens_most",
        "usd_most",
        "usd_most_repaired",
    )
    found: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in added}
    half = float(np.sqrt(sum((row.prompt_tokens_high - row.prompt_tokens) ** 2 for row in rows)))
    found["prompt_tokens_low"] = max(0, round(found["prompt_tokens"] - half))
    found["prompt_tokens_high"] = round(found["prompt_tokens"] + half)
    for name in ("completion_tokens_expected", "usd_expected", "hours"):
        values = [getattr(row, name) for row in rows if not row.problem and row.requests > row.cached]
        found[name] = None if None in values else sum(values)
    found["not_counted"] = sum(bool(row.problem) for row in rows)
    return found


def warnings(workspace: Workspace, rows: Sequence[Estimate]) -> list[str]:
    """What will keep paid models from answering: no budget, or one that is too small."""
    paid = [row for row in rows if row.paid and row.requests > row.cached]
    if not paid:
        return []
    ledger, names = workspace.ledger, ", ".join(sorted({row.model for row in paid}))
    usd = sum(row.usd_most_repaired for row in paid)
    tokens = sum(row.prompt_tokens_high + row.completion_tokens_most + row.repair_tokens_most for row in paid)
    spent = ledger.spent()
    enough = f"[budget] usd = {_rounded_up(spent.usd + usd)} in latentgloss.toml is enough for all of it"
    if not ledger.limited:
        return [f"{names} is paid for and there is no budget: runs will refuse to start. {enough}."]
    found: list[str] = []
    for unit, limit, already, needed in (
        ("usd", ledger.usd, spent.usd, usd),
        ("tokens", ledger.tokens, float(spent.tokens), float(tokens)),
    ):
        if limit is not None and already + needed > limit:
            found.append(
                f"{names}: the budget is {unit} = {limit:,}, of which {already:,.2f} are spent, and this may take "
                f"{needed:,.2f}: a run may end before it is done (what was answered is kept)."
            )
    return found


def _rounded_up(usd: float) -> str:
    return f"{np.ceil(usd * 100) / 100:.2f}"


@dataclass
class _Source:
    """What a stage will ask about which latents."""

    latents: UInt32[np.ndarray, " latents"]
    """Ascending."""
    planned: Callable[[str, list[int]], Iterator[tuple[int, list[Planned]]]]
    """Of some latents of a block, those that are asked about."""
    notes: list[str]


def _of_stage(workspace: Workspace, state: State, states: list[State], most: int, progress: Progress) -> list[Estimate]:
    if not asked_models(workspace, state.asset):
        return []
    run = as_it_stands(workspace, state.asset, state.partition, without={"explanations"})
    source = (_explaining if state.asset == "explanations" else _judging)(run, states)
    behind = sorted(
        {s.asset for s in states if s.partition == state.partition and s.state != "fresh" and s.asset != "explanations"}
        & {i.stage for i in run.stage.inputs}
    )
    if behind:
        source.notes.append(f"counted from {', '.join(behind)} as they are; they are not fresh")
    counted, blocks = sample_of(source.latents, most)
    counts: list[Counts] = []
    counter = Counter(workspace)
    what = f"{state.asset} {state.partition}"
    for block in np.unique(counted // schema.BLOCK):
        mine = [int(latent) for latent in counted[counted // schema.BLOCK == block]]
        for chunk in (mine[i : i + CHUNK] for i in range(0, len(mine), CHUNK)):
            of_latent: dict[int, list[Planned]] = {latent: [] for latent in chunk}
            for latent, planned in source.planned(f"{block:06d}", chunk):
                of_latent[latent] += planned
            for latent in chunk:
                counts.append(counter.count(of_latent[latent]))
                progress(what, len(counts), len(counted))
    if len(counted) < len(source.latents):
        source.notes.append(
            f"extrapolated from {len(counted):,} of {len(source.latents):,} latents, in {blocks:,} blocks"
        )
    source.notes.extend(sorted(counter.uncounted))
    rows: list[Estimate] = []
    names = dict.fromkeys([*(name for of in counts for name in of), *asked_models(workspace, state.asset)])
    for name in names:
        each = np.array([of.get(name, np.zeros(5)) for of in counts]).reshape(-1, 5)
        number = counted // schema.BLOCK
        every = len(source.latents) and blocks == len(np.unique(source.latents // schema.BLOCK))
        sums, half = extrapolated(each, number, len(source.latents), whole_blocks=bool(every))
        n = [round(float(value)) for value in sums]
        rows.append(
            Estimate(
                state.asset,
                name,
                state.partition,
                state.state,
                state.because,
                "",
                len(source.latents),
                len(counted),
                n[REQUESTS],
                n[CACHED],
                n[PROMPT],
                max(0, round(n[PROMPT] - half)),
                round(n[PROMPT] + half),
                n[COMPLETION],
                repair_tokens_most=n[AGAIN] + n[COMPLETION],
                notes=list(source.notes),
            )
        )
    return rows


def _explaining(run: StageRun[Workspace], states: list[State]) -> _Source:
    workspace, settings = run.resources, run.settings.explanations
    corpus, vocabulary = workspace.corpus(run.input("resolved_saes")), workspace.vocabulary(run.model.name)
    tools = workspace.tools(run.partition)
    bases = dict.fromkeys(base_of(name) for name in settings.explainers)
    makers: list[Any] = [EXPLAINERS[name](settings, vocabulary, tools) for name in bases if EXPLAINERS[name].asks]
    asking: list[AskingExplainer] = makers
    eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY)

    def planned(block: str, latents: list[int]) -> Iterator[tuple[int, list[Planned]]]:
        for made in asking:
            for one in BlockEvidence(run, corpus, block, made.needs).of(latents):
                yield one.latent, made.planned(one)

    return _Source(_population(eligibility, smaller(settings.llm.sample), settings.seed), planned, [])


def _population(eligibility: pl.DataFrame, sample: int | None, seed: int) -> UInt32[np.ndarray, " latents"]:
    few = sampled(eligibility, sample, seed)
    eligible = eligibility.filter(status="eligible")["latent"].sort().to_numpy()
    return eligible if few is None else few


def _judging(run: StageRun[Workspace], states: list[State]) -> _Source:
    workspace, scorer = run.resources, SCORERS[run.stage.name.removesuffix("_scores")]
    settings = getattr(run.settings, scorer.name)
    judges = language_judges(run, scorer.name)
    plan = scorer.plan(run, workspace.corpus(run.input("resolved_saes")), scorer.splits)
    eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY)
    texts = _Texts(run, eligibility) if "explanations" in {i.stage for i in run.stage.inputs} else _NoTexts()
    notes = texts.notes(states)
    llm = getattr(settings, "llm", None)  # intruder detection has one sample, and no nulls
    of_nulls = sampled(eligibility, llm.null_sample, settings.seed) if llm is not None else None
    nulls = None if of_nulls is None else set(of_nulls.tolist())
    ask = lru_cache(maxsize=1)(plan.ask)  # for one part of a block after the other

    def planned(block: str, latents: list[int]) -> Iterator[tuple[int, list[Planned]]]:
        asked = ask(block).of(pl.Series(latents, dtype=pl.UInt32)).where(pl.col("split") == "test")
        for explainer in texts.explainers:
            mine = [n for n in latents if nulls is None or n in nulls or not explainer.startswith(NULL)]
            found, unwritten = texts.of(explainer, block, mine)
            put = asked.of(pl.Series(list(found), dtype=pl.UInt32))
            for judge in judges:
                for question in put.questions(scorer.name, found):
                    yield question.latent, [replace(p, unwritten=unwritten) for p in judge.planned(question)]

    few = smaller(settings.sample, llm.sample) if llm is not None else settings.sample
    return _Source(_population(eligibility, few, settings.seed), planned, notes)


class _NoTexts:
    """Of a scorer that judges latents without explanations."""

    explainers = ("none",)

    def notes(self, states: list[State]) -> list[str]:
        return []

    def of(self, explainer: str, block: str, latents: list[int]) -> tuple[dict[int, tuple[str, str | None]], int]:
        return dict.fromkeys(latents, ("", None)), 0


class _Texts:
    """The explanations that judges will read: those there are, and blanks for those to come."""

    def __init__(self, run: StageRun[Workspace], eligibility: pl.DataFrame) -> None:
        self.run, self.settings = run, run.settings.explanations
        self.explainers = in_order(self.settings)
        self.version = run.input("explanations") if "explanations" in run.recipe.inputs else None
        few = sampled(eligibility, self.settings.llm.sample, self.settings.seed)
        self.few = None if few is None else set(few.tolist())
        there = set() if self.version is None else set(map(explainer_of, self.version.manifest.blocks))
        self.missing = [e for e in self.explainers if e not in there]

    def notes(self, states: list[State]) -> list[str]:
        found = []
        if self.missing:
            longest = ", ".join(f"{e} {self._unwritten(e):,}" for e in dict.fromkeys(map(without_number, self.missing)))
            found.append(f"explanations that do not exist yet are taken to be as long as can be, in tokens: {longest}")
        of_mine = [s for s in states if s.partition == self.run.partition and s.asset == "explanations"]
        if self.version is not None and any(s.state != "fresh" for s in of_mine):
            found.append("counted with the explanations there are; they are not fresh")
        return found

    def _unwritten(self, explainer: str) -> int:
        base = EXPLAINERS[base_of(explainer)]
        if not base.asks:
            return UNWRITTEN
        llm = self.settings.llm
        return min(llm.max_tokens_cot if base_of(explainer) == "llm_cot" else llm.max_tokens, LONGEST)

    def of(self, explainer: str, block: str, latents: list[int]) -> tuple[dict[int, tuple[str, str | None]], int]:
        """Explanation and program by latent; and how many tokens are still missing in each."""
        if self.version is None or explainer in self.missing:
            asked = self.few if EXPLAINERS[base_of(explainer)].asks else None
            chosen = [latent for latent in latents if asked is None or latent in asked]
            return dict.fromkeys(chosen, ("", None)), self._unwritten(explainer)
        name = block_name(block, explainer)
        if name not in self.version.manifest.blocks:
            return {}, 0
        rows = self.version.read(schema.EXPLANATIONS, name)
        rows = rows.filter(pl.col("latent").is_in(latents), status="ok").sort("latent")
        return dict(zip(rows["latent"], rows.select("explanation", "program").iter_rows(), strict=True)), 0


def _priced(workspace: Workspace, row: Estimate, tokens_per_second: float | None) -> None:
    """Fills in what the replies so far, prices and throughput say."""
    so_far = [
        (entry["answered"], entry["completion_tokens"])
        for entry in workspace.ledger.totals()
        if entry["model"] == row.model and entry["stage"] == row.stage
    ]
    answered, completion = (sum(column) for column in zip(*so_far, strict=True)) if so_far else (0, 0)
    to_send = row.requests - row.cached
    if answered:
        row.completion_tokens_expected = min(round(to_send * completion / answered), row.completion_tokens_most)
    spec = workspace.registry.language_models.get(row.model)
    if spec is not None and spec.paid and spec.prices is not None:
        row.paid = True
        if row.completion_tokens_expected is not None:
            row.usd_expected = Cost.of(spec.prices, row.prompt_tokens, 0, row.completion_tokens_expected).usd
        row.usd_most = Cost.of(spec.prices, row.prompt_tokens_high, 0, row.completion_tokens_most).usd
        again = Cost.of(spec.prices, row.repair_tokens_most - row.completion_tokens_most, 0, row.completion_tokens_most)
        row.usd_most_repaired = row.usd_most + again.usd
    else:
        row.usd_expected = 0.0
    row.tokens_per_second = tokens_per_second or (spec.tokens_per_second if spec is not None else None)
    if row.tokens_per_second is not None:
        reply = row.completion_tokens_most
        if row.completion_tokens_expected is not None:
            reply = row.completion_tokens_expected
        row.hours = (row.prompt_tokens + reply) / row.tokens_per_second / 3600
