"""The forward pass: one pass of a model over its corpus that serves all stale SAEs of the model.

What belongs here: which shards are stale for which SAE, running the model over them, encoding, and handing finished
shards to the store. Reads the corpus, the model and the weights of SAEs; writes the tables `activations` and `masked`,
one block per shard, and has `activations/latents.py` write the table `latents` at the end. Which partitions share a
pass is decided in `activations/stages.py`.

Shapes: the model returns activations [sequences, length, d] per hookpoint, in its own dtype and on its device. They are
encoded as [tokens, d]; positions are indices into the flattened token array of the corpus.

Memory does not grow with the number of tokens: a shard of 65,536 positions is sorted and written as soon as it is
complete, and no dense [tokens, latents] array is made. While a GPU computes, the host sorts and writes finished shards
in background threads.

Method: Paulo et al., arXiv 2410.13928, section 3 (collecting activations).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from latentgloss import schema
from latentgloss.activations.finite import check_encodable, check_finite
from latentgloss.activations.latents import write_latents
from latentgloss.activations.masking import masked_rows, norms_of, sink_limit, special_and_first
from latentgloss.activations.pairs import Pairs, on_host, sorted_pairs
from latentgloss.activations.quality import Quality, reconstructed, zero_rows
from latentgloss.errors import SubjectError
from latentgloss.machine.background import BackgroundWorkers
from latentgloss.saes.training import Model, check_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from latentgloss.config.settings import MachineSettings
    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.subject import Subject
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.saes.coder import SparseCoder


SHARD = 65_536
"""Positions per shard, rounded down to whole sequences. A constant, because shards are part of the content."""

BATCH, BATCH_GPU = 4096, 32_768
"""Tokens per forward pass on a CPU and on a GPU if settings do not say. A GPU needs large batches to outweigh the time
that launching its kernels takes."""

SINK_SAMPLE = 16
"""Sequences at the start of the corpus, at most, over which the median norm is taken that sinks are compared with."""


def batch_tokens(machine: MachineSettings, device: str) -> int:
    """Tokens per forward pass on a kind of device, from the settings or else the default for it."""
    return machine.batch_tokens or (BATCH if device == "cpu" else BATCH_GPU)


class ForwardPass:
    """One pass of a model over its corpus for several SAEs."""

    def __init__(
        self,
        runs: list[StageRun[Any]],
        corpus: Corpus,
        subject: Subject,
        open_coder: Callable[[StageRun[Any]], SparseCoder],
    ) -> None:
        """`runs`: stage runs of one model and corpus. `open_coder` opens the SAE of a run; its errors fail that run."""
        self.runs, self.corpus, self.subject, self.open_coder = runs, corpus, subject, open_coder
        first = runs[0]
        self.mask = first.model.mask
        machine, device = first.settings.machine, self.subject.device.type
        self.batch = max(1, batch_tokens(machine, device) // self.corpus.tokens.shape[1])
        self.background = BackgroundWorkers(device, machine.workers)
        self.coders: dict[str, SparseCoder] = {}
        self.targets: dict[str, str | None] = {}
        """What each SAE reconstructs (`quality.reconstructed`)."""
        self.sink_limits: dict[str, float] = {}
        self.quality = {run.partition: Quality() for run in runs}

    @property
    def active(self) -> list[StageRun[Any]]:
        """The runs that have not failed."""
        return [run for run in self.runs if run.error is None]

    def run(self) -> None:
        """Computes all runs. A run that fails gets its `error` and leaves the pass; the others continue."""
        with self.background:
            self._run()

    def _run(self) -> None:
        for run in self.runs:
            run.attempt(partial(self._open, run))
        began = time.monotonic()
        n_sequences, length = self.corpus.tokens.shape
        for run in self.runs:
            run.start()
        per_shard = max(1, SHARD // length)
        self.n_shards = -(-n_sequences // per_shard)
        for number, start in enumerate(range(0, n_sequences, per_shard)):
            stop = min(start + per_shard, n_sequences)
            self._shard(f"shard-{number:06d}", start, stop)
            self._report_progress(stop)
        self.background.finish()
        seconds = round(time.monotonic() - began, 3)
        for run in self.active:
            run.facts["pass_seconds"] = seconds
            run.attempt(partial(self._latents, run))

    def _report_progress(self, n_sequences: int) -> None:
        """Reports how many sequences are done; called per batch, as a shard of a large model takes minutes."""
        total, length = self.corpus.tokens.shape
        self.runs[0].progress(n_sequences * length, total * length, "tokens")

    def _open(self, run: StageRun[Any]) -> None:
        """Opens the SAE of a run and checks that it fits the hookpoint, and that its files say nothing else."""
        coder, subject = self.open_coder(run), self.subject
        coder.check_width(subject.width_at(run.sae.hookpoint), run.sae.hookpoint)
        check_training(run.sae, Model(run.model, subject.places, subject.model_types, subject.has_layer_norm))
        target = reconstructed(coder, run.sae.hookpoint)
        try:
            self.targets[run.partition] = target if target and self.subject.width_at(target) else None
        except SubjectError:  # its module gives no activation per token, so there is nothing to compare with
            self.targets[run.partition] = None
        self.coders[run.partition] = coder.to(self.subject.device)
        run.draft  # noqa: B018  takes the partition's lock before anything is written

    # -- one shard ---------------------------------------------------------------------------------------

    def _shard(self, name: str, start: int, stop: int) -> None:
        """Computes the sequences `start` to `stop` for all runs that have no fresh block of them."""
        tables = (schema.ACTIVATIONS, schema.MASKED)
        due: dict[StageRun[Any], dict[str, Any]] = {}

        def find_due(run: StageRun[Any]) -> None:
            recipe = self._recipe(run, start, stop)
            if not run.draft.reuse(name, recipe, tables):
                due[run] = recipe

        for run in self.active:
            run.attempt(partial(find_due, run))
        if not due:
            return
        pairs: dict[str, list[Pairs]] = {run.partition: [] for run in due}
        norms: dict[str, list[torch.Tensor]] = {run.sae.hookpoint: [] for run in due}
        for first in range(start, stop, self.batch):
            if all(run.error for run in due):
                return
            self._batch(due, pairs, norms, first, min(first + self.batch, stop), measure=first == start)
            self._report_progress(min(first + self.batch, stop))
        wanted = {run.sae.hookpoint for run in due if run.error is None}
        sinks = self._sinks(
            {hookpoint: on_host(parts) for hookpoint, parts in norms.items() if hookpoint in wanted}, start
        )
        by_token = special_and_first(np.asarray(self.corpus.tokens[start:stop]), self.subject.tokenizer.all_special_ids)
        offset = start * self.corpus.tokens.shape[1]

        def write(run: StageRun[Any], recipe: dict[str, Any], batches: list[Pairs]) -> None:
            n_latents, precision = self.coders[run.partition].n_latents, run.settings.activations.precision
            frames = {
                "activations": sorted_pairs(batches, n_latents, offset, precision),
                "masked": masked_rows(by_token, sinks[run.sae.hookpoint], offset),
            }
            run.draft.put(name, recipe, tables, frames)

        for run, recipe in due.items():
            if run.error is None:
                self.background.do(partial(run.attempt, partial(write, run, recipe, pairs.pop(run.partition))))

    def _batch(
        self,
        due: Iterable[StageRun[Any]],
        pairs: dict[str, list[Pairs]],
        norms: dict[str, list[torch.Tensor]],
        first: int,
        stop: int,
        *,
        measure: bool,
    ) -> None:
        """Runs the model over sequences `first` to `stop` and appends their norms and pairs."""
        active = [run for run in due if run.error is None]
        hookpoints = {run.sae.hookpoint for run in active}
        targets = {target for run in active if measure and (target := self.targets[run.partition]) is not None}
        found = self.subject.activations(np.asarray(self.corpus.tokens[first:stop]), sorted(hookpoints | targets))
        flat = {name: x.reshape(-1, x.shape[-1]) for name, x in found.items()}
        for hookpoint in sorted(hookpoints):
            norms[hookpoint].append(norms_of(flat[hookpoint]))
        for run in active:
            run.attempt(partial(self._encode, run, flat, norms[run.sae.hookpoint][-1], first, pairs, measure))

    def _encode(
        self,
        run: StageRun[Any],
        found: dict[str, torch.Tensor],
        norms: Float32[torch.Tensor, " tokens"],
        first: int,
        pairs: dict[str, list[Pairs]],
        measure: bool,
    ) -> None:
        """Appends the pairs of one batch and, if `measure`, adds the batch to the figures of quality.

        `found`: activations [tokens, d] by hookpoint. `norms`: of those at the run's hookpoint. `first`: number of the
        first sequence.
        """
        coder, hookpoint = self.coders[run.partition], run.sae.hookpoint
        x = found[hookpoint]
        position = first * self.corpus.tokens.shape[1]
        check_finite(x, norms, hookpoint=hookpoint, partition=run.partition, first=position, dtype=run.model.dtype)
        check_encodable(norms, coder, hookpoint=hookpoint)
        triples = coder.encode_sparse(x)
        if measure:
            target = self.targets[run.partition]
            self.quality[run.partition].add(x, coder, triples, None if target is None else found[target])
        pairs[run.partition].append(Pairs.of(triples, len(x)))

    def _recipe(self, run: StageRun[Any], start: int, stop: int) -> dict[str, Any]:
        resolved = run.input("resolved_saes").content(("cache",))
        return run.block_recipe(resolved_saes=resolved, sequences=[start, stop])

    def _sinks(
        self, norms: dict[str, Float32[np.ndarray, " positions"]], start: int
    ) -> dict[str, Int64[np.ndarray, " sinks"]]:
        """Indices of the attention sinks of a shard, by hookpoint.

        Limits come from the first sequences of the corpus. Their norms are known in the first shard. Where that shard
        was reused, a pass over those sequences alone finds them.
        """
        length = self.corpus.tokens.shape[1]
        missing = [hookpoint for hookpoint in norms if hookpoint not in self.sink_limits]
        n = min(SINK_SAMPLE, max(1, SHARD // length))  # no more than the first shard holds
        sample = {hookpoint: norms[hookpoint][: n * length] for hookpoint in missing}
        if missing and start > 0:
            # Batches are those of the first shard, because the digits of activations depend on the batch.
            parts = [
                self.subject.activations(np.asarray(self.corpus.tokens[first : first + self.batch]), missing)
                for first in range(0, n, self.batch)
            ]
            sample = {h: on_host([norms_of(part[h]) for part in parts])[: n * length] for h in missing}
        for hookpoint, values in sample.items():
            self.sink_limits[hookpoint] = sink_limit(values, length, self.mask.sink_norm)
        return {hookpoint: np.flatnonzero(values > self.sink_limits[hookpoint]) for hookpoint, values in norms.items()}

    def _latents(self, run: StageRun[Any]) -> None:
        """Writes the table `latents` of a run once all its shards are in the draft."""
        assert len(run.draft.paths(schema.ACTIVATIONS)) == self.n_shards  # otherwise counts would miss a shard
        write_latents(run, self.coders[run.partition].W_dec, self.subject, self.corpus)
        run.facts |= self.quality[run.partition].facts() | zero_rows(self.coders[run.partition])
