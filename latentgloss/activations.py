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

import json
import time
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Int32, Int64
from scipy import sparse

from latentgloss import schema
from latentgloss.beside import Beside
from latentgloss.hashing import json_sha256
from latentgloss.latents import write_latents
from latentgloss.work import attempt, one_by_one

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from latentgloss.corpus import Corpus
    from latentgloss.saes.coder import Sparse, SparseCoder
    from latentgloss.settings import MachineSettings
    from latentgloss.subject import Subject
    from latentgloss.work import Work

SHARD = 65_536
"""Positions per shard, rounded down to whole sequences. Constant: shards are content, not machine settings."""

BATCH, BATCH_GPU = 4096, 32_768
"""Tokens per forward pass, if settings say nothing: a GPU wants more at once than launching its kernels takes."""

QUALITY_SAMPLE = 4096
"""Tokens of a shard, at most, from which FVU and L0 are taken: plenty for figures shown to people."""

SINK_SAMPLE = 16
"""Sequences at the start of the corpus, at most, over which the median norm is taken (sinks are relative to it)."""


def _resolve(work: Work) -> None:
    """Writes what this SAE depends on. Reads the weights once, so that a damaged file is found before a GPU is."""
    external = work.recipe.content["external"]
    coder = work.workspace.sae(work.sae)
    corpus = work.input("tokenized_corpus")
    resolved = {
        **external,
        "corpus": corpus.pin,
        "n_latents": coder.n_latents,
        "d_in": coder.d_in,
    }
    with work.draft.file("resolved.json") as path:
        path.write_text(json.dumps(resolved, indent=1))
    cache = {key: value for key, value in external.items() if key != "latents"}
    work.draft.part("cache", json_sha256({**cache, "corpus": corpus.manifest.data_version}))
    work.draft.part("latents", json_sha256(external["latents"]))
    work.facts = {"latents": coder.n_latents, "d_in": coder.d_in}


resolve_saes = one_by_one(_resolve)


def cache_activations(works: Sequence[Work]) -> Iterator[Work]:
    """Runner of `activation_cache`: one forward pass per model serves all works of that model.

    A SAE that fails (a width that does not fit, a full disk) leaves the pass; the others go on.
    """

    def shared(work: Work) -> tuple[str, str]:
        return work.model.name, work.input("resolved_saes").json("resolved.json")["corpus"]["fingerprint"]

    keys: dict[str, tuple[str, str]] = {}
    for work in works:
        work.error = attempt(lambda work=work: keys.update({work.partition: shared(work)}))  # type: ignore[misc]
        if work.error:
            yield work
    ready = [work for work in works if work.partition in keys]
    for _, group in groupby(sorted(ready, key=lambda w: keys[w.partition]), key=lambda w: keys[w.partition]):
        together = list(group)
        error = attempt(lambda together=together: _Pass(together).run())  # type: ignore[misc]
        for work in together:
            work.error = work.error or error
            yield work


def batch_tokens(machine: MachineSettings, device: str) -> int:
    """Tokens per forward pass on a kind of device."""
    return machine.batch_tokens or (BATCH if device == "cpu" else BATCH_GPU)


