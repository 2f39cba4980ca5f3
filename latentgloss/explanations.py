"""Explanations: one row per latent asked for and explainer, always.

What belongs here: running each explainer over the evidence of a block of latents, then the null explanations (other
latents' texts, `partners.py`). Writes `explanations`. What is read is in `evidence.py`, what an explainer makes of it
in `explainers/`.

Nothing of the test split is read here: its parts are not among this stage's inputs.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import partners, schema
from latentgloss.evidence import BlockEvidence
from latentgloss.explainers import EXPLAINERS, NULL, Evidence, Explained, Explainer, base_of, block_name, in_order
from latentgloss.hashing import counter_hash, frame_sha256
from latentgloss.processes import with_processes
from latentgloss.sampling import of_block, sampled
from latentgloss.windows import latents_in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from latentgloss.explainers.windows import Vocabulary
    from latentgloss.settings import ExplanationSettings
    from latentgloss.work import Work

CHUNK = 16
"""Latents handed to a process at a time."""


def _explain(work: Work, pool: Executor | None) -> None:
    work.check_windows()
    contexts, negatives = work.input("sampled_contexts"), work.input("sampled_negatives")
    resolved, cache = work.input("resolved_saes"), work.input("activation_cache")
    corpus = work.workspace.corpus(resolved)
    vocabulary = work.workspace.vocabulary(work.model.name)
    settings, tools = work.settings.explanations, work.workspace.tools(work.partition)
    length = work.settings.contexts.length
    blocks = sorted(contexts.manifest.blocks)
    names = in_order(settings)
    bases, nulls = ([name for name in names if name.startswith(NULL) == null] for null in (False, True))
    chosen = sampled(contexts.read(schema.ELIGIBILITY), settings.llm.sample, settings.seed)
    counts = dict.fromkeys(names, 0)

    def put(block: str, name: str, recipe: dict[str, Any], make: Callable[[], pl.DataFrame]) -> None:
        block_of = block_name(block, name)
        if not work.draft.reuse(block_of, recipe, (schema.EXPLANATIONS,)):
            work.draft.put(block_of, recipe, (schema.EXPLANATIONS,), {"explanations": make()})
        counts[name] += int((work.draft.read(schema.EXPLANATIONS, block_of)["status"] == "ok").sum())

    for done, block in enumerate(blocks):
        evidence = BlockEvidence(work, corpus, block)
        consumed = {
            "resolved_saes": resolved.content(("cache",)),
            "contexts": contexts.content(("eligibility", "explain"), block),
            "negatives": negatives.content(("explain",), block),
            "length": length,
        }
        for name in bases:
            base = EXPLAINERS[name](settings, vocabulary, tools)
            shown = {need: evidence.content(need) for need in sorted(base.needs)}
            recipe = work.block_recipe(
                settings={"explainer": name, **base.identity(settings, tools)}, **consumed, **shown
            )
            asked = of_block(chosen, block) if base.asks and chosen is not None else None
            if asked is not None:
                recipe["sample"] = asked

            def explained(name: str = name, base: Explainer = base, asked: list[int] | None = asked) -> pl.DataFrame:
                shown_to = evidence.showing(base.needs)  # noqa: B023
                found = _explained(name, base, shown_to if asked is None else shown_to.of(asked), pool)
                return _rows(name, evidence, found, asked)  # noqa: B023

            put(block, name, recipe, explained)
        work.progress(done + 1, len(blocks), "blocks of latents")
    in_turn = latents_in_turn(work.sae, resolved.json("resolved.json")["n_latents"])
    for base_name, together in groupby(nulls, key=base_of):
        of = list(together)
        order = in_turn
        if EXPLAINERS[base_name].asks and chosen is not None:  # who is asked about next is the sample's to say
            order = in_turn[np.argsort(counter_hash(settings.seed, in_turn), kind="stable")]
        everything = work.draft.scan(schema.EXPLANATIONS).filter(explainer=base_name)
        texts = partners.Pool.of(everything, order)
        for block in blocks:
            rows = work.draft.read(schema.EXPLANATIONS, block_name(block, base_name))
            near = cache.read(schema.LATENTS, block)
            for name, frame in partners.null_explanations(rows, near, texts, of, settings.seed).items():
                # What it is made from is spread over the SAE: its recipe is what came out.
                recipe = work.block_recipe(settings={"explainer": name}, content=frame_sha256(frame))
                put(block, name, recipe, lambda frame=frame: frame)  # type: ignore[misc]
    work.facts = {"explained": counts}
    tokens = pl.col("prompt_tokens", "completion_tokens").cast(pl.Int64)  # Polars would add them up in 32 bits
    taken = work.draft.scan(schema.EXPLANATIONS).select(tokens.sum(), pl.col("cost_usd").sum())
    spent = taken.collect().row(0, named=True)
    if any(spent.values()):
        work.facts["spent"] = spent


_prepared: tuple[ExplanationSettings, Vocabulary] | None = None


def _prepare(settings: ExplanationSettings, vocabulary: Vocabulary) -> None:
    global _prepared
    _prepared = settings, vocabulary


def _arguments(work: Work) -> tuple[ExplanationSettings, Vocabulary]:
    return work.settings.explanations, work.workspace.vocabulary(work.model.name)


explain = with_processes(_explain, _prepare, _arguments)
"""Runner of `explanations`."""


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
    return partners.table(name, sorted([*found, *skipped], key=lambda e: e.latent))
