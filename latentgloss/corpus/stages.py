"""The stage `tokenized_corpus`: a model's documents become its corpus.

What belongs here: turning a registry entry and the settings into a plan, and running it. Reads the documents of
`corpus.source` and the model's tokenizer; writes the files that `corpus/building.py` describes.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Protocol

from latentgloss.corpus.building import build_corpus
from latentgloss.corpus.packing import CorpusPlan
from latentgloss.corpus.sources import iter_documents, passed_over
from latentgloss.pipeline.stage_run import one_by_one

if TYPE_CHECKING:
    from pathlib import Path

    from latentgloss.pipeline.stage_run import StageRun


_log = logging.getLogger(__name__)


class CorpusNeeds(Protocol):
    """What this stage needs that is not in the store."""

    @property
    def model_cache(self) -> Path:
        """Folder of converted models and their tokenizers."""


def _tokenize(run: StageRun[CorpusNeeds]) -> None:
    from latentgloss.models.readiness import bos_and_separator, check_model_ready
    from latentgloss.models.tokenizer import encode, load_tokenizer

    spec, settings = run.model.corpus, run.settings.corpus
    check_model_ready(run.model, run.resources.model_cache)
    tokenizer = load_tokenizer(run.model, run.resources.model_cache)
    bos_id, separator_id = bos_and_separator(tokenizer, spec)
    plan = CorpusPlan(
        sequence_length=spec.sequence_length,
        separator_id=separator_id,
        bos_id=bos_id,
        max_tokens=spec.tokens,
        shares=settings.shares,
        seed=settings.seed,
        near_duplicate=settings.near_duplicate,
    )

    documents = iter_documents(spec.source, spec.text_column, run.model.folder, skip=spec.on_error == "skip")
    with run.draft.folder() as folder:
        summary = asdict(build_corpus(documents, partial(encode, tokenizer), plan, folder, run.progress))
    run.facts = {name: value for name, value in summary.items() if value != []}
    others = passed_over(spec.source, run.model.folder)
    if others:
        _log.warning("corpus of %s: %s are not read", run.model.name, others)
        run.facts["not read"] = others


tokenize_corpus = one_by_one(_tokenize)
"""Runner of `tokenized_corpus`."""
