"""What `lineage --verify` recomputes of the embedding score: cosines of stored vectors.

What belongs here: comparing the evidence of judge `cosine` with the vectors that are stored now. A vector that is not
the one that was written is a failed check. A vector that is not stored is no failure, because tables of vectors may be
deleted at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from latentgloss.errors import LatentglossError, StoreError
from latentgloss.lineage.checks import Check, none_of
from latentgloss.scores.judges.cosine import CosineJudge

if TYPE_CHECKING:
    from latentgloss.corpus.reader import Corpus
    from latentgloss.workspace import Workspace


def cosine_checks(workspace: Workspace, model: str, judgements: pl.DataFrame, text: str, corpus: Corpus) -> list[Check]:
    """One check per embedder that judged: the evidence again, from the stored vectors.

    `judgements`: of one latent and explanation. `text`: the explanation.
    """
    judged = judgements.filter(pl.col("judge") == CosineJudge.name, pl.col("evidence").is_not_null())
    return [
        _check(workspace, model, str(embedder), rows, text, corpus)
        for (embedder,), rows in sorted(judged.group_by("embedder"))
    ]


def _check(workspace: Workspace, model: str, embedder: str, rows: pl.DataFrame, text: str, corpus: Corpus) -> Check:
    what = f"evidence of {embedder} from its vectors"
    contexts = rows["context"].to_numpy()
    try:
        query = workspace.text_vectors(embedder, "query").stored([text])[0]
        documents = workspace.context_vectors(model, corpus, embedder).stored(contexts)
    except StoreError as e:
        return Check(what, False, e.found)
    except (LatentglossError, KeyError) as e:
        return Check(what, None, e.found if isinstance(e, LatentglossError) else "vectors that are no longer stored")
    # As the judge computes it.
    found = (documents.astype(np.float64) * query).sum(axis=1).astype(np.float32)
    differ = contexts[found != rows["evidence"].to_numpy()]
    return none_of(what, differ.tolist(), f"{rows.height} judgements")
