"""assets/pictures.py and assets/drawing.py: what is drawn can be told apart, is whole, and is not too large."""

import base64
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from assets import drawing, pictures, records, stage_asset
from latentgloss import schema
from latentgloss.errors import SaeError
from latentgloss.pipeline.stage_run import Outcome
from latentgloss.store import Version

EXPLAINERS = [
    "imported",
    "llm",
    "llm_best_of_k",
    "null:pattern",
    "null:token_table",
    "pattern",
    "programs",
    "token_table",
]
SVG = "{http://www.w3.org/2000/svg}"
EDGES = np.linspace(0, 1, 41)


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def extent(text: ElementTree.Element) -> tuple[float, float]:
    """Left and right end of a text, at the widest that it can be."""
    width = float(text.get("textLength", drawing.CHARACTER * len(text.text or "")))
    x = float(text.get("x", "nan"))
    left = {"start": x, "middle": x - width / 2, "end": x - width}[text.get("text-anchor", "")]
    return left, left + width


@pytest.mark.parametrize("names", [EXPLAINERS, [f"explainer {i}" for i in range(64)], ["x" * 300, "y", "z" * 90]])
def test_every_series_has_a_colour_of_its_own_and_its_name_in_the_legend(names: list[str]) -> None:
    same = np.ones(40)
    picture = drawn(drawing.steps(dict.fromkeys(names, same), EDGES, "balanced accuracy"))
    lines = picture.findall(f"{SVG}polyline")
    colours = [line.get("stroke") for line in lines]
    assert len(set(colours)) == len(names)
    texts = [t for t in picture.iter(f"{SVG}text") if t.text in names]
    assert [t.text for t in texts] == names
    samples = [line.get("stroke") for line in picture.findall(f"{SVG}line")]
    assert samples[: len(names)] == colours, "in the legend, each name has the colour of its line"
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    rows: dict[float, list[tuple[float, float]]] = {}
    for text in texts:
        rows.setdefault(float(text.get("y", 0)), []).append(extent(text))
    for ends in rows.values():
        assert ends[0][0] >= 0 and ends[-1][1] <= width
        assert all(before[1] <= after[0] for before, after in pairwise(ends)), "no name over another"
    top = min(float(y) for line in lines for y in re.findall(r",([\d.]+)", line.get("points", "")))
    assert max(rows) < top < height, "the legend is above the lines"


@pytest.mark.parametrize("others", range(12))
def test_lines_of_the_same_values_can_both_be_seen(others: int) -> None:
    """With any number of lines between them: the upper one has gaps, or the lower one is wider."""
    same = np.ones(40)
    between = [f"other {i}" for i in range(others)]
    svg = drawing.steps(dict.fromkeys(["token_table", *between, "null:token_table"], same), EDGES, "x")
    under, *_, over = drawn(svg).findall(f"{SVG}polyline")
    assert under.get("points") == over.get("points") and under.get("stroke") != over.get("stroke")
    wider = float(under.get("stroke-width", 0)) - float(over.get("stroke-width", 0))
    assert over.get("stroke-dasharray") or wider >= 0.9


def test_the_picture_of_scores_tells_every_explainer_from_every_other() -> None:
    """All of the same scores, as `token_table` and its null often are."""
    row = {"status": "ok", "profile": schema.DEFAULT_PROFILE, "negatives": "random", "metric": "balanced_accuracy"}
    row |= {"judge": "executed", "embedder": ""}
    frame = pl.DataFrame([{**row, "explainer": name, "score": s} for name in EXPLAINERS for s in (0.25, 0.5, 0.5)])
    markdown = pictures.scores(cast("Version", SimpleNamespace(scan=lambda _: frame.lazy())))
    (image,) = re.findall(r"base64,([A-Za-z0-9+/=]+)", markdown)
    picture = drawn(base64.b64decode(image).decode())
    lines = picture.findall(f"{SVG}polyline")
    assert len({line.get("points") for line in lines}) == 1
    assert len({line.get("stroke") for line in lines}) == len(lines) == len(EXPLAINERS)
    names = [text for text in picture.iter(f"{SVG}text") if text.text in EXPLAINERS]
    assert [text.text for text in names] == EXPLAINERS
    for text in names:
        left, right = extent(text)
        assert left >= 0 and right <= float(picture.get("width", 0))


@pytest.mark.parametrize("label", ["x", "model/layers.11.mlp/" + "a_long_name" * 12])
def test_labels_of_bars_are_whole(label: str) -> None:
    picture = drawn(drawing.bars({label: 3, "b": 1_000_000}, "contexts"))
    for text in picture.iter(f"{SVG}text"):
        left, right = extent(text)
        assert left >= 0 and right <= drawing.WIDTH, text.text


def test_many_bars_are_bounded_and_counted() -> None:
    svg = drawing.bars({f"sae {i}": i for i in range(300)}, "explanations")
    assert svg.count("<rect") == 1 + drawing.BARS and "260 more" in svg and len(svg) < 15_000


def version(frame: pl.DataFrame) -> Version:
    files = SimpleNamespace(path=lambda key: Path("/store") / key)
    return cast(
        "Version", SimpleNamespace(read=lambda _: frame, files=files, key="score_report/model/0123456789abcdef")
    )


def rows(saes: int, name: str = "model/layers.{}.mlp/topk_{}") -> pl.DataFrame:
    """A report over so many SAEs; the medians rise from the first row to the last, and some are missing."""
    found: list[dict[str, Any]] = []
    for sae in range(saes):
        for explainer in EXPLAINERS:
            for negatives in ("random", "similar", "hard"):
                i = len(found)
                median = None if i % 7 == 3 else i / (saes * 24)
                key = {"partition": name.format(sae % 40, sae), "control": sae % 10 == 9, "explainer": explainer}
                score = {"scorer": "detection", "negatives": negatives, "metric": "balanced_accuracy"}
                counted = dict.fromkeys(("n_alive", "n_eligible", "n_explained", "n_scored"), 1234)
                ends = {"median": median, "median_low": median, "median_high": median}
                found.append({**key, **score, "profile": schema.DEFAULT_PROFILE, **counted, **ends})
    return pl.DataFrame(found, infer_schema_length=None)