class _Pass:
    """One pass of a model over its corpus for several SAEs."""

    def __init__(self, works: list[Work]) -> None:
        self.works = works
        first = works[0]
        self.mask = first.model.mask
        self.corpus: Corpus = first.workspace.corpus(first.input("resolved_saes"))
        self.subject: Subject = first.workspace.subject(first.model.name)
        machine, device = first.settings.machine, self.subject.device.type
        self.batch = max(1, batch_tokens(machine, device) // self.corpus.tokens.shape[1])
        self.beside = Beside(device, machine.workers)
        self.coders: dict[str, SparseCoder] = {}
        self.sinks: dict[str, float] = {}
        self.quality = {work.partition: _Quality() for work in works}

    @property
    def active(self) -> list[Work]:
        return [work for work in self.works if work.error is None]

    def run(self) -> None:
        with self.beside:
            self._run()

    def _run(self) -> None:
        for work in self.works:
            work.attempt(partial(self._open, work))
        began = time.monotonic()
        n_sequences, length = self.corpus.tokens.shape
        for work in self.works:
            work.start()
        per_shard = max(1, SHARD // length)
        self.n_shards = -(-n_sequences // per_shard)
        for number, start in enumerate(range(0, n_sequences, per_shard)):
            stop = min(start + per_shard, n_sequences)
            self._shard(f"shard-{number:06d}", start, stop)
            self._tell(stop)
        self.beside.finish()
        seconds = round(time.monotonic() - began, 3)
        for work in self.active:
            work.facts["pass_seconds"] = seconds
            work.attempt(partial(self._latents, work))

    def _tell(self, n_sequences: int) -> None:
        """How far the pass is: a shard of a large model takes minutes."""
        total, length = self.corpus.tokens.shape
        self.works[0].progress(n_sequences * length, total * length, "tokens")

    def _open(self, work: Work) -> None:
        coder = work.workspace.sae(work.sae)
        work.workspace.check_resolved(work.input("resolved_saes"))
        coder.check_width(self.subject.width_at(work.sae.hookpoint), work.sae.hookpoint)
        self.coders[work.partition] = coder.to(self.subject.device)
        work.draft  # noqa: B018  takes the lock before anything is written

    # -- one shard ---------------------------------------------------------------------------------------

    def _shard(self, name: str, start: int, stop: int) -> None:
        tables = (schema.ACTIVATIONS, schema.MASKED)
        due: dict[Work, dict[str, Any]] = {}

        def find_due(work: Work) -> None:
            recipe = self._recipe(work, start, stop)
            if not work.draft.reuse(name, recipe, tables):
                due[work] = recipe

        for work in self.active:
            work.attempt(partial(find_due, work))
        if not due:
            return
        pairs: dict[str, list[_Pairs]] = {work.partition: [] for work in due}
        norms: dict[str, list[torch.Tensor]] = {work.sae.hookpoint: [] for work in due}
        for first in range(start, stop, self.batch):
            self._batch(due, pairs, norms, first, min(first + self.batch, stop), measure=first == start)
            self._tell(min(first + self.batch, stop))
        over = self._sinks({hookpoint: _host(parts) for hookpoint, parts in norms.items()}, start)
        static = self._static_mask(start, stop)
        offset = start * self.corpus.tokens.shape[1]

        def put(work: Work, recipe: dict[str, Any], found: list[_Pairs]) -> None:
            frames = {
                "activations": self._sorted(work, found, offset),
                "masked": _masked(static, over[work.sae.hookpoint], offset),
            }
            work.draft.put(name, recipe, tables, frames)

        for work, recipe in due.items():
            if work.error is None:
                self.beside.do(partial(work.attempt, partial(put, work, recipe, pairs.pop(work.partition))))

    def _batch(
        self,
        due: Iterable[Work],
        pairs: dict[str, list[_Pairs]],
        norms: dict[str, list[torch.Tensor]],
        first: int,
        stop: int,
        *,
        measure: bool,
    ) -> None:
        """Runs the model over some sequences and appends what their activations tell, none of which outlives this."""
        found = self.subject.activations(np.asarray(self.corpus.tokens[first:stop]), sorted(norms))
        for hookpoint, x in found.items():
            flat = x.reshape(-1, x.shape[-1])
            norms[hookpoint].append(_norms(flat))
            for work in due:
                if work.error is None and work.sae.hookpoint == hookpoint:
                    work.attempt(partial(self._encode, work, flat, pairs[work.partition], measure))

    def _encode(self, work: Work, x: Float[torch.Tensor, "tokens d"], pairs: list[_Pairs], measure: bool) -> None:
        """Appends one batch's pairs; `measure`: takes figures of quality from them."""
        coder = self.coders[work.partition]
        found = coder.encode_sparse(x)
        if measure:
            self.quality[work.partition].add(x, coder, found)
        pairs.append(_Pairs.of(found, len(x)))

    def _recipe(self, work: Work, start: int, stop: int) -> dict[str, Any]:
        resolved = work.input("resolved_saes").content(("cache",))
        return work.block_recipe(resolved_saes=resolved, sequences=[start, stop])

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
            sample = {h: _host([_norms(part[h]) for part in parts])[: n * length] for h in missing}
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

    def _sorted(self, work: Work, found: list[_Pairs], offset: int) -> pl.DataFrame:
        """The shard's pairs by (latent, position). Transposing a CSR matrix is a counting sort: linear time."""
        n_tokens = sum(len(p.per_token) for p in found)
        indptr = np.zeros(n_tokens + 1, dtype=np.int64)
        np.cumsum(_host([p.per_token for p in found]), out=indptr[1:])
        rows = sparse.csr_array(
            (_host([p.value for p in found]), _host([p.latent for p in found]), indptr),
            shape=(n_tokens, self.coders[work.partition].n_latents),
        )
        columns = rows.tocsc()
        latent = np.repeat(np.arange(columns.shape[1], dtype=np.uint32), np.diff(columns.indptr))
        value = columns.data
        if work.settings.activations.precision == "bfloat16":
            value = round_to_bfloat16(value)
        return pl.DataFrame(
            {"latent": latent, "position": columns.indices.astype(np.uint32) + np.uint32(offset), "activation": value}
        )

    def _latents(self, work: Work) -> None:
        assert len(work.draft.paths(schema.ACTIVATIONS)) == self.n_shards  # or not all there is would be counted
        write_latents(work, self.coders[work.partition].W_dec, self.subject, self.corpus)
        work.facts |= self.quality[work.partition].facts()


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


class _Quality:
    """FVU (centred) and L0 over a sample of tokens: shown beside the cache, decides nothing."""

    def __init__(self) -> None:
        self.residual = self.total = self.active = 0.0
        self.n = 0

    def add(self, x: torch.Tensor, coder: SparseCoder, found: Sparse) -> None:
        token, latent, value = found
        first = token < QUALITY_SAMPLE
        x, token, latent, value = x[:QUALITY_SAMPLE].float(), token[first], latent[first], value[first]
        # Sinks are orders of magnitude larger than the rest and would be all that the figure measures.
        norms = x.norm(dim=-1)
        keep = norms < 10 * norms.median()
        error = (x - coder.decode_sparse(token, latent, value, x))[keep]
        kept = x[keep]
        self.residual += error.square().sum().item()
        self.total += (kept - kept.mean(0)).square().sum().item()
        self.active += len(token)
        self.n += len(x)

    def facts(self) -> dict[str, float]:
        if not self.n:
            return {}
        return {
            "sample_fvu": round(self.residual / self.total, 4),
            "sample_l0": round(self.active / self.n, 2),
            "sample_tokens": self.n,
        }


def _norms(x: Float[torch.Tensor, "*shape d"]) -> Float32[torch.Tensor, " positions"]:
    import torch

    norms: torch.Tensor = x.norm(dim=-1, dtype=torch.float32).flatten()
    return norms


def _host(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """The parts one after the other, on the host."""
    import torch

    array: np.ndarray = torch.cat(list(parts)).cpu().numpy()
    return array


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
