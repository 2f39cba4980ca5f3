"""Embeddings: vectors of contexts and of explanations, and the index people search. Stages beside the six nouns.

What belongs here: which contexts and texts the stages see to, and the record each leaves (`vectors.json`,
`index.json`): table, embedder, numbers. The vectors are in LanceDB (`vectors.py`), the index is `search.py`.

The first two stages only order the work: a vector is a pure function of text and embedder, so whoever needs one that is
missing makes it, and recipes of consumers hold the embedder's identity, not these stages.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from latentgloss import schema
from latentgloss.hashing import json_sha256
from latentgloss.search import SearchIndex, explanation_rows
from latentgloss.stages import STAGES
from latentgloss.windows import Windows
from latentgloss.work import one_by_one

if TYPE_CHECKING:
    from latentgloss.work import Work

VECTORS, INDEX = "vectors.json", "index.json"


def _contexts(work: Work) -> None:
    corpus = work.workspace.corpus_of(work.input("tokenized_corpus"))
    length = work.settings.contexts.length
    usable = np.flatnonzero(Windows.of(corpus, length).usable)
    record, made = {}, 0
    for name in work.settings.embedding.embedders:
        vectors = work.workspace.context_vectors(work.model.name, corpus, name, work.progress)
        made += vectors.ensure(usable)
        record[name] = {
            "table": vectors.table.name,
            "embedder": vectors.embedder.identity(),
            "dimension": vectors.table.dimension,
            "contexts": len(usable),
            "distinct": vectors.distinct(usable),
            "length": length,
        }
    _leave(work, record, made)


def _explanations(work: Work) -> None:
    explained = work.input("explanations").scan(schema.EXPLANATIONS).filter(pl.col("status") == "ok")
    texts = explained.select("explanation").collect().to_series().to_list()
    distinct = list(dict.fromkeys(texts))
    record, made = {}, 0
    for name in work.settings.embedding.embedders:
        vectors = work.workspace.text_vectors(name, "document", work.progress)
        made += vectors.ensure(distinct)
        record[name] = {
            "table": vectors.table.name,
            "embedder": vectors.embedder.identity(),
            "dimension": vectors.table.dimension,
            "explanations": len(texts),
            "distinct": len(distinct),
            "cut": int(sum(n > vectors.embedder.max_tokens for n in vectors.n_tokens(distinct))),
        }
    _leave(work, record, made)


def _leave(work: Work, record: dict[str, Any], made: int) -> None:
    with work.draft.file(VECTORS) as path:
        path.write_text(json.dumps(record, indent=1))
    work.draft.part("vectors", json_sha256(record))
    work.facts = {"made": made, "there already": sum(r["distinct"] for r in record.values()) - made}


def _index(work: Work) -> None:
    """Replaces the rows of this model's SAEs, one SAE at a time; those of other models stay."""
    inputs = work.recipe.inputs
    needed = [set(versions) for stage, versions in inputs.items() if STAGES[stage].noun != "scores"]
    complete = sorted(set.intersection(*needed))
    vectors = work.workspace.text_vectors(work.settings.search.embedder, "document")
    index = SearchIndex(work.workspace.lance, vectors.embedder.identity())
    rows = {}
    with index.writing(replace=True) as table:
        for done, partition in enumerate(complete):
            read = {stage: versions[partition] for stage, versions in inputs.items() if partition in versions}
            frame = explanation_rows(partition, read)
            table.put(partition, frame, vectors.get(frame["explanation"].to_list()), work.draft.fingerprint)
            rows[partition] = frame.height
            work.progress(done + 1, len(complete), "SAEs")
        table.keep_only(work.partition, complete)
    record = {"table": index.name, "embedder": vectors.embedder.identity(), "rows": rows}
    with work.draft.file(INDEX) as path:
        path.write_text(json.dumps(record, indent=1))
    work.draft.part("index", json_sha256({**record, "inputs": work.recipe.content["inputs"]}))
    work.facts = {"rows": sum(rows.values()), "partitions": complete}


embed_contexts = one_by_one(_contexts)
embed_explanations = one_by_one(_explanations)
index_explanations = one_by_one(_index)