def test_a_short_report_is_shown_whole() -> None:
    table = pictures.report(version(rows(3)))
    assert len(table.splitlines()) == 2 + 72 and "All rows" not in table


@pytest.mark.parametrize("name", ["model/layers.{}.mlp/topk_{}", "model/layers.{}.mlp/" + "long_name_" * 40 + "{}"])
def test_the_report_of_many_saes_is_bounded_and_says_where_the_rest_is(name: str) -> None:
    frame = rows(300, name)
    table = pictures.report(version(frame))
    assert len(table.encode()) < 50_000
    shown = [line for line in table.splitlines() if line.startswith("| model")]
    assert 10 < len(shown) <= pictures.TABLE_ROWS
    best = frame.drop_nulls("median").sort("median", descending=True).head(len(shown))
    assert [float(line.split(" | ")[-2]) for line in shown] == [round(m, 3) for m in best["median"]]
    assert f"of {len(frame):,}" in table and "/store/score&#95;report/model/0123456789abcdef/report.parquet" in table


def test_the_other_entries_of_an_event_are_bounded() -> None:
    few, many = [{"stage": "scores", "partition": "m/a/b"}], [{"stage": "scores", "partition": "m/a/b"}] * 2100
    made = version(pl.DataFrame())
    assert records.bounded(few, made).value == few
    value = cast("dict[str, Any]", records.bounded(many, made).value)
    assert value == {"entries": 2100, "file": "/store/score_report/model/0123456789abcdef/manifest.json"}


def scored(judges: dict[str, float], explainers: list[str], negatives: tuple[str, ...] = ("random",)) -> pl.DataFrame:
    """Scores of 200 latents, spread around each judge's value."""
    found = [
        {
            "latent": latent,
            "explainer": explainer,
            "negatives": kind,
            "metric": "balanced_accuracy",
            "judge": judge,
            "embedder": "",
            "profile": schema.DEFAULT_PROFILE,
            "status": "ok",
            "score": min(1.0, value + (latent * 7 % 41 - 20) / 100),
        }
        for judge, value in judges.items()
        for explainer in explainers
        for kind in negatives
        for latent in range(200)
    ]
    return pl.DataFrame(found)


def of_scores(frame: pl.DataFrame) -> Version:
    files = SimpleNamespace(path=lambda key: Path("/store") / key)
    made = SimpleNamespace(scan=lambda _: frame.lazy(), files=files, key="detection_scores/model/0123456789abcdef")
    return cast("Version", made)


def test_scores_of_two_judges_are_two_charts() -> None:
    text = pictures.scores(of_scores(scored({"executing": 0.75, "llm:model": 0.25}, ["pattern", "token_table"])))
    assert text.count("data:image/svg") == 2
    for judge, median in (("executing", "0.750"), ("llm:model", "0.250")):
        (line,) = [line for line in text.splitlines() if f"judge `{judge}`" in line]
        assert line.count(median) == 2, "not the median over both judges"


@pytest.mark.parametrize("name", ["{}", "an_explainer_with_a_name_" * 8 + "{}"])
def test_scores_of_many_arms_are_bounded_and_say_where_the_rest_is(name: str) -> None:
    names = [name.format(i) for i in range(16)]
    frame = scored(
        {f"llm:model {i}": 0.5 for i in range(4)}, names, ("random", "similar", "neighbour", "same_document")
    )
    text = pictures.scores(of_scores(frame))
    assert len(text.encode()) < 40_000
    assert 1 <= text.count("data:image/svg") < 16 and "/store/detection&#95;scores/model" in text


def test_an_outline_has_every_step_and_no_other_point() -> None:
    edges = np.linspace(0, 1, 41)
    heights = np.repeat([0.0, 3.0, 1.0, 0.0], 10)
    (line,) = drawn(drawing.steps({"a": heights}, edges, "x")).findall(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in str(line.get("points")).split()]
    assert len(points) == 8
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(points)), "only level and upright lines"
    assert (points[0][0], points[-1][0]) == (20, drawing.WIDTH - 20)


def test_the_failure_of_300_saes_is_bounded() -> None:
    error = SaeError("weights are cut short " * 10, expected="whole weights", todo="copy them again")
    names = [f"model/layers.{i % 40}.mlp/topk_{i}" for i in range(300)]
    failed = [
        Outcome(stage, key, "failed", error=error) for key in names for stage in ("detection_scores", "fuzzing_scores")
    ]
    failure = stage_asset._failure(failed)
    description = failure.description or ""
    assert len(description) < 8_000 and names[0] in description and "for 300 partition(s)" in description
    assert "more: the log of this run names each one" in description
    assert failure.metadata["failed"].value == {"detection_scores": 300, "fuzzing_scores": 300}
    few = stage_asset._failure(failed[:2]).description or ""
    assert few.count("Expected: whole weights") == 2 and "more" not in few


def test_messages_are_shortened_and_counted() -> None:
    assert records.shortened(["a", "b"], "there") == ["a", "b"] and records.shortened([], "there") == []
    long = records.shortened(["x" * 900] * 300, "there")
    assert long == [*["x" * 900] * 5, "… and 295 more: there"]
    assert records.shortened(["x" * 9000, "y"], "there") == ["x" * 9000, "… and 1 more: there"]
