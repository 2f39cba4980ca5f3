"""What `lineage --verify` recomputes outside the store: files of SAE and model, the corpus's source, its documents.

What belongs here: hashing declared files again, and reading and tokenising documents again, without relying on any
digest that was remembered earlier. Reads sources; writes nothing but temporary files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.errors import LatentglossError
from latentgloss.lineage.checks import Check, equal, none_of, shown
from latentgloss.store.digests import DigestCache, text_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentgloss.config.entries import ModelSpec
    from latentgloss.corpus.reader import Corpus
    from latentgloss.workspace import Workspace


def sae_check(workspace: Workspace, partition: str, stored: Any) -> Check:
    """Compares the digest of an SAE's files, or of a baseline's parameters, with the stored one."""
    from latentgloss.saes.opening import sae_digest

    what = "files of the SAE"
    try:
        spec = workspace.registry.sae(partition)
        return equal(what, sae_digest(spec), stored)
    except LatentglossError as e:
        return Check(what, False, e.found, shown(stored))


def model_check(workspace: Workspace, model: str, stored: Any) -> Check:
    """Compares the digest of a model's files with the stored one."""
    from latentgloss.models.identity import model_identity

    what = "files of the model"
    try:
        with tempfile.TemporaryDirectory() as folder:  # an empty cache, so that no remembered digest is used
            return equal(what, model_identity(workspace.registry.model(model), Path(folder)), stored)
    except LatentglossError as e:
        return Check(what, False, e.found, shown(stored))


def source_check(spec: ModelSpec, stored: Any) -> Check:
    """Compares the identity of the corpus's source with the stored one."""
    from latentgloss.corpus.sources import source_identity

    what = "source of the corpus"
    try:
        with tempfile.TemporaryDirectory() as folder:
            digests = DigestCache(Path(folder) / "digests")
            return equal(what, source_identity(spec.corpus.source, spec.folder, digests), stored)
    except LatentglossError as e:
        return Check(what, False, e.found, shown(stored))


def read_again(spec: ModelSpec, wanted: Iterable[int]) -> tuple[dict[int, tuple[str, str]], str]:
    """(name, text) of the wanted documents by number, read from the source again; and why any are missing.

    Documents on the Hugging Face Hub are not downloaded again.
    """
    from latentgloss.corpus.sources import iter_documents

    missing = set(wanted)
    found: dict[int, tuple[str, str]] = {}
    if spec.corpus.source.startswith("hf:"):
        return found, "documents on the Hugging Face Hub are not downloaded again"
    corpus = spec.corpus
    documents = iter_documents(corpus.source, corpus.text_column, spec.folder, skip=corpus.on_error == "skip")
    try:
        for number, document in enumerate(documents):
            if number in missing:
                found[number] = (document.name, document.text)
                missing.discard(number)
            if not missing:
                break
    except LatentglossError as e:
        return found, e.found
    return found, "the source ends before this document"


def document_check(row: dict[str, Any], again: tuple[str, str] | None, why: str) -> Check:
    """Compares name and hash of a document read again with its stored row. `why`: why it was not read."""
    stored = f"{row['name']} {row['content_sha256']}"
    what = "text read again from its source"
    if again is None:
        return Check(what, None if "not downloaded" in why else False, why, stored)
    return equal(what, f"{again[0]} {text_sha256(again[1])}", stored)


def tokens_check(workspace: Workspace, model: str, corpus: Corpus, texts: dict[int, tuple[str, str]]) -> Check:
    """Compares documents tokenised again with the tokens at their spans.

    Compares only as many tokens as are stored, because the end of a document may not fill a sequence.
    """
    from latentgloss.models.tokenizer import encode, load_tokenizer

    what = "documents tokenised again"
    try:
        tokenizer = load_tokenizer(workspace.registry.model(model), workspace.model_cache)
    except LatentglossError as e:
        return Check(what, False, e.found)
    flat = corpus.tokens.reshape(-1)
    wrong = []
    for number, (name, text) in sorted(texts.items()):
        own = np.flatnonzero(corpus.span_document == number)
        spans = [flat[corpus.span_start[i] : corpus.span_end[i]] for i in own]
        stored = np.concatenate(spans) if spans else np.empty(0, np.uint32)
        (ids,) = encode(tokenizer, [text])
        if list(ids[: len(stored)]) != stored.tolist():
            wrong.append(name)
    return none_of(what, wrong, f"{len(texts)} documents")
