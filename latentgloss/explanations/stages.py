"""The stage `explanations`: exactly one row per selected latent and explainer.

What belongs here: running each explainer over the evidence of all blocks of latents, then making the null explanations
(other latents' texts, `nulls.py`). Writes `explanations`. What is read is in `evidence.py`; how an explanation is made
of it is in `explainers/`.

Nothing of the test split is read here: its parts are not among this stage's inputs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
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
"""Latents handed to a process at a time, and the most chunks under way while the result of one is awaited."""
_TABLES = (schema.EXPLANATIONS,)


class ExplanationNeeds(Protocol):
    """What this stage needs that is not in the store."""

    def corpus(self, resolved: Version) -> Corpus:
        """The tokens that a version of `resolved_saes` refers to."""

    def vocabulary(self, model: str) -> Vocabulary:
        """The vocabulary of a subject model."""

    def tools(self, partition: str) -> Tools:
        """What the explainers of one SAE may use besides evidence."""


def _explain(run: StageRun[ExplanationNeeds], pool: Executor | None) -> None:
    """Runs every explainer on one SAE, then makes the null explanations."""
    run.check_windows()
    settings = run.settings.explanations
    names = in_order(settings)
    bases, nulls = ([name for name in names if name.startswith(NULL) == null] for null in (False, True))
    eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY)
    sample = sampled(eligibility, settings.llm.sample, settings.seed)
    counts = dict.fromkeys(names, 0)
    _run_explainers(run, bases, sample, pool, counts)
    _make_nulls(run, nulls, sample, counts)
    run.facts = {"explained": counts}
    tokens = pl.col("prompt_tokens", "completion_tokens").cast(pl.Int64)  # Polars would add them up in 32 bits
    sums = run.draft.scan(schema.EXPLANATIONS).select(tokens.sum(), pl.col("cost_usd").sum())
    spent = sums.collect().row(0, named=True)
    if any(spent.values()):
        run.facts["spent"] = spent
    run.check_readable(schema.EXPLANATIONS, "explainer", "prompt_sha256")
    run.note_unanswered(schema.EXPLANATIONS)


def _run_explainers(
    run: StageRun[ExplanationNeeds],
    names: list[str],
    sample: np.ndarray | None,
    pool: Executor | None,
    counts: dict[str, int],
) -> None:
    """Stores the blocks of each explainer, and adds the number of explanations in them to `counts`.

    `sample`: the latents that explainers with a language model explain; None: all eligible ones.
    """
    settings, tools = run.settings.explanations, run.resources.tools(run.partition)
    vocabulary = run.resources.vocabulary(run.model.name)
    n_blocks = len(run.input("sampled_contexts").manifest.blocks)
    for number, name in enumerate(names):
        explainer = EXPLAINERS[name](settings, vocabulary, tools)
        blocks = _explained_blocks(run, name, explainer, sample if explainer.asks else None, pool)
        for done, block in enumerate(blocks, number * n_blocks + 1):
            counts[name] += _store_block(run, block_name(block.name, name), block.recipe, block.rows)
            run.progress(done, n_blocks * len(names), "blocks of latents")


def _make_nulls(
    run: StageRun[ExplanationNeeds], names: list[str], sample: np.ndarray | None, counts: dict[str, int]
) -> None:
    """Stores the blocks of the null explanations, and adds the number of explanations in them to `counts`."""
    seed = run.settings.explanations.seed
    blocks = sorted(run.input("sampled_contexts").manifest.blocks)
    in_turn = latents_in_turn(run.sae, run.input("resolved_saes").json("resolved.json")["n_latents"])
    for base, several in groupby(names, key=base_of):
        order = in_turn
        if EXPLAINERS[base].asks and sample is not None:  # a sample grows in the order of this hash
            order = in_turn[np.argsort(counter_hash(seed, in_turn), kind="stable")]
        texts = Pool.of(run.draft.scan(schema.EXPLANATIONS).filter(explainer=base), order)
        names_of_base = list(several)
        for block in blocks:
            rows = run.draft.read(schema.EXPLANATIONS, block_name(block, base))
            neighbours = run.input("activation_cache").read(schema.LATENTS, block)
            for name, frame in null_explanations(rows, neighbours, texts, names_of_base, seed).items():
                # Its sources are spread over the whole SAE, so the block's recipe holds its content instead.
                recipe = run.block_recipe(settings={"explainer": name}, content=frame_sha256(frame))
                null_block = block_name(block, name)
                reused = run.draft.reuse(null_block, recipe, _TABLES)
                counts[name] += _store_block(run, null_block, recipe, None if reused else frame)


def _store_block(run: StageRun[ExplanationNeeds], name: str, recipe: dict[str, Any], rows: pl.DataFrame | None) -> int:
    """Puts a block into the draft unless it is there already (`rows` is None), and counts its explanations."""
    if rows is not None:
        run.draft.put(name, recipe, _TABLES, {"explanations": rows})
    return int((run.draft.read(schema.EXPLANATIONS, name)["status"] == "ok").sum())


@dataclass
class _Block:
    """A block of latents that an explainer explains, or has explained."""

    name: str
    recipe: dict[str, Any]
    evidence: BlockEvidence
    sample: list[int] | None
    """The eligible latents to explain; None: all."""
    latents: list[int]
    """The latents whose evidence the explainer gets, ascending; none if the draft reuses the block."""
    rows: pl.DataFrame | None
    """The block's table once it is explained; None if the draft reuses the block."""


