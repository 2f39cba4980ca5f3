"""The tiny workspace is a real one: its model runs, its SAEs fit, nothing in it is computed yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tiny import SAES, documents

if TYPE_CHECKING:
    from latentgloss.workspace import Workspace


def test_tiny_workspace(tiny_workspace: Workspace) -> None:
    assert not tiny_workspace.registry.problems
    assert sorted(tiny_workspace.registry.saes) == sorted(SAES)
    for partition in SAES:
        spec = tiny_workspace.registry.sae(partition)
        subject = tiny_workspace.subject(spec.model)
        tokens = np.array([subject.tokenizer(documents(1)[0])["input_ids"]])
        seen = subject.activations(tokens, [spec.hookpoint])[spec.hookpoint]
        tiny_workspace.sae(spec).check_width(seen.shape[2], spec.hookpoint)
    assert not any(tiny_workspace.settings.store_root.rglob("*.parquet"))
