"""Explanations: one row per latent asked for and explainer, always.

What belongs here: running each explainer over the evidence of a block of latents, then the null explanations (other
latents' texts, `partners.py`). Writes `explanations`. What is read is in `evidence.py`, what an explainer makes of it
in `explainers/`.

Nothing of the test split is read here: its parts are not among this stage's inputs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.contexts.latent_sample import latents_in_turn, of_block, sampled
from latentgloss.errors import ExplainerError
from latentgloss.explanations.evidence import BlockEvidence
from latentgloss.explanations.explainers import EXPLAINERS, NULL, base_of, block_name, in_order
from latentgloss.explanations.explainers.base import Evidence, Explained, Explainer
from latentgloss.explanations.nulls import Pool, null_explanations, table
from latentgloss.machine import concurrency
from latentgloss.pipeline.processes import with_processes
from latentgloss.statistics.counter_rng import counter_hash
from latentgloss.store.digests import frame_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from latentgloss.config.settings import ExplanationSettings
    from latentgloss.corpus.reader import Corpus
    from latentgloss.explanations.explainers.base import Tools
    from latentgloss.models.vocabulary import Vocabulary
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.store import Version


CHUNK, AHEAD = 16, 32
"""Latents handed to a process at a time, and how many such chunks are under way while one is waited for."""
_TABLES = (schema.EXPLANATIONS,)


class ExplanationNeeds(Protocol):
    """What this stage needs that is not in the store."""

    def corpus(self, resolved: Version) -> Corpus: ...

    def vocabulary(self, model: str) -> Vocabulary: ...

    def tools(self, partition: str) -> Tools: ...


def _explain(run: StageRun[ExplanationNeeds], pool: Executor | None) -> None:
    run.check_windows()
    contexts, resolved = run.input("sampled_contexts"), run.input("resolved_saes")
    settings, tools = run.settings.explanations, run.resources.tools(run.partition)
    vocabulary = run.resources.vocabulary(run.model.name)
    blocks = sorted(contexts.manifest.blocks)
    names = in_order(settings)
    bases, nulls = ([name for name in names if name.startswith(NULL) == null] for null in (False, True))
    chosen = sampled(contexts.read(schema.ELIGIBILITY), settings.llm.sample, settings.seed)
    counts = dict.fromkeys(names, 0)
    total = len(blocks) * len(bases)
    for number, name in enumerate(bases):
        base = EXPLAINERS[name](settings, vocabulary, tools)
        of = chosen if base.asks else None
        for done, due in enumerate(_explained_blocks(run, name, base, of, pool), number * len(blocks) + 1):
            counts[name] += _put(run, block_name(due.block, name), due.recipe, due.rows)
            run.progress(done, total, "blocks of latents")
    in_turn = latents_in_turn(run.sae, resolved.json("resolved.json")["n_latents"])
    for base_name, together in groupby(nulls, key=base_of):
        order = in_turn
        if EXPLAINERS[base_name].asks and chosen is not None:  # who is asked about next is the sample's to say
            order = in_turn[np.argsort(counter_hash(settings.seed, in_turn), kind="stable")]
        texts = Pool.of(run.draft.scan(schema.EXPLANATIONS).filter(explainer=base_name), order)
        of_base = list(together)
        for block in blocks:
            rows = run.draft.read(schema.EXPLANATIONS, block_name(block, base_name))
            near = run.input("activation_cache").read(schema.LATENTS, block)
            for name, frame in null_explanations(rows, near, texts, of_base, settings.seed).items():
                # What it is made from is spread over the SAE: its recipe is what came out.
                recipe = run.block_recipe(settings={"explainer": name}, content=frame_sha256(frame))
                of_null = block_name(block, name)
                there = run.draft.reuse(of_null, recipe, _TABLES)
                counts[name] += _put(run, of_null, recipe, None if there else frame)
    run.facts = {"explained": counts}
    tokens = pl.col("prompt_tokens", "completion_tokens").cast(pl.Int64)  # Polars would add them up in 32 bits
    taken = run.draft.scan(schema.EXPLANATIONS).select(tokens.sum(), pl.col("cost_usd").sum())
    spent = taken.collect().row(0, named=True)
    if any(spent.values()):
        run.facts["spent"] = spent
    run.note_unanswered(schema.EXPLANATIONS)


def _put(run: StageRun[ExplanationNeeds], name: str, recipe: dict[str, Any], rows: pl.DataFrame | None) -> int:
    """Sees to it that the draft has a block (`rows` is None if it has); how many explanations are in it."""
    if rows is not None:
        run.draft.put(name, recipe, _TABLES, {"explanations": rows})
    return int((run.draft.read(schema.EXPLANATIONS, name)["status"] == "ok").sum())


@dataclass
class _Due:
    """A block that an explainer has to explain, or has explained."""

    block: str
    recipe: dict[str, Any]
    evidence: BlockEvidence
    asked: list[int] | None
    """The eligible latents that are to be explained; None: all."""
    latents: list[int] = field(default_factory=list)
    """What its explainer was given."""
    rows: pl.DataFrame | None = None


def _explained_blocks(
    run: StageRun[ExplanationNeeds], name: str, base: Explainer, chosen: np.ndarray | None, pool: Executor | None
) -> Iterator[_Due]:
    """Every block in order, with its rows unless the draft has them already.

    The explainer gets the latents of all blocks as one stream: where it asks a language model about few latents of
    each, many blocks are under way, and between two blocks nobody waits for the last reply of the first.
    """
    settings, tools = run.settings.explanations, run.resources.tools(run.partition)
    contexts, negatives = run.input("sampled_contexts"), run.input("sampled_negatives")
    corpus = run.resources.corpus(run.input("resolved_saes"))
    shown = {"explainer": name, **base.identity(settings, tools)}
    going: deque[_Due] = deque()

    def coming() -> Iterator[Evidence]:
        for block in sorted(contexts.manifest.blocks):
            evidence = BlockEvidence(run, corpus, block, base.needs)
            asked = None if chosen is None else of_block(chosen, block)
            recipe = run.block_recipe(
                settings=shown,
                resolved_saes=run.input("resolved_saes").content(("cache",)),
                contexts=contexts.content(("eligibility", "explain"), block),
                negatives=negatives.content(("explain",), block),
                length=run.settings.contexts.length,
                **{need: evidence.content(need) for need in sorted(base.needs)},
                **({} if asked is None else {"sample": asked}),
            )
            due = _Due(block, recipe, evidence, asked)
            going.append(due)
            if not run.reuse(block_name(block, name), recipe, _TABLES):
                eligible = evidence.eligibility.filter(status="eligible")["latent"].to_list()
                due.latents, due.rows = sorted(eligible if asked is None else asked), schema.EXPLANATIONS.empty()
                yield from evidence.of(due.latents)

    def finished(found: list[Explained]) -> Iterator[_Due]:
        """Takes from `found` what the blocks in front have been waiting for."""
        while going and len(found) >= len(going[0].latents):
            due = going.popleft()
            mine = found[: len(due.latents)]
            if [one.latent for one in mine] != due.latents:
                break
            if due.rows is not None:
                due.rows = _rows(name, due.evidence, mine, due.asked)
            del found[: len(mine)]
            yield due

    waiting: list[Explained] = []
    for one in _explained(name, base, coming(), pool):
        waiting.append(one)
        yield from finished(waiting)
    yield from finished(waiting)
    if going or waiting:
        raise ExplainerError(
            f"explainer {name!r} left {len(going)} blocks without rows and {len(waiting)} rows without a block",
            expected="one row per latent it was given, in order",
            todo="this is a defect of the explainer; please report it",
        )


_prepared: tuple[ExplanationSettings, Vocabulary] | None = None


def _prepare(settings: ExplanationSettings, vocabulary: Vocabulary) -> None:
    global _prepared
    _prepared = settings, vocabulary


def _arguments(run: StageRun[ExplanationNeeds]) -> tuple[ExplanationSettings, Vocabulary]:
    return run.settings.explanations, run.resources.vocabulary(run.model.name)


explain = with_processes(_explain, _prepare, _arguments)
"""Runner of `explanations`."""


def _explain_there(name: str, evidence: list[Evidence]) -> list[Explained]:
    """Runs in a process of the pool."""
    assert _prepared is not None
    return list(EXPLAINERS[name](*_prepared).explain(evidence))


def _explained(name: str, base: Explainer, evidence: Iterator[Evidence], pool: Executor | None) -> Iterator[Explained]:
    """One explanation per piece of evidence, in order."""
    if pool is None or not base.computes:
        yield from base.explain(evidence)
        return

    def begun() -> Iterator[tuple[int, Callable[[], list[Explained]]]]:
        while chunk := list(islice(evidence, CHUNK)):
            yield 1, pool.submit(_explain_there, name, chunk).result

    for chunk in concurrency.run_in_order(begun(), AHEAD):
        yield from chunk


def _rows(name: str, evidence: BlockEvidence, found: list[Explained], asked: list[int] | None) -> pl.DataFrame:
    """One row per latent asked for: what was found, and for the others why they were not explained.

    `asked`: the eligible latents that were to be; None: all.
    """
    skipped = [
        Explained(latent, status, reason)
        for latent, status, reason in evidence.eligibility.select("latent", "status", "reason").iter_rows()
        if status != "eligible"
    ]
    if asked is not None:
        left = set(evidence.eligibility.filter(status="eligible")["latent"]).difference(asked)
        skipped += [Explained(latent, "not_sampled", "not in the explainer's sample of latents") for latent in left]
    return table(name, sorted([*found, *skipped], key=lambda e: e.latent))
