"""How many requests, tokens and USD the stages of a workspace will need from language models, before any is spent.

What belongs here: which stages are estimated, prices, totals and warnings. The queries (`planned.py`) are made the way
the stages make them, from the current contexts and explanations, and counted in `counts.py`. No weights are loaded,
nothing is sent, nothing is written.

- **Exact**, if the inputs exist: requests, requests that the reply cache answers, and prompt tokens.
- **Upper bounds:** the tokens of replies (`max_tokens` each), and of explanations that do not exist yet but that judges
  will read.
- **Sampled**, if a stage asks about more latents than `most`: latents chosen by hash from at most `BLOCKS` blocks are
  counted, and an interval is given.
- **Not included:** the second request where a reply cannot be parsed. The most that this can add is given separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss import schema
from latentgloss.config.settings import LLM
from latentgloss.errors import LatentglossError
from latentgloss.explanations.explainers import EXPLAINERS, base_of, in_order
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
from latentgloss.preview.planned import StageQueries, planned_queries

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import UInt32

    from latentgloss.llm.asking import Planned
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.workspace import State, Workspace


STAGES_THAT_ASK = ("explanations", "detection_scores", "fuzzing_scores", "intruder_scores")
"""Stages that can ask a language model."""
MOST = 256
"""Latents counted per stage and partition, unless the caller says otherwise."""
CHUNK = 32
"""Latents whose prompts are in memory at a time, because a judge has hundreds of prompts per latent."""

Progress = Callable[[str, int, int], None]
"""Called with stage and partition, the number of latents counted, and the number of latents to count."""


@dataclass
class Estimate:
    """What one stage will ask one language model for one partition."""

    stage: str
    model: str
    partition: str
    state: str
    """Why the stage will run: `stale`, `missing` or `failed`."""
    because: str
    problem: str = ""
    """Why nothing could be counted; if set, all numbers are 0."""
    latents: int = 0
    """Latents that the model is asked about."""
    counted: int = 0
    """Latents whose prompts were counted; the rest is extrapolated."""
    requests: int = 0
    cached: int = 0
    """Requests that the reply cache answers: they are neither sent nor paid for. All numbers below leave them out."""
    prompt_tokens: int = 0
    prompt_tokens_low: int = 0
    prompt_tokens_high: int = 0
    """Ends of a 95 % interval if latents were sampled; otherwise both equal `prompt_tokens`."""
    completion_tokens_most: int = 0
    completion_tokens_expected: int | None = None
    """Extrapolated from the model's replies in this stage so far; None if there are none."""
    repair_tokens_most: int = 0
    """Additional tokens if every request has to be repeated."""
    paid: bool = False
    usd_expected: float | None = None
    usd_most: float = 0.0
    """Without second requests and at full price: discounts of vendors (cached prefixes) are not foreseen."""
    usd_most_repaired: float = 0.0
    """With a second request for every request."""
    tokens_per_second: float | None = None
    hours: float | None = None
    """Time for prompts and replies (expected tokens, or else the most) at this throughput."""
    notes: list[str] = field(default_factory=list)
    """Assumptions that make the numbers inexact."""

    @property
    def exact(self) -> bool:
        """Whether requests and prompt tokens are exact counts."""
        return not self.notes and not self.problem


