"""Activations: from tokens to every active (latent, position) pair of every stale SAE of a model.

What belongs here: the bridge that says exactly what a SAE depends on (`resolve_saes`), and the one forward pass that
serves all SAEs of a model (`cache_activations`). Reads the corpus, the registry and SAE files; writes `resolved.json`
and the tables `activations` and `masked`; `latents`, made of them at once, is written by `latents.py`.

Memory is flat in the number of tokens: a shard of 65,536 positions is sorted and written as soon as it is full, and
encoding goes from the activation to pairs without a dense [tokens, latents] array on the host. Where a GPU computes,
it does not wait for that: the host sorts and writes beside it (`beside.py`).
Method: Paulo et al., arXiv 2410.13928, section 3 (collecting activations).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Int32, Int64
from scipy import sparse

from latentgloss import schema
from latentgloss.activations.latents import write_latents
from latentgloss.activations.quality import Quality, norms_of, on_host
from latentgloss.machine.background import BackgroundWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from latentgloss.config.settings import MachineSettings
    from latentgloss.corpus.reader import Corpus
    from latentgloss.models.subject import Subject
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.saes.coder import SparseCoder
    from latentgloss.saes.selection import Sparse


SHARD = 65_536
"""Positions per shard, rounded down to whole sequences. Constant: shards are content, not machine settings."""

BATCH, BATCH_GPU = 4096, 32_768
"""Tokens per forward pass, if settings say nothing: a GPU wants more at once than launching its kernels takes."""

SINK_SAMPLE = 16
"""Sequences at the start of the corpus, at most, over which the median norm is taken (sinks are relative to it)."""


def batch_tokens(machine: MachineSettings, device: str) -> int:
    """Tokens per forward pass on a kind of device."""
    return machine.batch_tokens or (BATCH if device == "cpu" else BATCH_GPU)


class ForwardPass:
    """One pass of a model over its corpus for several SAEs."""

    def __init__(
        self,
        runs: list[StageRun[Any]],
        corpus: Corpus,
        subject: Subject,
        coder_of: Callable[[StageRun[Any]], SparseCoder],
    ) -> None:
        """`runs`: of one model and corpus; `coder_of` opens the SAE of a run, or raises for that run alone."""
        self.runs, self.corpus, self.subject, self.coder_of = runs, corpus, subject, coder_of
        first = runs[0]
        self.mask = first.model.mask
        machine, device = first.settings.machine, self.subject.device.type
        self.batch = max(1, batch_tokens(machine, device) // self.corpus.tokens.shape[1])
        self.beside = BackgroundWorkers(device, machine.workers)
        self.coders: dict[str, SparseCoder] = {}
        self.sinks: dict[str, float] = {}
        self.quality = {run.partition: Quality() for run in runs}

    @property
    def active(self) -> list[StageRun[Any]]:
        return [run for run in self.runs if run.error is None]

    def run(self) -> None:
        with self.beside:
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
            self._tell(stop)
        self.beside.finish()
        seconds = round(time.monotonic() - began, 3)
        for run in self.active:
            run.facts["pass_seconds"] = seconds
            run.attempt(partial(self._latents, run))

    def _tell(self, n_sequences: int) -> None:
        """How far the pass is: a shard of a large model takes minutes."""
        total, length = self.corpus.tokens.shape
        self.runs[0].progress(n_sequences * length, total * length, "tokens")

    def _open(self, run: StageRun[Any]) -> None:
        coder = self.coder_of(run)
        coder.check_width(self.subject.width_at(run.sae.hookpoint), run.sae.hookpoint)
        self.coders[run.partition] = coder.to(self.subject.device)
        run.draft  # noqa: B018  takes the lock before anything is written

    # -- one shard ---------------------------------------------------------------------------------------

    def _shard(self, name: str, start: int, stop: int) -> None:
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
        pairs: dict[str, list[_Pairs]] = {run.partition: [] for run in due}
        norms: dict[str, list[torch.Tensor]] = {run.sae.hookpoint: [] for run in due}
        for first in range(start, stop, self.batch):
            self._batch(due, pairs, norms, first, min(first + self.batch, stop), measure=first == start)
            self._tell(min(first + self.batch, stop))
        over = self._sinks({hookpoint: on_host(parts) for hookpoint, parts in norms.items()}, start)
        static = self._static_mask(start, stop)
        offset = start * self.corpus.tokens.shape[1]

        def put(run: StageRun[Any], recipe: dict[str, Any], found: list[_Pairs]) -> None:
            frames = {
                "activations": self._sorted(run, found, offset),
                "masked": _masked(static, over[run.sae.hookpoint], offset),
            }
            run.draft.put(name, recipe, tables, frames)

        for run, recipe in due.items():
            if run.error is None:
                self.beside.do(partial(run.attempt, partial(put, run, recipe, pairs.pop(run.partition))))

    def _batch(
        self,
        due: Iterable[StageRun[Any]],
        pairs: dict[str, list[_Pairs]],
        norms: dict[str, list[torch.Tensor]],
        first: int,
        stop: int,
        *,
        measure: bool,
    ) -> None:
        """Runs the model over some sequences and appends what their activations tell."""
        found = self.subject.activations(np.asarray(self.corpus.tokens[first:stop]), sorted(norms))
        for hookpoint, x in found.items():
            flat = x.reshape(-1, x.shape[-1])
            norms[hookpoint].append(norms_of(flat))
            for run in due:
                if run.error is None and run.sae.hookpoint == hookpoint:
                    run.attempt(partial(self._encode, run, flat, pairs[run.partition], measure))

    def _encode(
        self, run: StageRun[Any], x: Float[torch.Tensor, "tokens d"], pairs: list[_Pairs], measure: bool
    ) -> None:
        """Appends one batch's pairs; `measure`: takes figures of quality from them."""
        coder = self.coders[run.partition]
        found = coder.encode_sparse(x)
        if measure:
            self.quality[run.partition].add(x, coder, found)
        pairs.append(_Pairs.of(found, len(x)))

    def _recipe(self, run: StageRun[Any], start: int, stop: int) -> dict[str, Any]:
        resolved = run.input("resolved_saes").content(("cache",))
        return run.block_recipe(resolved_saes=resolved, sequences=[start, stop])

    def _sinks(self, norms: dict[str, Float32[np.ndarray, " positions"]], start: int) -> dict[str, np.ndarray]:
        """Positions of a shard, by hookpoint, whose norm is that of an attention sink.

        The norms they are relative to are those of the corpus' first sequences: at hand in the first shard, and
        found by a pass over those alone where that shard was already on disk.
        """
        length = self.corpus.tokens.shape[1]
        missing = [hookpoint for hookpoint in norms if hookpoint not in self.sinks]
        n = min(SINK_SAMPLE, max(1, SHARD // length))  # no more than the first shard holds
        sample = {hookpoint: norms[hookpoint][: n * length] for hookpoint in missing}
        if missing and start > 0:
            # In the same batches, so that the same numbers are found.
            parts = [
                self.subject.activations(np.asarray(self.corpus.tokens[first : first + self.batch]), missing)
                for first in range(0, n, self.batch)
            ]
            sample = {h: on_host([norms_of(part[h]) for part in parts])[: n * length] for h in missing}
        for hookpoint, values in sample.items():
            median = float(np.median(values.reshape(-1, length)[:, 1:]))
            self.sinks[hookpoint] = self.mask.sink_norm * median
        return {hookpoint: np.flatnonzero(values > self.sinks[hookpoint]) for hookpoint, values in norms.items()}

    def _static_mask(self, start: int, stop: int) -> dict[str, np.ndarray]:
        tokens = np.asarray(self.corpus.tokens[start:stop])
        special = np.isin(tokens, np.asarray(sorted(self.subject.tokenizer.all_special_ids), dtype=tokens.dtype))
        first = np.zeros_like(special)
        first[:, 0] = True
        return {"special": np.flatnonzero(special), "first": np.flatnonzero(first & ~special)}

    def _sorted(self, run: StageRun[Any], found: list[_Pairs], offset: int) -> pl.DataFrame:
        """The shard's pairs by (latent, position). Transposing a CSR matrix is a counting sort: linear time."""
        n_tokens = sum(len(p.per_token) for p in found)
        indptr = np.zeros(n_tokens + 1, dtype=np.int64)
        np.cumsum(on_host([p.per_token for p in found]), out=indptr[1:])
        rows = sparse.csr_array(
            (on_host([p.value for p in found]), on_host([p.latent for p in found]), indptr),
            shape=(n_tokens, self.coders[run.partition].n_latents),
        )
        columns = rows.tocsc()
        latent = np.repeat(np.arange(columns.shape[1], dtype=np.uint32), np.diff(columns.indptr))
        value = columns.data
        if run.settings.activations.precision == "bfloat16":
            value = round_to_bfloat16(value)
        return pl.DataFrame(
            {"latent": latent, "position": columns.indices.astype(np.uint32) + np.uint32(offset), "activation": value}
        )

    def _latents(self, run: StageRun[Any]) -> None:
        assert len(run.draft.paths(schema.ACTIVATIONS)) == self.n_shards  # or not all there is would be counted
        write_latents(run, self.coders[run.partition].W_dec, self.subject, self.corpus)
        run.facts |= self.quality[run.partition].facts()


@dataclass(frozen=True)
class _Pairs:
    """Active pairs of one batch, where they were computed: who sorts them fetches them."""

    per_token: Int64[torch.Tensor, " tokens"]
    latent: Int32[torch.Tensor, " pairs"]
    value: Float32[torch.Tensor, " pairs"]

    @classmethod
    def of(cls, found: Sparse, n_tokens: int) -> _Pairs:
        import torch

        token, latent, value = found
        return cls(torch.bincount(token, minlength=n_tokens), latent.to(torch.int32), value)


def round_to_bfloat16(values: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """float32 values rounded to the nearest bfloat16 (ties to even), still as float32."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32, copy=False).view(np.float32)


def _masked(static: dict[str, np.ndarray], sinks: np.ndarray, offset: int) -> pl.DataFrame:
    """Masked positions of a shard; a position has one reason, `special` before `first` before `sink`."""
    known = np.concatenate(list(static.values()))
    reasons = {**static, "sink": np.setdiff1d(sinks, known)}
    frame = pl.concat(
        pl.DataFrame({"position": (where + offset).astype(np.uint32)}).with_columns(why=pl.lit(why))
        for why, where in reasons.items()
    )
    return frame.sort("position")
