"""The tiny workspace is a real one: its model runs, its SAEs fit, nothing in it is computed yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from latentgloss.workspace import Workspace


def test_tiny_workspace(tiny_workspace: Workspace) -> None:
    registry = tiny_workspace.registry
    assert not registry.problems
    assert sorted(registry.saes) == ["tiny/layers.0/topk", "tiny/layers.1/topk"]
    subject = tiny_workspace.subject("tiny")
    tokens = np.array([subject.tokenizer("the old boat left the harbour.")["input_ids"]])
    for spec in registry.saes.values():
        seen = subject.activations(tokens, [spec.hookpoint])[spec.hookpoint]
        coder = tiny_workspace.sae(spec)
        assert seen.shape == (1, tokens.shape[1], coder.W_dec.shape[1])
    assert not tiny_workspace.settings.store_root.exists()
