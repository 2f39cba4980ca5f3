"""Explanations: one row per latent asked for and explainer, always.

What belongs here: running each explainer over the evidence of a block of latents, and the null explanations (another
latent's text). Writes `explanations`. What is read is in `evidence.py`, what an explainer makes of it in `explainers/`.

Nothing of the test split is read here: its parts are not among this stage's inputs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.evidence import BlockEvidence
from latentgloss.explainers import EXPLAINERS, NULL, Evidence, Explained, Explainer, base_of, in_order
from latentgloss.hashing import counter_hash, json_sha256
from latentgloss.llm.ledger import charged_to
from latentgloss.sampling import of_block, sampled
from latentgloss.work import attempt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jaxtyping import UInt32

    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.settings import ExplanationSettings
    from latentgloss.work import Work

CHUNK = 16
"""Latents handed to a process at a time."""

NULL_COSINE = 0.5
"""A null's text comes from a latent whose decoder cosine is below this: twins would be no baseline."""


def block_name(block: int, explainer: str) -> str:
    """Name of a block of one explainer, also its file name."""
    return f"{block:06d}-{explainer.replace(':', '.')}"


def explain(works: Sequence[Work]) -> Iterator[Work]:
    """Runner of `explanations`. Works of one model share the processes that explainers compute in."""
    for _, group in groupby(sorted(works, key=lambda work: work.model.name), key=lambda work: work.model.name):
        together = list(group)
        with contextlib.ExitStack() as stack:
            pool: list[Executor | None] = []

            def prepare(first: Work = together[0], stack: contextlib.ExitStack = stack) -> None:
                pool.append(stack.enter_context(_processes(first)))  # noqa: B023

            error = attempt(prepare)
            for work in together:
                work.start()
                with charged_to(work.stage.name, work.partition):
                    work.error = error or attempt(partial(_explain, work, *pool))
                yield work


def _explain(work: Work, pool: Executor | None) -> None:
    work.check_windows()
    contexts, negatives = work.input("sampled_contexts"), work.input("sampled_negatives")
    resolved, cache = work.input("resolved_saes"), work.input("activation_cache")
    corpus = work.workspace.corpus(resolved)
    vocabulary = work.workspace.vocabulary(work.model.name)
    settings, tools = work.settings.explanations, work.workspace.tools(work.partition)
    length = work.settings.contexts.length
    blocks = sorted(int(name) for name in contexts.manifest.blocks)
    names = in_order(settings.explainers)
    chosen = sampled(contexts.read(schema.ELIGIBILITY), settings.llm.sample, settings.seed)
    counts = dict.fromkeys(names, 0)
    for done, block in enumerate(blocks):
        name_of_block = f"{block:06d}"
        evidence = BlockEvidence(work, corpus, name_of_block)
        consumed = {
            "resolved_saes": resolved.content(("cache",)),
            "contexts": contexts.content(("eligibility", "explain"), name_of_block),
            "negatives": negatives.content(("explain",), name_of_block),
            "length": length,
        }
        rows: dict[str, pl.DataFrame] = {}
        for name in names:
            base = EXPLAINERS[base_of(name)](settings, vocabulary, tools)
            shown = {need: evidence.content(need) for need in sorted(base.needs)}
            recipe = work.block_recipe(
                settings={"explainer": name, **base.identity(settings, tools)}, **consumed, **shown
            )
            asked = of_block(chosen, name_of_block) if base.asks and chosen is not None else None
            if asked is not None:
                recipe["sample"] = asked
            if name.startswith(NULL):
                neighbours = cache.content(("latents",), name_of_block)
                recipe |= {"seed": settings.seed, "of": json_sha256(recipe), "latents": neighbours}
            if not work.draft.reuse(block_name(block, name), recipe, (schema.EXPLANATIONS,)):
                if name.startswith(NULL):
                    twins = cache.read(schema.LATENTS, name_of_block).select(
                        "latent", "neighbours", "neighbour_cosines"
                    )
                    frame = null_explanations(rows[base_of(name)], twins, name, settings.seed)
                else:
                    shown_to = evidence.showing(base.needs)
                    found = _explained(name, base, shown_to if asked is None else shown_to.of(asked), pool)
                    frame = _rows(name, evidence, found, asked)
                work.draft.put(block_name(block, name), recipe, (schema.EXPLANATIONS,), {"explanations": frame})
            rows[name] = work.draft.read(schema.EXPLANATIONS, block_name(block, name))
            counts[name] += int((rows[name]["status"] == "ok").sum())
        work.progress(done + 1, len(blocks), "blocks of latents")
    work.facts = {"explained": counts}
    tokens = pl.col("prompt_tokens", "completion_tokens").cast(pl.Int64)  # Polars would add them up in 32 bits
    taken = work.draft.scan(schema.EXPLANATIONS).select(tokens.sum(), pl.col("cost_usd").sum())
    spent = taken.collect().row(0, named=True)
    if any(spent.values()):
        work.facts["spent"] = spent


