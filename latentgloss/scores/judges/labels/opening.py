"""Makes the judge of labels for a run, with what it reads of the store.

What belongs here: where the lexicon's windows come from, and which latents' windows decide the coefficients.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.scores.first_explained import first_explained
from latentgloss.scores.judges.labels.fitting import LATENTS, Fit, Lesson, fitted
from latentgloss.scores.judges.labels.judge import LabelJudge
from latentgloss.scores.judges.labels.lexicon import Lexicon

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.protocols import Task
    from latentgloss.scores.scorers.base import ScoreNeeds


def label_judge(task: Task, run: StageRun[ScoreNeeds], embedder: str) -> LabelJudge:
    """The judge of labels with an embedder. Reads nothing yet. Raises InputError for an unknown embedder."""
    needs, length = run.resources, run.settings.contexts.length

    @cache
    def corpus() -> Corpus:
        return needs.corpus(run.input("resolved_saes"))

    def sample(n: int) -> np.ndarray:
        total = corpus().tokens.size // length
        chosen = np.arange(min(n, total)) * total // max(min(n, total), 1)
        return corpus().contexts(chosen, length)

    lexicon = Lexicon(
        lambda: needs.vocabulary(run.model.name),
        sample,
        lambda: needs.text_vectors(embedder, "document", run.progress),
    )

    def fits(explainer: str) -> tuple[str, Callable[[], Fit]]:
        lesson = lesson_of(task, run, explainer)
        windows = partial(_windows, corpus, length)
        return lesson.sha256, lambda: fitted(lesson, lexicon, judge.read, windows)

    judge = LabelJudge(needs.embedder(embedder), lexicon, fits)
    return judge


def _windows(corpus: Callable[[], Corpus], length: int, contexts: np.ndarray) -> np.ndarray:
    return corpus().contexts(contexts, length)


def lesson_of(task: Task, run: StageRun[ScoreNeeds], explainer: str) -> Lesson:
    """What the coefficients for an explainer are fitted to: select windows of the first latents that it explained."""
    contexts = run.input("sampled_contexts")
    first = first_explained(run.input("explanations"), explainer, run.sae, run.input("resolved_saes"), LATENTS)
    chosen = pl.col("latent").is_in(first["latent"].implode())
    rates = contexts.scan(schema.ELIGIBILITY).filter(chosen).select("latent", "firing_rate").collect()
    labels = first.select("latent", "label").join(rates, on="latent", how="left", maintain_order="left")
    of_select = chosen & (pl.col("split") == "select")
    order = ("latent", "context")
    activating = contexts.scan(schema.CONTEXTS).filter(of_select).select(*order, "offsets", "activations")
    silent = None
    if task == "detection":  # fuzzing asks about activating windows only
        negatives = run.input("sampled_negatives").scan(schema.NEGATIVES).filter(of_select).select(order)
        silent = negatives.sort(order).collect()
    return Lesson(labels, activating.sort(order).collect(), silent)
