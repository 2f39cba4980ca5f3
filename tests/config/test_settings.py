"""Settings: defaults, validation, and where the file is found."""

from __future__ import annotations

import pytest

from latentgloss.config import settings
from latentgloss.errors import SettingsError
from latentgloss.pipeline.graph import STAGES


def write(folder, text):
    path = folder / settings.FILE
    path.write_text(text)
    return path


def test_an_empty_file_means_all_defaults(tmp_path):
    loaded = settings.load(write(tmp_path, ""))
    assert loaded.contexts.length == 32
    assert loaded.store_root == tmp_path / "data"


def test_unknown_keys_are_refused_with_the_nearest_name(tmp_path):
    path = write(tmp_path, "[contexts]\nlenght = 16\n[negatifs]\n")
    with pytest.raises(SettingsError) as caught:
        settings.load(path)
    assert "'contexts.lenght', did you mean 'length'" in str(caught.value)
    assert "'negatifs', did you mean 'negatives'" in str(caught.value)


@pytest.mark.parametrize("text", ["[contexts]\nlength = 0", "[contexts]\ntest = 'many'", "store = 1", "[contexts"])
def test_values_that_make_no_sense_are_refused(tmp_path, text):
    with pytest.raises(SettingsError, match=settings.FILE):
        settings.load(write(tmp_path, text))


def test_the_file_is_found_upward_or_by_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    with pytest.raises(SettingsError, match="or above it"):
        settings.find()
    path = write(tmp_path, "")
    assert settings.find() == path
    other = write(below, "")
    monkeypatch.setenv(settings.VARIABLE, str(other))
    assert settings.find() == other


def test_no_recipe_holds_a_fact_of_the_machine():
    for stage in STAGES.values():
        assert not any(name.startswith(("machine", "store", "registry")) for name in stage.settings)


def test_every_stage_comes_after_its_inputs():
    seen: set[str] = set()
    for stage in STAGES.values():
        assert {i.stage for i in stage.inputs} <= seen
        seen.add(stage.name)
