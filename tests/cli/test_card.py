"""The command `show`: a latent on one screen, and as JSON, with the values that the tables have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from latentgloss import schema
from latentgloss.cli import card as screen
from latentgloss.cli import cli
from latentgloss.workspace import Workspace
from latentgloss.workspace.card import Card, Window, card_of

P, LATENT = tiny.SPARSIFY, 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return tiny.computed_workspace(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def card(finished: Workspace) -> Card:
    return card_of(finished, P, LATENT)


def run(workspace: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(workspace.settings.folder / "latentgloss.toml"), *arguments])


def stored(workspace: Workspace, stage: str, table: schema.Table) -> pl.DataFrame:
    version = workspace.store.current(stage, P)
    assert version is not None
    return version.read(table).filter(latent=LATENT)


def test_it_shows_the_first_explanation_of_the_settings_and_its_scores(finished: Workspace, card: Card) -> None:
    said = stored(finished, "explanations", schema.EXPLANATIONS).filter(explainer="pattern")
    assert (card.explainer, card.status, card.says) == ("pattern", "ok", said["explanation"][0])
    assert [(s.scorer, s.judge) for s in card.scores] == [
        ("detection", "executed"),
        ("fuzzing", "executed"),
        ("embedding", "cosine"),
    ]
    for score in card.scores:
        rows = stored(finished, f"{score.scorer}_scores", schema.SCORES).filter(negatives=score.negatives)
        own = rows.filter(explainer="pattern").row(0, named=True)
        assert (score.score, score.low, score.high) == (own["score"], own["ci_low"], own["ci_high"])
        nulls = rows.filter(pl.col("explainer").is_in(["null:pattern", "null:pattern:2"]))["score"]
        assert len(nulls) == 2 and score.null == pytest.approx(nulls.mean())


def test_contexts_are_the_strongest_of_each_decile(finished: Workspace, card: Card) -> None:
    contexts = stored(finished, "sampled_contexts", schema.CONTEXTS).filter(split="explain")
    strongest = dict(contexts.group_by("decile").agg(pl.col("max_activation").max()).iter_rows())
    deciles = [window.decile for window in card.windows]
    assert len(deciles) == 8 and deciles == sorted(deciles, reverse=True)
    for window in card.windows:
        row = contexts.filter(context=window.context).row(0, named=True)
        assert row["max_activation"] == strongest[window.decile]
        expected = np.zeros(16)
        expected[row["offsets"]] = row["activations"]
        np.testing.assert_allclose(window.activations, expected)
    words = {w.tokens[int(np.argmax(w.activations))].strip() for w in card.windows}
    assert words == {tiny.words()[0][LATENT // tiny.STEP]}, "the latent's own word"


def test_mistakes_are_test_contexts_that_were_judged_wrongly(finished: Workspace) -> None:
    found = [(latent, mistake) for latent in range(0, 192, 12) for mistake in card_of(finished, P, latent).mistakes]
    assert {mistake.truth for _, mistake in found} == {True, False}
    for latent, mistake in found:
        assert stored_wrong(finished, latent, mistake.window.context)
        assert mistake.window.split == "test"
        assert mistake.truth == any(mistake.window.activations), "where it fires, the card shows on which tokens"


def stored_wrong(workspace: Workspace, latent: int, context: int) -> bool:
    version = workspace.store.current("detection_scores", P)
    assert version is not None
    rows = version.read(schema.JUDGEMENTS).filter(latent=latent, explainer="pattern", split="test", context=context)
    return bool((rows["prediction"] != rows["truth"]).any())


def test_neighbours_and_promoted_tokens(finished: Workspace, card: Card) -> None:
    row = stored(finished, "activation_cache", schema.LATENTS).row(0, named=True)
    assert [n.latent for n in card.neighbours] == row["neighbours"][:5]
    assert [n.cosine for n in card.neighbours] == pytest.approx(row["neighbour_cosines"][:5])
    assert len(card.promotes) == len(row["top_outputs"])
    assert card.density == row["density"] and card.max_activation == row["max"]


def test_the_screen_is_short_and_has_no_control_characters(finished: Workspace) -> None:
    result = run(finished, "show", P, str(LATENT))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert lines[0] == f"{P} latent {LATENT}"
    assert "\x1b" not in result.stdout
    word = tiny.words()[0][LATENT // tiny.STEP]
    assert sum(f"«{word}»" in line for line in lines) >= 8
    assert any(line.startswith("  detection  executed") and "null" in line for line in lines)


def test_json_has_the_card(finished: Workspace, card: Card) -> None:
    found: dict[str, Any] = json.loads(run(finished, "show", P, str(LATENT), "--contexts", "2", "--json").stdout)
    assert found["says"] == card.says and len(found["windows"]) == 2
    assert found["scores"][0]["null"] == card.scores[0].null
    assert found["windows"][0]["tokens"] == list(card.windows[0].tokens)


def test_another_explainer_and_a_latent_without_an_explanation(finished: Workspace) -> None:
    assert card_of(finished, P, LATENT, explainer="token_table").says.startswith("Fires most on")
    dead = next(n for n in range(1, 256, 4) if card_of(finished, P, n).status != "ok")
    result = run(finished, "show", P, str(dead))
    assert result.exit_code == 0 and "no explanation by pattern" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((P, "5000"), "0 to 287"),
        (("tiny/layers.0/wrds", "8"), "unknown"),
        ((P, "8", "--explainer", "patern"), "one of pattern, token_table"),
        ((tiny.SAELENS, "30"), "is not selected"),
        ((P, "--", "-1"), "not in the range"),
    ],
)
def test_what_cannot_be_shown_says_why(finished: Workspace, arguments: tuple[str, ...], message: str) -> None:
    result = run(finished, "show", *arguments)
    assert result.exit_code in (1, 2) and message in result.output


def test_before_anything_is_explained_it_says_what_to_run(tmp_path: Path) -> None:
    result = run(tiny.tiny_workspace(tmp_path), "show", P, "8")
    assert result.exit_code == 1 and "dagster asset materialize --select explanations" in result.output


WINDOW = Window(1, "test", 10, ("one", " two", "\n\n", " \x1b[31m", "three", " four"), (0.0, 1.0, 0.2, 0.0, 4.0, 3.0))


def test_tokens_are_marked_or_shaded() -> None:
    plain = screen.text(WINDOW, 80, 4.0, colour=False)
    assert plain.replace("�", "?").count("«") == 1 and "«three four»" in plain and "\x1b" not in plain
    shaded = screen.text(WINDOW, 80, 4.0, colour=True)
    assert shaded.count("\x1b[48;2;") + shaded.count(";48;2;") >= 3
    assert "[31m" not in shaded.replace("\x1b[", "") or "\x1b[31m" not in shaded


@given(
    st.lists(
        st.tuples(st.sampled_from([" word", "ing", "\n", " ", " «", "é"]), st.sampled_from([0.0, 0.5, 2.0])), min_size=1
    ),
    st.integers(12, 80),
)
def test_any_context_fits_its_width_and_shows_its_strongest_token(tokens: list[tuple[str, float]], width: int) -> None:
    window = Window(1, "test", 5, tuple(text for text, _ in tokens), tuple(value for _, value in tokens))
    line = screen.text(window, width, 0.0, colour=False)
    assert len(line) <= width and "\n" not in line
    strongest = max(window.activations)
    if strongest and any(value == strongest and text.strip(" «\n") for text, value in tokens):
        assert "«" in line


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_long_context_is_cut_around_its_strongest_token(width: int) -> None:
    tokens = tuple(f" word{i}" for i in range(32))
    window = Window(1, "test", 5, tokens, tuple(float(i == 20) for i in range(32)))
    line = screen.text(window, width, 1.0, colour=False)
    assert "«word20»" in line and len(line) <= width and line.startswith("…") and line.endswith("…")
