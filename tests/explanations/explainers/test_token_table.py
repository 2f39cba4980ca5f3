"""The token table: shrunk weighted rates, and a program that restores them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgloss.config.settings import ExplanationSettings
from latentgloss.errors import ExplainerError
from latentgloss.explanations.examples import Examples
from latentgloss.explanations.explainers.programs import load_program
from latentgloss.explanations.explainers.token_table import PRIOR, TokenTable, TokenTableExplainer, learn_token_table
from latentgloss.models.vocabulary import Vocabulary

VOCABULARY = Vocabulary([f" w{i}" for i in range(50)] + ["\n", " it"])
EXAMPLES = Examples(
    tokens=np.array([[0, 1, 0], [0, 2, 2]], dtype=np.uint32),
    activations=np.array([[2, 0, 0.5], [0, 0, 0]], dtype=np.float32),
    weight=np.array([1, 3], dtype=np.float32),
)


def test_rates_are_weighted_and_shrunk_to_the_global_rate() -> None:
    table = learn_token_table(EXAMPLES, VOCABULARY)
    overall = 2 / 12
    assert table.unseen == pytest.approx(overall)
    expected = [
        (2 / 5 * 3 + PRIOR * overall) / (3 + PRIOR),
        PRIOR * overall / (1 + PRIOR),
        PRIOR * overall / (2 + PRIOR),
    ]
    np.testing.assert_allclose(table.rates, expected, rtol=1e-6)
    np.testing.assert_allclose(
        table.strength(np.array([[2, 0, 40]], dtype=np.uint32)), [[expected[2], expected[0], overall]], rtol=1e-6
    )


def test_the_text_lists_the_top_ten() -> None:
    rates = np.linspace(1, 0.1, 12, dtype=np.float32)
    table = TokenTable(np.arange(40, 52, dtype=np.uint32), rates, 0.1, VOCABULARY)
    assert table.text() == "Fires most on " + ", ".join(f'" w{i}"' for i in range(40, 50)) + "."
    assert replace(table, rates=rates[::-1].copy()).text().startswith('Fires most on " it", "\\n", " w49", ')


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_program_restores_the_table(data: st.DataObject) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(0, 51), min_size=8, max_size=8)), dtype=np.uint32).reshape(2, 4)
    activations = np.array(data.draw(st.lists(st.floats(0, 9, width=32), min_size=8, max_size=8)), dtype=np.float32)
    activations[0] = 1
    table = learn_token_table(Examples(tokens, activations.reshape(2, 4), np.ones(2, np.float32)), VOCABULARY)
    everything = np.arange(52, dtype=np.uint32)[None]
    loaded = load_program(table.to_json(), VOCABULARY)
    np.testing.assert_array_equal(loaded.strength(everything), table.strength(everything))


@pytest.mark.parametrize("change", [("ids", "AAAA"), ("rates", "!"), ("version", 0), ("unseen", None)])
def test_a_damaged_program_is_refused(change: tuple[str, object]) -> None:
    import json

    program = json.loads(learn_token_table(EXAMPLES, VOCABULARY).to_json())
    with pytest.raises(ExplainerError, match="Expected"):
        load_program(json.dumps(program | dict([change])), VOCABULARY)


def test_a_table_of_a_larger_vocabulary_is_refused() -> None:
    program = learn_token_table(EXAMPLES, VOCABULARY).to_json()
    with pytest.raises(ExplainerError, match="vocabulary of 2"):
        load_program(program, Vocabulary(["a", "b"]))


def test_the_explainer_gives_one_row_per_latent() -> None:
    silent = replace(EXAMPLES, activations=np.zeros_like(EXAMPLES.activations))
    evidence = [SimpleNamespace(latent=i, examples=w, context_ids=[4, 9]) for i, w in enumerate([EXAMPLES, silent])]
    first, second = TokenTableExplainer(ExplanationSettings(), VOCABULARY).explain(evidence)  # type: ignore[arg-type]
    assert (first.status, first.text, first.context_ids) == ("ok", 'Fires most on " w0", " w1", " w2".', (4, 9))
    assert (second.status, second.program) == ("failed", None)
