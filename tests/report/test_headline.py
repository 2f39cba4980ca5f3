"""The report's first screen and its page: what is chosen, what stands beside it, and that nothing is left out."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from latentgloss import schema
from latentgloss.report.headline import Summary, best_median_worst, headlines, shown_explainer
from latentgloss.report.page import markdown

BLANK: dict[str, Any] = {
    "profile": "default",
    "embedder": "",
    "control": False,
    **dict.fromkeys(("n_latents", "n_alive", "n_eligible", "n_explained", "n_asked", "n_scored"), 9),
}


def row(partition: str = "m/h/s", **given: Any) -> dict[str, Any]:
    defaults = {"explainer": "pattern", "scorer": "detection", "judge": "executed", "negatives": "random"}
    return {**BLANK, **defaults, "partition": partition, "metric": "balanced_accuracy", "median": 0.7, **given}


def report(*rows: dict[str, Any]) -> pl.DataFrame:
    return schema.REPORT.frame(rows)


def test_a_score_stands_beside_its_null_and_the_baseline_of_the_same_judge_and_negatives() -> None:
    given = report(
        row(median=0.8, median_low=0.75, median_high=0.85),
        row(explainer="null:pattern", median=0.51),
        row(explainer="token_table", median=0.78),
        row(explainer="null:pattern", median=0.4, negatives="neighbour"),
        row(explainer="token_table", median=0.3, judge="llm"),
        row(metric="auroc", median=0.9),
    )
    (found,) = headlines(given, "pattern")
    expected = Summary("random", "executed", "default", 9, 0.8, 0.75, 0.85, 0.51, 0.78)
    assert found.scores == {"detection": expected}
    assert (found.n_latents, found.n_eligible, found.n_explained) == (9, 9, 9)


def test_the_first_kind_of_negatives_that_was_scored_is_shown() -> None:
    given = report(
        row(negatives="neighbour", median=0.6),
        row(negatives="same_document", median=0.65),
        row(negatives="random", median=None, n_scored=0),
        row(scorer="fuzzing", negatives="random", profile="paper", median=0.9),
    )
    (found,) = headlines(given, "pattern")
    assert (found.scores["detection"].negatives, found.scores["detection"].median) == ("same_document", 0.65)
    assert (found.scores["fuzzing"].negatives, found.scores["fuzzing"].profile) == ("random", "paper")


def test_controls_come_last_and_an_sae_without_scores_keeps_its_row() -> None:
    given = report(
        row("m/a/random", control=True), row("m/b/trained"), row("m/c/unscored", n_scored=0, n_explained=0, median=None)
    )
    found = headlines(given, "pattern")
    assert [one.partition for one in found] == ["m/b/trained", "m/c/unscored", "m/a/random"]
    assert found[1].scores == {} and found[1].n_explained == 0


def test_the_explainer_shown_is_the_first_of_the_settings_that_was_scored() -> None:
    given = report(row(explainer="llm"), row(explainer="token_table"), row(explainer="pattern", n_scored=0))
    assert shown_explainer(given, ["null:llm", "token_table", "pattern", "llm"]) == "llm"
    assert shown_explainer(given, ["pattern", "null:llm"]) is None


@pytest.mark.parametrize(
    ("latents", "expected"),
    [
        (0, []),
        (1, [("Best", 0)]),
        (2, [("Best", 0), ("Worst", 1)]),
        (3, [("Best", 0), ("Median", 1), ("Worst", 2)]),
        (6, [("Best", 0), ("Median", 2), ("Worst", 5)]),
    ],
)
def test_the_best_the_median_and_the_worst_latent(latents: int, expected: list[tuple[str, int]]) -> None:
    columns = {"judge": "executed", "negatives": "random", "status": "ok"}
    scores = [{"latent": i, "explainer": "pattern", "score": 0.9 - i / 10, **columns} for i in range(latents)]
    scores += [{"latent": 0, "explainer": f"null:pattern{n}", "score": 0.4 + n / 10, **columns} for n in (0, 2)]
    scores += [{"latent": 7, "explainer": "pattern", "score": 0.99, **columns, "judge": "llm"}]
    summary = Summary("random", "executed", "default", latents, 0.7, None, None, None, None)
    found = best_median_worst(pl.DataFrame(scores), "pattern", summary)
    assert [(place, one["latent"]) for place, one in found] == expected
    assert not found or found[0][1]["null"] == pytest.approx(0.5)


def test_the_page_has_every_row_and_every_number() -> None:
    given = report(
        row(median=0.8123, median_low=0.7, median_high=0.9, coverage=1.0),
        row(scorer="embedding", judge="cosine", embedder="minilm", metric="auroc", median=0.61),
        row("m/h/control", control=True, n_scored=1234),
    )
    page = markdown(given, "the store")
    assert "## m/h/control (control)" in page and "1,234" in page
    assert "0.812 [0.700, 0.900]" in page and "| minilm |" in page
    assert sum(line.startswith(("| detection |", "| embedding |")) for line in page.splitlines()) == 3