def estimate(
    workspace: Workspace,
    partitions: Iterable[str] | None = None,
    *,
    most: int = MOST,
    tokens_per_second: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Estimate]:
    """One row per stage, partition and model, for each stage that asks a language model and is not fresh.

    Rows come in the order of the stages. `partitions`: only these; None: all. `most`: latents whose prompts are counted
    per stage and partition. If counting is impossible, the row says why (`problem`).
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
                _add_prices(workspace, row, tokens_per_second)
            yield row


def asked_models(workspace: Workspace, stage: str) -> list[str]:
    """Names of the language models that a stage asks, by the settings."""
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
    """Sums over rows. The intervals of different rows are assumed to be independent."""
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
    """Sentences about what will stop runs that ask paid models: no budget, or a budget that may be too small."""
    paid = [row for row in rows if row.paid and row.requests > row.cached]
    if not paid:
        return []
    ledger, names = workspace.ledger, ", ".join(sorted({row.model for row in paid}))
    usd = sum(row.usd_most_repaired for row in paid)
    tokens = sum(row.prompt_tokens_high + row.completion_tokens_most + row.repair_tokens_most for row in paid)
    spent = ledger.spent()
    enough = f"[budget] usd = {_rounded_up(spent.usd + usd)} in latentgloss.toml is enough for all of it"
    if not ledger.limited:
        return [f"{names} is paid for and there is no budget, so runs will refuse to start. {enough}."]
    found: list[str] = []
    for unit, limit, already, needed in (
        ("usd", ledger.usd, spent.usd, usd),
        ("tokens", ledger.tokens, float(spent.tokens), float(tokens)),
    ):
        if limit is not None and already + needed > limit:
            found.append(
                f"{names}: the budget is {unit} = {limit:,}, of which {already:,.2f} are spent, and this may take "
                f"{needed:,.2f}, so a run may end before it is done (replies that have arrived are kept)."
            )
    return found


def _rounded_up(usd: float) -> str:
    """USD with two decimals, rounded up."""
    return f"{np.ceil(usd * 100) / 100:.2f}"


def _of_stage(workspace: Workspace, state: State, states: list[State], most: int, progress: Progress) -> list[Estimate]:
    """One row per model that a stage asks for one partition, without prices."""
    models = asked_models(workspace, state.asset)
    if not models:
        return []
    run = as_it_stands(workspace, state.asset, state.partition, without={"explanations"})
    queries = planned_queries(run, states)
    if behind := _not_fresh(run, states):
        queries.notes.append(f"counted from the current {', '.join(behind)}, which are not fresh")
    latents, blocks = sample_of(queries.latents, most)
    if len(latents) < len(queries.latents):
        queries.notes.append(
            f"extrapolated from {len(latents):,} of {len(queries.latents):,} latents, in {blocks:,} blocks"
        )
    counter = Counter(workspace)
    counts = _count(counter, queries, latents, lambda done: progress(_label(state), done, len(latents)))
    queries.notes.extend(sorted(counter.uncounted))
    every_block = bool(len(queries.latents)) and blocks == len(np.unique(queries.latents // schema.BLOCK))
    rows: list[Estimate] = []
    for model in dict.fromkeys([*(name for of_latent in counts for name in of_latent), *models]):
        each = np.array([of_latent.get(model, np.zeros(5)) for of_latent in counts]).reshape(-1, 5)
        sums, half = extrapolated(each, latents // schema.BLOCK, len(queries.latents), whole_blocks=every_block)
        n = [round(float(value)) for value in sums]
        rows.append(
            Estimate(
                state.asset,
                model,
                state.partition,
                state.state,
                state.because,
                latents=len(queries.latents),
                counted=len(latents),
                requests=n[REQUESTS],
                cached=n[CACHED],
                prompt_tokens=n[PROMPT],
                prompt_tokens_low=max(0, round(n[PROMPT] - half)),
                prompt_tokens_high=round(n[PROMPT] + half),
                completion_tokens_most=n[COMPLETION],
                repair_tokens_most=n[AGAIN] + n[COMPLETION],
                notes=list(queries.notes),
            )
        )
    return rows


def _label(state: State) -> str:
    return f"{state.asset} {state.partition}"


def _not_fresh(run: StageRun[Workspace], states: list[State]) -> list[str]:
    """The inputs of a stage that are not fresh, except explanations, for which `planned.py` has notes of its own."""
    stages = {s.asset for s in states if s.partition == run.partition and s.state != "fresh"}
    return sorted((stages - {"explanations"}) & {i.stage for i in run.stage.inputs})


def _count(
    counter: Counter, queries: StageQueries, latents: UInt32[np.ndarray, " few"], progress: Callable[[int], None]
) -> list[Counts]:
    """The quantities of each of the latents, in order."""
    counts: list[Counts] = []
    for block in np.unique(latents // schema.BLOCK):
        of_block = [int(latent) for latent in latents[latents // schema.BLOCK == block]]
        for chunk in (of_block[i : i + CHUNK] for i in range(0, len(of_block), CHUNK)):
            of_latent: dict[int, list[Planned]] = {latent: [] for latent in chunk}
            for latent, planned in queries.planned(f"{block:06d}", chunk):
                of_latent[latent] += planned
            for latent in chunk:
                counts.append(counter.count(of_latent[latent]))
                progress(len(counts))
    return counts


def _add_prices(workspace: Workspace, row: Estimate, tokens_per_second: float | None) -> None:
    """Adds to a row what follows from the replies so far, the prices and the throughput."""
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
