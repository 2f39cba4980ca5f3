"""corpus: documents become sequences of tokens, each of one split (docs/methods.md, Data).

What belongs here: the stage from documents to files, and reading the files back. Where documents come from is
in `corpus_sources.py`, what counts as a duplicate in `corpus_duplicates.py`, sequences in
`corpus_packing.py`.

Writes into a folder, and `Corpus` reads from it:

- `tokens.npy`           uint32 [sequences, sequence_length]: sequences of explain, then select, then test
- `shared_13grams.npy`   bool, same shape: the 13 tokens from here on also occur in an earlier split
- `documents.parquet`, `spans.parquet`, `sequences.parquet`: see `schema.py`

A *position* is an index into the flattened token array. Documents of a split are joined by the separator
token into one stream, in reading order, and cut into sequences, with BOS in front of each if asked for; the
end that does not fill a sequence is dropped and counted.

A cluster's split is decided by the seed and the smallest `content_sha256` in it, so a document keeps its
split unless one that resembles it joins. Of two documents that are alike, the first read is kept.

Memory: token ids are on disk all the time. In memory are one batch of texts (or the longest text), about 4 kB
per document and, while 13-grams are marked, 8 bytes per token of explain and select. Disk: twice the tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.corpus.duplicates import Duplicates
from latentgloss.corpus.packing import CorpusPlan, Stream, mark_shared, pack, split_of
from latentgloss.corpus.sources import Document, iter_documents
from latentgloss.errors import CorpusError
from latentgloss.pipeline.stage_run import one_by_one
from latentgloss.schema import SPLITS
from latentgloss.store.digests import text_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from latentgloss.pipeline.stage_run import StageRun

    Encode = Callable[[list[str]], Sequence[Sequence[int]]]
    Progress = Callable[[int, int | None, str], None]


_BATCH_CHARACTERS = 1_000_000
_BATCH_DOCUMENTS = 2048
_SCRATCH = "tokens.scratch"


@dataclass(frozen=True)
class CorpusSummary:
    """Counts, for people."""

    documents: dict[str, int]
    """By status."""
    clusters: int
    largest_cluster: int
    """Documents in it, left-out ones included."""
    tokens: dict[str, int]
    """Document tokens in the array, by split."""
    sequences: dict[str, int]
    dropped_tail: dict[str, int]
    """Document tokens that filled no sequence, by split."""
    shared_positions: dict[str, int]
    """Positions where a 13-gram shared with an earlier split begins."""


@dataclass
class _Read:
    """What one pass over the documents leaves behind; token ids are in the scratch file."""

    duplicates: Duplicates
    rows: dict[str, list[Any]] = field(
        default_factory=lambda: {c: [] for c in ("name", "content_sha256", "status", "duplicate_of", "n_characters")}
    )
    kept: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    tokens: int = 0


def build_corpus(
    documents: Iterable[Document],
    encode: Encode,
    plan: CorpusPlan,
    folder: Path,
    progress: Progress | None = None,
) -> CorpusSummary:
    """Writes the corpus of `documents` into `folder` (exists, empty) and returns its counts.

    `encode` maps texts to token ids below 2^32, without BOS or any other special token; the result depends on
    each text alone, not on how they are batched. `progress` is called as progress(done, total or None, unit).

    Raises CorpusError if nothing is left, if a split with a share gets no whole sequence, or if a text cannot
    be encoded. After any error the folder holds no complete corpus; the caller throws it away.
    """
    report = progress or (lambda done, total, unit: None)
    scratch = folder / _SCRATCH
    try:
        read = _read(documents, encode, plan, scratch, report)
        table = _table(read, plan)
        kept, lengths = (np.array(column, dtype=np.int64) for column in (read.kept, read.lengths))
        splits = table["split"].to_numpy()[kept]
        streams = [Stream.of(kept, lengths, splits == split) for split in SPLITS]
        counts = [stream.rows(plan.payload) for stream in streams]
        _check(table, streams, counts, plan)
        spans = pack(scratch, streams, counts, plan, folder / "tokens.npy", report)
    finally:
        scratch.unlink(missing_ok=True)
    shared = mark_shared(folder, counts, plan, report)

    stored = spans.group_by("document").agg((pl.col("end") - pl.col("start")).sum().alias("n_tokens"))
    table = table.join(stored, on="document", how="left", maintain_order="left").with_columns(
        pl.col("n_tokens").fill_null(0)
    )
    sequences = pl.DataFrame(
        {
            "sequence": np.arange(sum(counts), dtype=np.uint32),
            "split": [split for split, n in zip(SPLITS, counts, strict=True) for _ in range(n)],
        }
    )
    for conform, frame in ((schema.DOCUMENTS, table), (schema.SPANS, spans), (schema.SEQUENCES, sequences)):
        conform.conform(frame).write_parquet(folder / f"{conform.name}.parquet", compression="zstd")
    return _summary(table, streams, counts, shared)


def _summary(table: pl.DataFrame, streams: list[Stream], counts: list[int], shared: list[int]) -> CorpusSummary:
    sizes = table["cluster"].value_counts()["count"]
    status = table["status"].value_counts(sort=True)
    by_split = dict(table.group_by("split").agg(pl.col("n_tokens").sum()).iter_rows())
    tokens = {split: int(by_split.get(split, 0)) for split in SPLITS}
    return CorpusSummary(
        documents=dict(status.iter_rows()),
        clusters=len(sizes),
        largest_cluster=int(sizes.max()),  # type: ignore[arg-type]
        tokens=tokens,
        sequences=dict(zip(SPLITS, counts, strict=True)),
        dropped_tail={s: int(x.lengths.sum()) - tokens[s] for s, x in zip(SPLITS, streams, strict=True)},
        shared_positions=dict(zip(SPLITS, shared, strict=True)),
    )


def _read(documents: Iterable[Document], encode: Encode, plan: CorpusPlan, scratch: Path, progress: Progress) -> _Read:
    """Deduplicates and encodes in one pass; the ids of kept documents are appended to the scratch file."""
    read = _Read(Duplicates(plan.near_duplicate))
    with scratch.open("wb") as out:
        for batch in _batches(documents):
            first = len(read.rows["name"])
            hashes = [_hash(document) for document in batch]
            verdicts = read.duplicates.add(first, [document.text for document in batch])
            fresh = [i for i, (status, _) in enumerate(verdicts) if status == "ok"]
            encoded = dict(zip(fresh, encode([batch[i].text for i in fresh]) if fresh else (), strict=True))
            for i, (document, (status, twin)) in enumerate(zip(batch, verdicts, strict=True)):
                ids = encoded.get(i, ())
                if status == "ok" and not len(ids):
                    status = "empty"
                full = plan.max_tokens is not None and read.tokens + len(ids) > plan.max_tokens
                for column, value in (
                    ("name", document.name),
                    ("content_sha256", hashes[i]),
                    ("status", "over_limit" if full else status),
                    ("duplicate_of", twin),
                    ("n_characters", len(document.text)),
                ):
                    read.rows[column].append(value)
                if full:  # the rest of the source is not read
                    progress(read.tokens, read.tokens, "tokens")
                    return read
                if status == "ok":
                    out.write(np.asarray(ids, dtype=np.uint32).tobytes())
                    read.kept.append(first + i)
                    read.lengths.append(len(ids))
                    read.tokens += len(ids)
            progress(read.tokens, plan.max_tokens, "tokens")
    return read


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _hash(document: Document) -> str:
    try:
        document.text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise CorpusError(
            f"{document.name} holds half a surrogate pair at character {e.start}",
            expected="text that can be written in UTF-8",
            todo="repair the text where it was cut or escaped",
        ) from e
    return text_sha256(document.text)


def _table(read: _Read, plan: CorpusPlan) -> pl.DataFrame:
    """The documents table but for `n_tokens`."""
    n = len(read.rows["name"])
    if not read.tokens:
        raise CorpusError(
            f"the corpus is empty: {n} documents were read and none has tokens"
            + (f" within the limit of {plan.max_tokens}" if "over_limit" in read.rows["status"] else ""),
            expected="text",
            todo="check the corpus source, its text column and the number of tokens asked for",
        )
    table = pl.DataFrame(
        {
            "document": np.arange(n, dtype=np.uint32),
            **read.rows,
            "cluster": read.duplicates.clusters(n),
        },
        schema_overrides={"duplicate_of": pl.UInt32, "n_characters": pl.UInt32},
    )
    representatives = table.group_by("cluster").agg(pl.col("content_sha256").min()).sort("cluster")
    splits = [split_of(sha256, plan) for sha256 in representatives["content_sha256"]]
    return table.with_columns(pl.Series("split", splits).gather(table["cluster"]))


def _check(table: pl.DataFrame, streams: list[Stream], counts: list[int], plan: CorpusPlan) -> None:
    for split, share, stream, n in zip(SPLITS, plan.shares, streams, counts, strict=True):
        if share > 0 and not n:
            raise CorpusError(
                f"split {split!r} got {stream.lengths.sum()} tokens in {len(stream.lengths)} documents, less "
                f"than one sequence of {plan.sequence_length}; there are {table['cluster'].n_unique()} clusters",
                expected="whole sequences in every split; a cluster of near-duplicates is never divided",
                todo="give more documents (a .txt file is one, however long; .jsonl holds one per line) or "
                "set a shorter `corpus.sequence_length`",
            )
    if sum(counts) * plan.sequence_length > np.iinfo(np.uint32).max:
        raise CorpusError(
            f"{sum(counts) * plan.sequence_length} tokens",
            expected="fewer than 2^32",
            todo="set `corpus.tokens`",
        )


class CorpusNeeds(Protocol):
    """What this stage needs that is not in the store."""

    @property
    def model_cache(self) -> Path: ...


def _tokenize(run: StageRun[CorpusNeeds]) -> None:
    from latentgloss.models.tokenizer import encode, load_tokenizer

    spec, settings = run.model.corpus, run.settings.corpus
    tokenizer = load_tokenizer(run.model, run.resources.model_cache)
    plan = CorpusPlan(
        sequence_length=spec.sequence_length,
        separator_id=_separator(tokenizer, spec.separator),
        bos_id=int(tokenizer.bos_token_id) if spec.prepend_bos else None,
        max_tokens=spec.tokens,
        shares=settings.shares,
        seed=settings.seed,
        near_duplicate=settings.near_duplicate,
    )

    documents = iter_documents(spec.source, spec.text_column, run.model.folder)
    with run.draft.folder() as folder:
        run.facts = asdict(build_corpus(documents, partial(encode, tokenizer), plan, folder, run.progress))


def _separator(tokenizer: PreTrainedTokenizerBase, token: str | None) -> int:
    if token is None:
        return int(tokenizer.eos_token_id)
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise CorpusError(
            f"the tokenizer has no token {token!r}",
            expected="one token of its vocabulary",
            todo="correct `separator` under [corpus] in the model's registry file",
        )
    return int(found)


tokenize_corpus = one_by_one(_tokenize)
