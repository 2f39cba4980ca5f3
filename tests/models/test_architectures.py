"""Every architecture that transformers can build small: the same activations as transformers', or a clear refusal."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from architectures import CONFIGS, DTYPES, REFUSED, outcome
from transformers import CONFIG_MAPPING

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_activations_are_transformers_own(model_type: str) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {model_type}")
    found = outcome(model_type)
    assert not found.faults
    if model_type not in REFUSED:
        assert not found.refused
        return
    for dtype in DTYPES:
        for part in ("reads the future", "Expected: a causal language model", "What to do: "):
            assert part in found.refused[dtype]


def test_of_modules_that_run_several_times_the_first_run_counts() -> None:
    assert outcome("phi").runs_again == ("layers.*.resid_dropout",)
    assert not outcome("phi").faults  # the plain values are those of the first run


def test_our_attention_is_used_where_the_class_can() -> None:
    used = {name for name in CONFIGS if name in CONFIG_MAPPING and outcome(name).own_attention}
    if not used:
        pytest.skip("this processor has no bfloat16 products")
    assert used >= {"gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma", "opt", "phi", "olmo2", "cohere"}
    assert not used & {"bloom", "codegen", "gptj", "gpt_neo", "falcon", "mpt", "gpt_oss", "gemma2", "mamba", "mixtral"}


def test_the_page_says_what_is_found() -> None:
    if any(name not in CONFIG_MAPPING for name in CONFIGS):
        pytest.skip("the installed transformers has not all architectures")
    page: dict[str, Any] = run_path(str(REPOSITORY / "docs" / "compatibility.py"))
    assert page["PAGE"].read_text(encoding="utf-8") == page["page"](), "run `make docs`"
