"""The stage `tokenized_corpus`: what a model declares reaches its corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from latentgloss.corpus.reader import Corpus
from latentgloss.workspace import Workspace


@pytest.mark.parametrize(("declared", "token"), [("", 2), ('separator = "<unk>"\n', 0)])
def test_documents_are_joined_by_the_separator_that_the_model_declares(tmp_path, declared, token):
    workspace = _with_separator(tmp_path, declared)
    (outcome,) = tiny.run_all(workspace, ["tokenized_corpus"])
    corpus = Corpus.open(outcome.version.path("tokens.npy").parent)
    between = corpus.document_of_position(np.arange(corpus.tokens.size)) < 0
    between.reshape(corpus.tokens.shape)[:, 0] = False  # BOS
    assert between.sum() > 100
    assert set(corpus.tokens.ravel()[between]) == {token}


def test_a_separator_that_is_no_token_is_refused(tmp_path):
    (outcome,) = tiny.run_all(_with_separator(tmp_path, 'separator = "<eot>"\n'), ["tokenized_corpus"])
    assert "no token '<eot>'" in str(outcome.error)


def _with_separator(folder: Path, declared: str) -> Workspace:
    workspace = tiny.tiny_workspace(folder)
    with (folder / "registry" / "models" / "tiny.toml").open("a") as file:
        file.write(declared)  # its last table is [corpus]
    return Workspace.open(workspace.settings.folder / "latentgloss.toml")
