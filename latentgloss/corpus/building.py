"""Building a corpus: from documents to a folder of files.

What belongs here: reading documents once, removing duplicates, encoding, and writing the result. Where documents come
from is in `corpus/sources.py`, what counts as a duplicate in `corpus/duplicates.py`, splits and sequences in
`corpus/packing.py`. `corpus/reader.py` reads the files back.

Writes into a folder:

- `tokens.npy`: uint32 [sequences, sequence_length], the sequences of explain, then select, then test.
- `shared_13grams.npy`: bool of the same shape, true where the 13 tokens from this position on also occur in an
  earlier split.
- `documents.parquet`, `spans.parquet`, `sequences.parquet`: the tables of `schema/corpus.py`.

A *position* is an index into the flattened token array. The documents of a split are joined by the separator token into
one stream, in reading order, and cut into sequences, each with BOS in front if the plan says so. The end of the stream
that does not fill a sequence is dropped and counted.

The seed and the smallest `content_sha256` in a cluster decide its split, so a document keeps its split unless a
document that resembles it is added. Of several documents that are alike, the first one read is kept.

Memory: token ids stay on disk. In memory are one batch of texts (or the longest text), about 4 kB per document and,
while 13-grams are marked, 8 bytes per token of explain and select. Disk: twice the tokens.

Method: docs/methods.md, Data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.corpus.duplicates import Duplicates
from latentgloss.corpus.formats import check_unicode
from latentgloss.corpus.packing import CorpusPlan, Stream, mark_shared, pack, split_of
from latentgloss.errors import CorpusError
from latentgloss.schema import SPLITS
from latentgloss.store.digests import text_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from latentgloss.corpus.formats import Document

    Encode = Callable[[list[str]], Sequence[Sequence[int]]]
    Progress = Callable[[int, int | None, str], None]


_BATCH_CHARACTERS = 1_000_000
_BATCH_DOCUMENTS = 2048
"""A batch of documents ends once it has at least this many characters or documents."""
_SCRATCH = "tokens.scratch"
_SHOWN = 5
"""Most reasons for skipped rows that are kept."""


@dataclass(frozen=True)
class CorpusSummary:
    """Counts of a corpus, for display."""

    documents: dict[str, int]
    """Documents by status."""
    clusters: int
    """Clusters of near-duplicates."""
    largest_cluster: int
    """Documents in the largest cluster, including those that were left out."""
    tokens: dict[str, int]
    """Document tokens in the token array, by split."""
    sequences: dict[str, int]
    """Sequences by split."""
    dropped_tail: dict[str, int]
    """Document tokens at the end of a split's stream that fill no sequence, by split."""
    shared_positions: dict[str, int]
    """Positions at which a 13-gram begins that also occurs in an earlier split, by split."""
    unreadable: list[str] = field(default_factory=list)
    """Why the first rows that were skipped could not be read."""


@dataclass
class _Read:
    """Documents read so far; their token ids are in the scratch file."""

    duplicates: Duplicates
    rows: dict[str, list[Any]] = field(
        default_factory=lambda: {c: [] for c in ("name", "content_sha256", "status", "duplicate_of", "n_characters")}
    )
    """Columns of the documents table; the other columns need all documents."""
    kept: list[int] = field(default_factory=list)
    """Numbers of the documents in the scratch file."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each of them."""
    tokens: int = 0
    """Tokens in the scratch file."""
    problems: list[str] = field(default_factory=list)
    """Why the first rows that were skipped could not be read."""


