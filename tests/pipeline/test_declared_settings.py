"""Every setting is declared by the stages that use it, and makes exactly these and what depends on them stale."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from pydantic import BaseModel

from latentgloss.config import settings as settings_module
from latentgloss.pipeline.graph import STAGES, downstream
from latentgloss.workspace import Workspace


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which every stage has run once."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.computed_workspace(folder)
    return folder


def leaves(model: BaseModel, prefix: str = "") -> list[str]:
    found = []
    for name, value in model:
        path = f"{prefix}{name}"
        found += leaves(value, f"{path}.") if isinstance(value, BaseModel) else [path]
    return found


NOT_CONTENT = ("store", "registry", "folder", "machine.", "budget.")
OTHER_VALUES: dict[str, Any] = {
    "corpus.shares": (0.5, 0.1, 0.4),
    "corpus.near_duplicate": 0.9,
    "activations.precision": "float32",
    "contexts.sampler": "top",
    "contexts.length": 32,
    "negatives.strata": ("random",),
    "negatives.embedder": "minilm",
    "explanations.explainers": ("pattern",),
    "explanations.pattern.rules": 3,
    "explanations.model": "scripted",
    "explanations.llm.sample": 5,
    "explanations.best_of_k.judge": "scripted",
    "explanations.imported.file": "{sae}.csv",
    "explanations.imported.explained_by": "somebody",
    "explanations.imported.type": "somehow",
    "detection.judges": ("executed", "executed"),
    "detection.sample": 5,
    "detection.llm.sample": 5,
    "fuzzing.judges": ("executed", "executed"),
    "fuzzing.sample": 5,
    "fuzzing.llm.sample": 5,
    "fuzzing.wrong_marks": "random",
    "intruder.judges": ("tokens",),
    "intruder.sample": 5,
    "embedding.sample": 5,
    "embedding.embedders": ("tiny", "minilm"),
    "profile": "paper",
    "contexts.pool": "one",
    "search.embedder": "minilm",
}
"""Where adding one gives no valid value."""


def with_another(table, path, value):
    """A copy of the settings with another value in one place, whether or not it may be set there by itself."""
    old = getattr(table, path[0])
    if path[1:]:
        return table.model_copy(update={path[0]: with_another(old, path[1:], value)})
    new = not old if isinstance(old, bool) else value or old + 1
    return table.model_copy(update={path[0]: new})


@pytest.mark.parametrize("setting", [s for s in leaves(settings_module.Settings()) if not s.startswith(NOT_CONTENT)])
def test_every_setting_is_declared_by_the_stages_that_use_it(setting):
    users = [
        stage.name
        for stage in STAGES.values()
        if any(setting == name or setting.startswith(f"{name}.") for name in stage.settings)
    ]
    assert users, f"{setting} changes nothing: no stage declares it"


@pytest.mark.parametrize("setting", [s for s in leaves(settings_module.Settings()) if not s.startswith(NOT_CONTENT)])
def test_a_setting_makes_stale_exactly_the_stages_that_declare_it(finished, setting):
    workspace = Workspace.open(finished / "latentgloss.toml")
    changed_settings = with_another(workspace.settings, setting.split("."), OTHER_VALUES.get(setting))
    states = Workspace(changed_settings).states()
    changed = {s.asset for s in states if f"settings.{setting.split('.')[0]}" in s.because}
    declared = {
        stage.name
        for stage in STAGES.values()
        if any(setting == name or setting.startswith(f"{name}.") for name in stage.settings)
    }
    assert changed == declared
    assert {s.asset for s in states if s.state != "fresh"} == declared.union(*map(downstream, declared))