class _BlocksOfExplainer:
    """The blocks of one explainer: gives their evidence as one stream and sorts the explanations into blocks again."""

    def __init__(
        self, run: StageRun[ExplanationNeeds], name: str, explainer: Explainer, sample: np.ndarray | None
    ) -> None:
        self.run, self.name, self.explainer, self.sample = run, name, explainer, sample
        self.corpus = run.resources.corpus(run.input("resolved_saes"))
        self.identity = explainer.identity(run.settings.explanations, run.resources.tools(run.partition))
        self.pending: deque[_Block] = deque()
        """Blocks whose evidence was given out, or that are reused, until `finished` yields them."""
        self.explained: list[Explained] = []
        """Explanations that belong to pending blocks, in order."""

    def evidence(self) -> Iterator[Evidence]:
        """The evidence of all blocks that the draft does not reuse, in order."""
        for name in sorted(self.run.input("sampled_contexts").manifest.blocks):
            block = self._block(name)
            self.pending.append(block)
            yield from block.evidence.of(block.latents)

    def _block(self, name: str) -> _Block:
        run, needs = self.run, self.explainer.needs
        evidence = BlockEvidence(run, self.corpus, name, needs)
        sample = None if self.sample is None else of_block(self.sample, name)
        recipe = run.block_recipe(
            settings={"explainer": self.name, **self.identity},
            resolved_saes=run.input("resolved_saes").content(("cache",)),
            contexts=run.input("sampled_contexts").content(("eligibility", "explain"), name),
            negatives=run.input("sampled_negatives").content(("explain",), name),
            length=run.settings.contexts.length,
            **{need: evidence.content(need) for need in sorted(needs)},
            **({} if sample is None else {"sample": sample}),
        )
        if run.reuse(block_name(name, self.name), recipe, _TABLES):
            return _Block(name, recipe, evidence, sample, latents=[], rows=None)
        eligible = evidence.eligibility.filter(status="eligible")["latent"].to_list()
        latents = sorted(eligible if sample is None else sample)
        return _Block(name, recipe, evidence, sample, latents, schema.EXPLANATIONS.empty())

    def finished(self) -> Iterator[_Block]:
        """The first pending blocks, as far as all their latents are explained, with their rows."""
        while self.pending and len(self.explained) >= len(self.pending[0].latents):
            block = self.pending[0]
            explained = self.explained[: len(block.latents)]
            if [row.latent for row in explained] != block.latents:
                break
            if block.rows is not None:
                block.rows = _rows(self.name, block.evidence, explained, block.sample)
            del self.explained[: len(explained)]
            self.pending.popleft()
            yield block

    def check_complete(self) -> None:
        """Raises ExplainerError unless every block and every explanation has found its place."""
        if self.pending or self.explained:
            raise ExplainerError(
                f"explainer {self.name!r} left {len(self.pending)} blocks without rows and "
                f"{len(self.explained)} rows without a block",
                expected="one row per latent that the explainer was given, in order",
                todo="this is a defect of the explainer; please report it",
            )


def _explained_blocks(
    run: StageRun[ExplanationNeeds], name: str, explainer: Explainer, sample: np.ndarray | None, pool: Executor | None
) -> Iterator[_Block]:
    """Every block in order; its `rows` are None if the draft has them already.

    The explainer gets the latents of all blocks as one stream. If it asks a language model about only a few latents of
    each block, many blocks are then under way, and no time is lost between blocks waiting for a last reply.
    """
    blocks = _BlocksOfExplainer(run, name, explainer, sample)
    for explanation in _explained(name, explainer, blocks.evidence(), pool):
        blocks.explained.append(explanation)
        yield from blocks.finished()
    yield from blocks.finished()
    blocks.check_complete()


_prepared: tuple[ExplanationSettings, Vocabulary] | None = None


def _prepare(settings: ExplanationSettings, vocabulary: Vocabulary) -> None:
    """Keeps in a new process what its explainers need."""
    global _prepared
    _prepared = settings, vocabulary


def _arguments(run: StageRun[ExplanationNeeds]) -> tuple[ExplanationSettings, Vocabulary]:
    """The arguments of `_prepare`."""
    return run.settings.explanations, run.resources.vocabulary(run.model.name)


explain = with_processes(_explain, _prepare, _arguments)
"""Runner of `explanations`."""


def _explain_in_process(name: str, evidence: list[Evidence]) -> list[Explained]:
    """Runs an explainer in a process of the pool."""
    assert _prepared is not None
    return list(EXPLAINERS[name](*_prepared).explain(evidence))


def _explained(
    name: str, explainer: Explainer, evidence: Iterator[Evidence], pool: Executor | None
) -> Iterator[Explained]:
    """One explanation per piece of evidence, in order. An explainer that computes uses the processes of `pool`."""
    if pool is None or not explainer.computes:
        yield from explainer.explain(evidence)
        return

    def tasks() -> Iterator[tuple[int, Callable[[], list[Explained]]]]:
        while chunk := list(islice(evidence, CHUNK)):
            yield 1, pool.submit(_explain_in_process, name, chunk).result

    for chunk in concurrency.run_in_order(tasks(), AHEAD):
        yield from chunk


def _rows(name: str, evidence: BlockEvidence, found: list[Explained], sample: list[int] | None) -> pl.DataFrame:
    """One row per selected latent: the explanations in `found`, and for all others why they were not explained.

    `sample`: the eligible latents that were to be explained; None: all.
    """
    skipped = [
        Explained(latent, status, reason)
        for latent, status, reason in evidence.eligibility.select("latent", "status", "reason").iter_rows()
        if status != "eligible"
    ]
    if sample is not None:
        others = set(evidence.eligibility.filter(status="eligible")["latent"]).difference(sample)
        skipped += [Explained(latent, "not_sampled", "not in the explainer's sample of latents") for latent in others]
    return table(name, sorted([*found, *skipped], key=lambda e: e.latent))
