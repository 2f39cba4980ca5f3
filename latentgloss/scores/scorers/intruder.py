"""Intruder detection: the trials of an SAE, read from the store block by block.

What belongs here: which latents are judged, which latents may intrude on them, and the windows and marks of both. How a
trial is drawn from these is in `trials.py`; the judges are in `judges/intruder.py`. Method: docs/methods.md, Intruder.

**What a trial depends on.** Intruders on a latent are windows of the SAE's first `POOL` eligible latents, in the order
of `contexts.latent_sample.latents_in_turn`, as far as they come *before* it in that order, whatever their block. So a
latent that is added changes no existing trial, and a sample of few latents per block has trials like any other. Only
the first few latents of an SAE have fewer trials, or none (docs/decisions/0014-intruders.md). Which windows of the
latent are shown depends on its own test sample, on the seed, and on the mark shapes of its intruders: a window is not
shown if none of them has its shape. The intruder is a window of the fitting latent with the lowest hash.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.activations.reader import ActivationReader
from latentgloss.contexts.latent_sample import latents_in_turn, sampled
from latentgloss.contexts.marks import masked_tokens
from latentgloss.scores.scorers.base import Asked, Plan
from latentgloss.scores.scorers.marked import Marked, cells_of
from latentgloss.scores.scorers.trials import ARM, TRIALS, draw
from latentgloss.store.digests import frame_sha256, json_sha256

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Bool

    from latentgloss.corpus.reader import Corpus
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.scores.scorers.base import ScoreNeeds


POOL = 128
"""Latents whose windows may be intruders. With twice as many, hardly more trials can be made."""


class Trials:
    """The trials of an SAE, for the latents that the settings sample. Calling it draws those of one block.

    Memory: the mask (one byte per token), the sampled windows of the latents that intrude, the numbers of all windows
    in which these fire, and one block at a time.
    """

    def __init__(self, run: StageRun[ScoreNeeds], corpus: Corpus, only: int | None = None) -> None:
        """`only`: draw the trials of this latent alone, in the sample or not."""
        self.corpus, self.profile = corpus, run.settings.profile
        self.contexts, self.cache = run.input("sampled_contexts"), run.input("activation_cache")
        self.length, self.settings = run.settings.contexts.length, run.settings.intruder
        eligibility = self.contexts.read(schema.ELIGIBILITY)
        chosen = sampled(eligibility, self.settings.sample, self.settings.seed) if only is None else [only]
        eligible = eligibility.filter(status="eligible")["latent"].to_numpy()
        n_latents = run.input("resolved_saes").json("resolved.json")["n_latents"]
        turn = np.full(n_latents, n_latents)
        in_turn = latents_in_turn(run.sae, n_latents)
        turn[in_turn] = np.arange(len(in_turn))
        eligible = eligible[np.argsort(turn[eligible], kind="stable")]
        self.intruders = eligible[:POOL]
        """Latents whose windows may be intruders, in the order of `latents_in_turn`."""
        judged = np.ones(len(eligible), dtype=bool) if chosen is None else np.isin(eligible, chosen)
        self._judged = eligible[judged]
        self._before = np.minimum(np.flatnonzero(judged), POOL)
        """For each judged latent, the number of `intruders` that come before it."""

    def consumed(self, block: str) -> dict[str, Any]:
        """What the trials of a block depend on beside its own contexts and its activations, for the block's recipe."""
        before = self._of_block(block)
        return {
            "before": list(before.values()),
            "intruders": json_sha256(self._contents[: max(before.values(), default=0)]),
        }

    def __call__(self, block: str) -> tuple[pl.DataFrame, Asked]:
        """The trials of a block, as rows of `schema.TRIALS`, and the windows that judges are asked about."""
        before = self._of_block(block)
        judged = np.array(list(before), dtype=np.uint32)
        ranges = [(int(judged[0]), int(judged[-1]) + 1)] if before else []
        cells = cells_of(self._activations.read(ranges), judged, self.length)
        own = Marked.of(judged, self.contexts.read(schema.CONTEXTS, block), self._masked, cells)
        drawn = draw(own, self._pool, before, self.settings.seed)
        at = drawn.rows["context"].to_numpy()
        tokens = self.corpus.contexts(at, self.length)
        return drawn.table, Asked(drawn.rows, tokens, drawn.marks, self._masked[at], profile=self.profile)

    def _of_block(self, block: str) -> dict[int, int]:
        """The judged latents of a block, ascending, each with the number of latents that may intrude on it."""
        inside = self._judged // schema.BLOCK == int(block)
        return dict(sorted(zip(self._judged[inside].tolist(), self._before[inside].tolist(), strict=True)))

    @cached_property
    def _contexts_of_intruders(self) -> pl.DataFrame:
        """Test contexts of the latents that may intrude."""
        intrudes = pl.col("latent").is_in(self.intruders.tolist())
        blocks = sorted({f"{latent // schema.BLOCK:06d}" for latent in self.intruders.tolist()})
        found = [self.contexts.scan(schema.CONTEXTS, b).filter(intrudes, split="test").collect() for b in blocks]
        return pl.concat([schema.CONTEXTS.empty(), *found])

    @cached_property
    def _contents(self) -> list[tuple[int, str]]:
        """Each latent that may intrude with the hash of its test contexts, in the order of `intruders`."""
        rows = self._contexts_of_intruders.sort("latent", "order").partition_by("latent", as_dict=True)
        return [(latent, frame_sha256(rows[(latent,)])) for latent in self.intruders.tolist()]

    @cached_property
    def _masked(self) -> Bool[np.ndarray, "windows length"]:
        """Masked tokens of all windows of the corpus."""
        return masked_tokens(self.cache, self.corpus, self.length)

    @cached_property
    def _paths(self) -> list[Path]:
        """Files of the activations."""
        return self.cache.tables(schema.ACTIVATIONS.name)

    @cached_property
    def _activations(self) -> ActivationReader:
        """Where latents fire, for the latents of a block."""
        return ActivationReader(self._paths, strengths=False)

    @cached_property
    def _pool(self) -> Marked:
        """The windows that may intrude.

        Their latents may be anywhere in the SAE, so all activations are read once, file by file, and few are kept.
        """
        ranges = [(latent, latent + 1) for latent in sorted(self.intruders.tolist())]
        each = (ActivationReader([path], strengths=False).read(ranges) for path in self._paths)
        cells = pl.concat([cells_of(pairs, self.intruders, self.length) for pairs in ([], *each)])
        return Marked.of(self.intruders, self._contexts_of_intruders, self._masked, cells)


def plan(run: StageRun[ScoreNeeds], corpus: Corpus, splits: tuple[str, ...]) -> Plan:
    """Plans one arm, from the test split."""
    trials = Trials(run, corpus)
    return Plan([ARM], {"trials": TRIALS, "seed": run.settings.intruder.seed}, lambda block: trials(block)[1])