@contextlib.contextmanager
def _processes(work: Work) -> Iterator[Executor | None]:
    """Processes with the explainers in them; None where one process is all there is to be."""
    n = work.settings.machine.workers or os.cpu_count() or 1
    if n == 1:
        yield None
        return
    # Not fork: the model's threads may be alive in this process, and a forked child would wait for them for ever.
    context = multiprocessing.get_context("spawn")
    arguments = (work.settings.explanations, work.workspace.vocabulary(work.model.name))
    with ProcessPoolExecutor(n, context, _prepare, arguments) as pool:
        yield pool


_prepared: tuple[ExplanationSettings, Vocabulary] | None = None


def _prepare(settings: ExplanationSettings, vocabulary: Vocabulary) -> None:
    global _prepared
    _prepared = settings, vocabulary


def _explain_there(name: str, evidence: list[Evidence]) -> list[Explained]:
    """Runs in a process of the pool."""
    assert _prepared is not None
    return list(EXPLAINERS[name](*_prepared).explain(evidence))


def _explained(name: str, base: Explainer, evidence: Iterable[Evidence], pool: Executor | None) -> list[Explained]:
    if pool is None or not base.computes:
        return list(base.explain(evidence))
    everything = list(evidence)
    chunks = [everything[i : i + CHUNK] for i in range(0, len(everything), CHUNK)]
    return [found for part in pool.map(_explain_there, [name] * len(chunks), chunks) for found in part]


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
    return _frame(name, sorted([*found, *skipped], key=lambda e: e.latent))


def _frame(name: str, rows: list[Explained], source: list[int | None] | None = None) -> pl.DataFrame:
    return schema.EXPLANATIONS.frame(
        {
            "latent": row.latent,
            "explainer": name,
            "status": row.status,
            "reason": row.reason,
            "explanation": row.text,
            "program": row.program,
            "source_latent": source[i] if source else None,
            "context_ids": list(row.context_ids),
            "model": row.model,
            "prompt_sha256": row.prompt_sha256,
            "reply": row.reply,
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "cost_usd": row.cost_usd,
        }
        for i, row in enumerate(rows)
    )


def null_explanations(rows: pl.DataFrame, neighbours: pl.DataFrame, name: str, seed: int) -> pl.DataFrame:
    """For each latent, the explanation of another latent of its block (docs/methods.md, null explanations).

    The partner has status ok, another text and decoder cosine < .5; among those the one of the lowest hash of
    (seed, latent, partner), so that adding a latent to the block changes at most the latents it becomes partner of.
    `rows` are the block's rows of `schema.EXPLANATIONS`; `neighbours` has latent, neighbours, neighbour_cosines.
    """
    twins = {
        latent: {n for n, c in zip(ids, cosines, strict=True) if c >= NULL_COSINE}
        for latent, ids, cosines in neighbours.iter_rows()
    }
    given = [
        Explained(r["latent"], r["status"], r["reason"], r["explanation"], r["program"], tuple(r["context_ids"]))
        for r in rows.iter_rows(named=True)
    ]
    pool = [g for g in given if g.status == "ok"]
    latents: UInt32[np.ndarray, " pool"] = np.array([g.latent for g in pool], dtype=np.uint32)
    out: list[Explained] = []
    sources: list[int | None] = []
    for row in given:
        partner = None
        if row.status == "ok":
            order = np.argsort(counter_hash(seed, row.latent, latents), kind="stable")
            partner = next(
                (
                    pool[i]
                    for i in order
                    if pool[i].latent != row.latent
                    and pool[i].text != row.text
                    and pool[i].latent not in twins.get(row.latent, ())
                ),
                None,
            )
        if row.status != "ok":
            out.append(replace(row, text="", program=None, context_ids=()))
        elif partner is None:
            out.append(Explained(row.latent, "no_partner", "no other latent of its block has another text"))
        else:
            out.append(replace(partner, latent=row.latent))
        sources.append(partner.latent if partner else None)
    return _frame(name, out, sources)
