"""What `lineage --verify` recomputes of the embedding score: cosines of stored vectors.

What belongs here: comparing the evidence of judge `cosine` with the vectors that are stored now. A vector that is not
the one that was written is a failed check. A vector that is not stored is no failure, because tables of vectors may be
deleted at any time; neither is another order of latents in the registry, which gives another centre.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from latentgloss.errors import LatentglossError, StoreError
from latentgloss.lineage.checks import Check, none_of
from latentgloss.scores.judges.cosine import CosineJudge, centred_queries, cosines
from latentgloss.store.digests import json_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latentgloss.corpus.reader import Corpus
    from latentgloss.workspace import Workspace


def cosine_checks(
    workspace: Workspace,
    model: str,
    judgements: pl.DataFrame,
    text: str,
    corpus: Corpus,
    centre: Callable[[], Sequence[str]],
    ready: dict[str, Any],
) -> list[Check]:
    """One check per embedder that judged: the evidence again, from the stored vectors.

    `judgements`: of one latent and explanation. `text`: the explanation. `centre`: returns the texts whose mean is
    taken away, by today's registry. `ready`: what the block's facts say about them.
    """
    judged = judgements.filter(pl.col("judge") == CosineJudge.name, pl.col("evidence").is_not_null())
    return [
        _check(workspace, model, str(embedder), rows, text, corpus, centre, ready)
        for (embedder,), rows in sorted(judged.group_by("embedder"))
    ]


def _check(
    workspace: Workspace,
    model: str,
    embedder: str,
    rows: pl.DataFrame,
    text: str,
    corpus: Corpus,
    centre: Callable[[], Sequence[str]],
    ready: dict[str, Any],
) -> Check:
    what = f"evidence of {embedder} from its vectors"
    contexts = rows["context"].to_numpy()
    try:
        texts = centre()
        if json_sha256(list(texts)) != ready.get(f"{CosineJudge.name}:{embedder}", {}).get("sha256"):
            return Check(what, None, "explanations that the registry now selects in another order")
        queries = workspace.text_vectors(embedder, "query")
        (query,) = centred_queries(queries.stored([text]), queries.stored(texts))
        documents = workspace.context_vectors(model, corpus, embedder).stored(contexts)
    except StoreError as e:
        return Check(what, False, e.found)
    except (LatentglossError, KeyError) as e:
        return Check(what, None, e.found if isinstance(e, LatentglossError) else "vectors that are no longer stored")
    differ = contexts[cosines(documents, query) != rows["evidence"].to_numpy()]
    return none_of(what, differ.tolist(), f"{rows.height} judgements")
