"""What a server says it bills, and what a body allows it to: the largest reading that can be, and nothing negative."""

from __future__ import annotations

import json
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latentgloss.config.entries import Prices
from latentgloss.llm.engines.bounds import more_prompt_tokens, most_reply_tokens
from latentgloss.llm.engines.usage import LARGEST, Usage, read_usage
from latentgloss.llm.ledger import Cost


def usage(prompt: Any = 100, completion: Any = 10, total: Any = None, **more: Any) -> dict[str, Any]:
    found = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **more}
    return {name: value for name, value in found.items() if value is not None}


def thinking(n: Any) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": n}}


@pytest.mark.parametrize(
    ("said", "prompt", "cached", "completion"),
    [
        (usage(total=110), 100, 0, 10),
        (usage(total=110, prompt_tokens_details={"cached_tokens": 64}), 100, 64, 10),
        (usage(total=2110, **thinking(2000)), 100, 0, 2010),
        (usage(total=2110), 100, 0, 2010),
        (usage(**thinking(2000)), 100, 0, 2010),  # they cannot be among ten
        (usage(completion=2010, **thinking(2000)), 100, 0, 2010),  # as OpenAI counts
        (usage(completion=2010, total=2110, **thinking(2000)), 100, 0, 2010),
        (usage(reasoning_tokens=500), 100, 0, 510),
        (usage(total=50), 100, 0, 10),
        (usage(completion=None, total=140), 100, 0, 40),
        (usage(prompt=None, total=140), 130, 0, 10),
        (usage(prompt=None, completion=None, total=140), 0, 0, 140),
        ({"input_tokens": 70, "output_tokens": 7}, 70, 0, 7),
        (usage(prompt="100", completion="10"), 100, 0, 10),
        (usage(prompt=99.2, completion=10.0), 100, 0, 10),
        (usage(completion=-100_000, total=-99_900), 100, 0, 0),
        (usage(prompt=-5), 0, 0, 10),
        (usage(prompt=2**70, completion=2**70, total=2**71), 0, 0, 0),
        (usage(completion=math.inf, prompt=math.nan), 0, 0, 0),
        (usage(completion=True), 100, 0, 0),
        (usage(completion=[3], prompt={}), 0, 0, 0),
        (usage(prompt_tokens_details={"cached_tokens": 1_000_000}), 100, 0, 10),
        (usage(prompt_tokens_details={"cached_tokens": -7}), 100, 0, 10),
        (usage(prompt_tokens_details=[], completion_tokens_details="?"), 100, 0, 10),
        (usage(prompt_cache_hit_tokens=60), 100, 60, 10),
        ({}, 0, 0, 0),
    ],
)
def test_charged_is_the_largest_reading_that_can_be(said: Any, prompt: int, cached: int, completion: int) -> None:
    found = read_usage(said)
    assert (found.prompt_tokens, found.cached_prompt_tokens, found.completion_tokens) == (prompt, cached, completion)


@pytest.mark.parametrize("said", [usage(), usage(total=110), usage(completion=0, total=100), None])
def test_what_is_plainly_reported_needs_no_remark(said: Any) -> None:
    assert read_usage(said).note == ""


def test_a_remark_names_what_cannot_be() -> None:
    assert "completion_tokens = -100000" in read_usage(usage(completion=-100_000)).note
    assert "2010 tokens of reply" in read_usage(usage(total=2110)).note
    assert "cached" in read_usage(usage(prompt_tokens_details={"cached_tokens": 101})).note
    assert "10000" in read_usage(usage(completion=10**4000)).note
    assert "thousands of digits" in read_usage(usage(completion=10**5000)).note
    assert read_usage("100 tokens").note


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
_details = _values | st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), _values)
_names = ("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens")
_usages = _values | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(_names, _values) | {f"{name}_details": _details for name in _names[:2]}
)


@given(_usages)
def test_no_report_gives_credit_or_a_number_that_cannot_be_kept(said: Any) -> None:
    found = read_usage(said)
    assert isinstance(found, Usage) and isinstance(found.note, str)
    assert 0 <= found.cached_prompt_tokens <= max(found.prompt_tokens, found.cached_prompt_tokens) <= LARGEST
    assert 0 <= found.completion_tokens <= LARGEST
    prices = Prices(prompt=10.0, cached_prompt=1.0, completion=20.0)
    cost = Cost.of(prices, found.prompt_tokens, found.cached_prompt_tokens, found.completion_tokens)
    assert 0 <= cost.usd < math.inf and cost.tokens < 2**32


def test_no_cost_is_a_credit() -> None:
    prices = Prices(prompt=10.0, cached_prompt=1.0, completion=20.0)
    assert Cost.of(prices, 100, 1_000_000, 10) == Cost.of(prices, 100, 0, 10)
    assert Cost.of(prices, 100, -50, -10) == Cost.of(prices, 100, 0, 0)


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({"max_tokens": 20}, 20),
        ({"max_completion_tokens": 8000}, 8000),
        ({"max_tokens": 20, "max_completion_tokens": 8000}, 8000),
        ({"max_tokens": 20, "max_new_tokens": 300}, 300),
        ({"max_tokens": 20, "n": 16}, 320),
        ({"max_tokens": 20, "n": 2, "best_of": 16}, 320),
        ({"max_tokens": 20, "n": "4"}, 80),
        ({"max_tokens": 20, "n": 0}, 20),
        ({"max_tokens": "300"}, 300),
        ({"max_tokens": 20, "options": {"num_predict": 500}}, 500),
        ({"max_tokens": 20, "extra_body": {"sampling_params": {"n": 3}}}, 60),
        ({"max_tokens": 20, "reasoning": {"max_tokens": 4000}}, 4000),
        ({"max_tokens": 20, "thinking": {"type": "enabled", "budget_tokens": 1000}}, 1020),
        ({"max_tokens": 20, "response_format": {"properties": {"n": 9, "max_tokens": 10**6}}}, 20),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 20, "num_predict": -1}, None),
        ({"max_tokens": math.inf}, None),
        ({"max_tokens": [20]}, None),
        ({}, None),
    ],
)
def test_what_a_body_allows(body: dict[str, Any], most: int | None) -> None:
    assert most_reply_tokens({"model": "m", "messages": [{"content": "x", "n": 99}], **body}) == most


def test_what_else_may_be_put_into_a_prompt_is_bounded() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 1000}}]
    assert more_prompt_tokens({"messages": [], "max_tokens": 3, "stop": ["x" * 99]}) == 0
    assert more_prompt_tokens({"messages": [], "tools": tools}) >= len(json.dumps(tools)) // 2
