"""What the pages show can be used: their TOML is of the registry or of settings, and is accepted."""

from __future__ import annotations

import re
import tomllib

import pytest
from repository import ROOT

from latentgloss.config import Settings
from latentgloss.config.entries import LanguageModelSpec

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (f"{page.relative_to(ROOT)}:{page.read_text()[: found.start()].count(chr(10)) + 1}", found[1])
    for page in PAGES
    for found in re.finditer(r"^```toml\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(("where", "text"), BLOCKS, ids=[where for where, _ in BLOCKS])
def test_toml_in_the_docs_is_accepted(where, text):
    content = tomllib.loads(text)
    if "engine" in content:
        assert LanguageModelSpec.model_validate(content).name == content["name"]
    else:
        assert Settings.model_validate(content).model_fields_set == content.keys()


def test_models_that_example_settings_name_are_examples_themselves():
    contents = [tomllib.loads(text) for _, text in BLOCKS]
    known = {content["name"] for content in contents if "engine" in content}
    named = {content["explanations"]["model"] for content in contents if "model" in content.get("explanations", {})}
    named |= {
        judge.removeprefix("llm:")
        for content in contents
        for scorer in ("detection", "fuzzing", "intruder")
        for judge in content.get(scorer, {}).get("judges", ())
        if judge.startswith("llm:")
    }
    assert named and named <= known