def build_corpus(
    documents: Iterable[Document],
    encode: Encode,
    plan: CorpusPlan,
    folder: Path,
    progress: Progress | None = None,
) -> CorpusSummary:
    """Writes the corpus of `documents` into `folder` (an empty folder) and returns its counts.

    `encode` maps texts to token ids below 2^32, without BOS or any other special token. The ids of a text must not
    depend on the other texts of the batch. `progress` is called as progress(done, total or None, unit).

    Raises CorpusError if no document has tokens, if a split with a share gets no whole sequence, if the corpus has
    2^32 tokens or more, or if a text is not valid Unicode. After an error the folder holds no complete corpus, and the
    caller must discard it.
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

    n_tokens = spans.group_by("document").agg((pl.col("end") - pl.col("start")).sum().alias("n_tokens"))
    table = table.join(n_tokens, on="document", how="left", maintain_order="left").with_columns(
        pl.col("n_tokens").fill_null(0)
    )
    sequences = pl.DataFrame(
        {
            "sequence": np.arange(sum(counts), dtype=np.uint32),
            "split": [split for split, n in zip(SPLITS, counts, strict=True) for _ in range(n)],
        }
    )
    for stored_table, frame in ((schema.DOCUMENTS, table), (schema.SPANS, spans), (schema.SEQUENCES, sequences)):
        stored_table.conform(frame).write_parquet(folder / f"{stored_table.name}.parquet", compression="zstd")
    return replace(_summary(table, streams, counts, shared), unreadable=read.problems)


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
        dropped_tail={
            split: int(stream.lengths.sum()) - tokens[split] for split, stream in zip(SPLITS, streams, strict=True)
        },
        shared_positions=dict(zip(SPLITS, shared, strict=True)),
    )


def _read(documents: Iterable[Document], encode: Encode, plan: CorpusPlan, scratch: Path, progress: Progress) -> _Read:
    """Reads all documents in one pass: removes duplicates, encodes, and appends token ids to the scratch file."""
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
                if document.problem:
                    status = "unreadable"
                    read.problems += [document.problem] if len(read.problems) < _SHOWN else []
                full = plan.max_tokens is not None and read.tokens + len(ids) > plan.max_tokens
                for column, value in (
                    ("name", document.name),
                    ("content_sha256", hashes[i]),
                    ("status", "over_limit" if full else status),
                    ("duplicate_of", twin),
                    ("n_characters", len(document.text)),
                ):
                    read.rows[column].append(value)
                if full:  # reading ends here, even if later documents would fit
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
    """The documents in lists that are deduplicated and encoded at once."""
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
    """`content_sha256` of a document. Raises CorpusError if its text cannot be encoded in UTF-8."""
    check_unicode(document.text, document.name)
    return text_sha256(document.text)


def _table(read: _Read, plan: CorpusPlan) -> pl.DataFrame:
    """The documents table without `n_tokens`."""
    n = len(read.rows["name"])
    if not read.tokens:
        raise CorpusError(
            f"the corpus is empty: {n} documents were read and none has tokens"
            + (f"; {len(read.problems)} or more could not be read, first: {read.problems[0]}" if read.problems else "")
            + (f" within the limit of {plan.max_tokens}" if "over_limit" in read.rows["status"] else ""),
            expected="text",
            todo="check `corpus.source`, `corpus.text_column` and `corpus.tokens` of the model",
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


def _counted(table: pl.DataFrame) -> str:
    """How many documents were read and how many of them were left out, in words."""
    n = dict(table["status"].value_counts().iter_rows())
    twins = n.get("duplicate_exact", 0) + n.get("duplicate_near", 0)
    left_out = {
        "duplicates of others": twins,
        "empty": n.get("empty", 0),
        "unreadable": n.get("unreadable", 0),
        "over the limit of `corpus.tokens`": n.get("over_limit", 0),
    }
    found = [f"{count:,} are {what}" for what, count in left_out.items() if count]
    return (
        f"{table.height:,} documents were read"
        + (f", of which {' and '.join(found)}" if found else "")
        + (f"; there are {table['cluster'].n_unique()} clusters")
    )


def _check(table: pl.DataFrame, streams: list[Stream], counts: list[int], plan: CorpusPlan) -> None:
    """Raises CorpusError if a split with a share has no whole sequence, or if positions do not fit into 32 bits."""
    for split, share, stream, n in zip(SPLITS, plan.shares, streams, counts, strict=True):
        if share > 0 and not n:
            raise CorpusError(
                f"split {split!r} got {stream.lengths.sum()} tokens in {len(stream.lengths)} documents, less "
                f"than one sequence of {plan.sequence_length}; {_counted(table)}",
                expected="at least one whole sequence in every split; a cluster of near-duplicates is never divided",
                todo="give more documents (a .txt file is one document, however long; .jsonl holds one per line) or "
                "set a shorter `corpus.sequence_length`",
            )
    if sum(counts) * plan.sequence_length > np.iinfo(np.uint32).max:
        raise CorpusError(
            f"the corpus has {sum(counts) * plan.sequence_length} tokens",
            expected="fewer than 2^32",
            todo="set a lower `corpus.tokens`",
        )
