"""The stages `context_embeddings`, `explanation_embeddings` and `search_index`, which stand beside the six nouns.

What belongs here: the choice of contexts and texts, and the record that each stage leaves (`vectors.json` or
`index.json`): table, embedder and counts. The vectors are in LanceDB (`vectors.py`); the index is written by
`search_writer.py`.

The first two stages only compute vectors early. A vector is a pure function of text and embedder, so any stage that
needs a missing vector computes it, and its recipe holds the embedder's identity instead of these stages.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.contexts.windows import Windows
from latentgloss.embeddings.row_checks import INDEX, VECTORS
from latentgloss.embeddings.search_index import SearchIndex
from latentgloss.embeddings.search_writer import explanation_rows, writing
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage_run import one_by_one
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from latentgloss.corpus.reader import Corpus
    from latentgloss.embeddings.lance import LanceTables
    from latentgloss.embeddings.vectors import ContextVectors, Progress, TextVectors
    from latentgloss.pipeline.stage_run import StageRun
    from latentgloss.store import Version


class EmbeddingNeeds(Protocol):
    """What these stages need beside their inputs."""

    @property
    def lance(self) -> LanceTables:
        """The store's LanceDB tables."""

    def corpus_of(self, version: Version) -> Corpus:
        """The corpus of a `tokenized_corpus` version."""

    def context_vectors(
        self, model: str, corpus: Corpus, embedder: str, progress: Progress | None = None
    ) -> ContextVectors:
        """Vectors of the contexts of a model's corpus."""

    def text_vectors(
        self, embedder: str, role: Literal["query", "document"], progress: Progress | None = None
    ) -> TextVectors:
        """Vectors of texts in one role."""


def _contexts(run: StageRun[EmbeddingNeeds]) -> None:
    corpus = run.resources.corpus_of(run.input("tokenized_corpus"))
    length = run.settings.contexts.length
    usable = np.flatnonzero(Windows.of(corpus, length).usable)
    record, made = {}, 0
    for name in run.settings.embedding.embedders:
        vectors = run.resources.context_vectors(run.model.name, corpus, name, run.progress)
        made += vectors.ensure(usable)
        record[name] = {
            "table": vectors.table.name,
            "embedder": vectors.embedder.identity(),
            "dimension": vectors.table.dimension,
            "contexts": len(usable),
            "distinct": vectors.distinct(usable),
            "length": length,
        }
    _write_record(run, record, made)


def _explanations(run: StageRun[EmbeddingNeeds]) -> None:
    explained = run.input("explanations").scan(schema.EXPLANATIONS).filter(pl.col("status") == "ok")
    texts = explained.select("explanation").collect().to_series().to_list()
    distinct = list(dict.fromkeys(texts))
    record, made = {}, 0
    for name in run.settings.embedding.embedders:
        vectors = run.resources.text_vectors(name, "document", run.progress)
        made += vectors.ensure(distinct)
        record[name] = {
            "table": vectors.table.name,
            "embedder": vectors.embedder.identity(),
            "dimension": vectors.table.dimension,
            "explanations": len(texts),
            "distinct": len(distinct),
            "cut": int(sum(n > vectors.embedder.max_tokens for n in vectors.n_tokens(distinct))),
        }
    _write_record(run, record, made)


def _write_record(run: StageRun[EmbeddingNeeds], record: dict[str, Any], made: int) -> None:
    """Writes `vectors.json` and the facts. `made`: number of vectors computed in this run."""
    with run.draft.file(VECTORS) as path:
        path.write_text(json.dumps(record, indent=1))
    run.draft.part("vectors", json_sha256(record))
    run.facts = {"made": made, "there already": sum(r["distinct"] for r in record.values()) - made}


def _index(run: StageRun[EmbeddingNeeds]) -> None:
    """Replaces the rows of this model's SAEs, one SAE at a time; the rows of other models stay."""
    inputs = run.recipe.inputs
    needed = [set(versions) for stage, versions in inputs.items() if STAGES[stage].noun != "scores"]
    complete = sorted(set.intersection(*needed))
    vectors = run.resources.text_vectors(run.settings.search.embedder, "document")
    index = SearchIndex(run.resources.lance, vectors.embedder.identity())
    rows = {}
    with writing(index, replace=True) as table:
        for done, partition in enumerate(complete):
            read = {stage: versions[partition] for stage, versions in inputs.items() if partition in versions}
            frame = explanation_rows(partition, read)
            table.put(partition, frame, vectors.get(frame["explanation"].to_list()), run.draft.fingerprint)
            rows[partition] = frame.height
            run.progress(done + 1, len(complete), "SAEs")
        table.keep_only(run.partition, complete)
    record = {"table": index.name, "embedder": vectors.embedder.identity(), "rows": rows}
    with run.draft.file(INDEX) as path:
        path.write_text(json.dumps(record, indent=1))
    run.draft.part("index", json_sha256({**record, "inputs": run.recipe.content["inputs"]}))
    run.facts = {"rows": sum(rows.values()), "partitions": complete}


embed_contexts = one_by_one(_contexts)
embed_explanations = one_by_one(_explanations)
index_explanations = one_by_one(_index)
