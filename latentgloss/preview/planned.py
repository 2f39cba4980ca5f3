"""The queries that a stage will send, latent by latent.

What belongs here: making the queries of `explanations` and of the scorers the way these stages make them, from the
current contexts and explanations. Loads no weights, sends nothing, writes nothing. Counting them is in `counts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss import schema
from latentgloss.contexts.latent_sample import sampled, smaller
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
from latentgloss.scores.scorers.base import Texts
from latentgloss.scores.table import SCORERS, language_judges

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt32

    from latentgloss.explanations.explainers.base import AskingExplainer
    from latentgloss.llm.asking import Planned
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.workspace import State, Workspace


UNWRITTEN = 1000
"""Tokens assumed for an explanation that does not exist yet and that no language model writes: long for a pattern."""


@dataclass
class StageQueries:
    """The queries of one stage for one partition."""

    latents: UInt32[np.ndarray, " latents"]
    """The latents that the stage asks about, ascending."""
    planned: Callable[[str, list[int]], Iterator[tuple[int, list[Planned]]]]
    """From a block and some of its latents to pairs of a latent and queries about it. A latent can occur repeatedly."""
    notes: list[str] = field(default_factory=list)
    """Assumptions that make the queries inexact."""


def planned_queries(run: StageRun[Workspace], states: list[State]) -> StageQueries:
    """The queries of a stage that asks language models. `states`: the states of the workspace, for the notes."""
    return _explanations(run) if run.stage.name == "explanations" else _scores(run, states)


def _explanations(run: StageRun[Workspace]) -> StageQueries:
    """The queries of the explainers that ask a language model."""
    workspace, settings = run.resources, run.settings.explanations
    corpus, vocabulary = workspace.corpus(run.input("resolved_saes")), workspace.vocabulary(run.model.name)
    tools = workspace.tools(run.partition)
    bases = dict.fromkeys(base_of(name) for name in settings.explainers)
    made: list[Any] = [EXPLAINERS[name](settings, vocabulary, tools) for name in bases if EXPLAINERS[name].asks]
    explainers: list[AskingExplainer] = made
    eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY)

    def planned(block: str, latents: list[int]) -> Iterator[tuple[int, list[Planned]]]:
        for explainer in explainers:
            for evidence in BlockEvidence(run, corpus, block, explainer.needs).of(latents):
                yield evidence.latent, explainer.planned(evidence)

    return StageQueries(_sample(eligibility, smaller(settings.llm.sample), settings.seed), planned)


def _sample(eligibility: pl.DataFrame, n: int | None, seed: int) -> UInt32[np.ndarray, " latents"]:
    """The sample of `n` eligible latents, or all of them if `n` is None; ascending."""
    sample = sampled(eligibility, n, seed)
    eligible = eligibility.filter(status="eligible")["latent"].sort().to_numpy()
    return eligible if sample is None else sample


def _scores(run: StageRun[Workspace], states: list[State]) -> StageQueries:
    """The queries of a scorer's judges that ask a language model."""
    workspace, scorer = run.resources, SCORERS[run.stage.name.removesuffix("_scores")]
    settings = getattr(run.settings, scorer.name)
    judges = language_judges(run, scorer.name)
    plan = scorer.plan(run, workspace.corpus(run.input("resolved_saes")), scorer.splits)
    eligibility = run.input("sampled_contexts").read(schema.ELIGIBILITY)
    texts = _Texts(run, eligibility) if "explanations" in {i.stage for i in run.stage.inputs} else _NoTexts()
    llm = getattr(settings, "llm", None)  # intruder detection has one sample, and no nulls
    null_sample = sampled(eligibility, llm.null_sample, settings.seed) if llm is not None else None
    with_nulls = None if null_sample is None else set(null_sample.tolist())
    ask = lru_cache(maxsize=1)(plan.ask)  # the latents of a block arrive in several parts, one after the other

    def planned(block: str, latents: list[int]) -> Iterator[tuple[int, list[Planned]]]:
        rows = ask(block).of(pl.Series(latents, dtype=pl.UInt32)).where(pl.col("split") == "test")
        for explainer in texts.explainers:
            judged = [n for n in latents if with_nulls is None or n in with_nulls or not explainer.startswith(NULL)]
            found, unwritten = texts.of(explainer, block, judged)
            explained = rows.of(pl.Series(list(found), dtype=pl.UInt32))
            for judge in judges:
                for question in explained.questions(scorer.name, found):
                    yield question.latent, [replace(p, unwritten=unwritten) for p in judge.planned(question)]

    n = smaller(settings.sample, llm.sample) if llm is not None else settings.sample
    return StageQueries(_sample(eligibility, n, settings.seed), planned, texts.notes(states))


class _NoTexts:
    """In place of `_Texts`, for a scorer that judges latents without explanations."""

    explainers = ("none",)

    def notes(self, states: list[State]) -> list[str]:
        return []

    def of(self, explainer: str, block: str, latents: list[int]) -> tuple[dict[int, Texts], int]:
        return dict.fromkeys(latents, Texts("", None, "")), 0


class _Texts:
    """The explanations that judges will read: the current ones, and empty texts for those that do not exist yet."""

    def __init__(self, run: StageRun[Workspace], eligibility: pl.DataFrame) -> None:
        self.run, self.settings = run, run.settings.explanations
        self.explainers = in_order(self.settings)
        self.version = run.input("explanations") if "explanations" in run.recipe.inputs else None
        sample = sampled(eligibility, self.settings.llm.sample, self.settings.seed)
        self.sample = None if sample is None else set(sample.tolist())
        stored = set() if self.version is None else set(map(explainer_of, self.version.manifest.blocks))
        self.missing = [name for name in self.explainers if name not in stored]

    def notes(self, states: list[State]) -> list[str]:
        """What is assumed about explanations that are missing or not fresh."""
        found = []
        if self.missing:
            names = dict.fromkeys(map(without_number, self.missing))
            longest = ", ".join(f"{name} {self._unwritten(name):,}" for name in names)
            found.append(
                f"explanations that do not exist yet are assumed to be as long as possible, in tokens: {longest}"
            )
        own = [s for s in states if s.partition == self.run.partition and s.asset == "explanations"]
        if self.version is not None and any(s.state != "fresh" for s in own):
            found.append("counted with the current explanations, which are not fresh")
        return found

    def _unwritten(self, explainer: str) -> int:
        """Upper bound on the tokens of an explanation that does not exist yet."""
        if not EXPLAINERS[base_of(explainer)].asks:
            return UNWRITTEN
        llm = self.settings.llm
        return min(llm.max_tokens_cot if base_of(explainer) == "llm_cot" else llm.max_tokens, LONGEST)

    def of(self, explainer: str, block: str, latents: list[int]) -> tuple[dict[int, Texts], int]:
        """Explanation and program by latent, and the most tokens by which each explanation is still to grow."""
        if self.version is None or explainer in self.missing:
            sample = self.sample if EXPLAINERS[base_of(explainer)].asks else None
            chosen = [latent for latent in latents if sample is None or latent in sample]
            return dict.fromkeys(chosen, Texts("", None, "")), self._unwritten(explainer)
        name = block_name(block, explainer)
        if name not in self.version.manifest.blocks:
            return {}, 0
        rows = self.version.read(schema.EXPLANATIONS, name)
        rows = rows.filter(pl.col("latent").is_in(latents), status="ok").sort("latent")
        return dict(zip(rows["latent"], map(Texts._make, rows.select(Texts._fields).iter_rows()), strict=True)), 0
