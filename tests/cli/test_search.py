"""`latentgloss search` and `index rebuild` on the tiny workspace: hits, filters, hostile queries, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
from click.testing import CliRunner, Result

from latentgloss.cli import cli
from latentgloss.embeddings.search_index import LONGEST
from latentgloss.errors import InputError
from latentgloss.workspace import Workspace
from latentgloss.workspace.search import open_index

P = tiny.SPARSIFY
WORD = tiny.words()[0][1]
KEYS = ["partition", "latent", "explainer", "explanation", "similarity", "text_score", "density", "scores", "profile"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("searched")
    tiny.computed_workspace(root)
    return root


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "w")
    return tmp_path / "w"


def run(root: Path, *args: str) -> Result:
    result = CliRunner().invoke(cli, ["--config", str(root / "latentgloss.toml"), *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def hits(root: Path, *args: str) -> list[dict[str, Any]]:
    result = run(root, "search", *args, "--json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    assert all(list(hit) == KEYS for hit in found)
    return found


@pytest.mark.parametrize("mode", ["text", "hybrid", "vector"])
def test_a_word_finds_the_latent_it_is_the_explanation_of(finished: Path, mode: str) -> None:
    explanation = next(h["explanation"] for h in hits(finished, WORD, "--mode", "text", "--explainer", "pattern"))
    assert WORD in explanation
    found = hits(finished, explanation, "--mode", mode, "--limit", "5")
    assert found[0]["explanation"] == explanation
    assert len(found) == 5
    first = found[0]
    assert first["similarity"] is None if mode == "text" else first["similarity"] == pytest.approx(1, abs=1e-4)
    assert (first["text_score"] is None) == (mode == "vector")


def test_hits_are_best_first_and_the_same_every_time(finished: Path) -> None:
    found = hits(finished, WORD, "--limit", "30")
    assert [h["similarity"] for h in found] == sorted((h["similarity"] for h in found), reverse=True)
    assert hits(finished, WORD, "--limit", "30") == found
    assert hits(finished, WORD, "--limit", "7") == found[:7]


def test_filters(finished: Path) -> None:
    everything = hits(finished, WORD, "--limit", "1000")
    for option, value, kept in (
        ("--model", "tiny", everything),
        ("--hookpoint", "layers.0", [h for h in everything if h["partition"] == P]),
        ("--sae", "words", [h for h in everything if h["partition"] == P]),
        ("--sae", P, [h for h in everything if h["partition"] == P]),
        ("--explainer", "pattern", [h for h in everything if h["explainer"] == "pattern"]),
        ("--min-score", "0.9", [h for h in everything if h["scores"].get("detection", 0) >= 0.9]),
    ):
        assert kept, option
        assert hits(finished, WORD, option, value, "--limit", "1000") == kept


def test_a_scorer_that_scored_nothing_is_said(finished: Path) -> None:
    result = run(finished, "search", WORD, "--min-score", "0.1", "--scorer", "intruder")
    assert result.exit_code == 1
    assert "no explanation in the index has a score of intruder" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [
        ("--model", "tinny", "'tiny'"),
        ("--sae", "tiny/layers.0/word", "words"),
        ("--explainer", "patern", "'pattern'"),
        ("--explainer", "x' OR 'a' = 'a", "'pattern'"),
        ("--model", "tiny' --", "'tiny'"),
        ("--scorer", "detecton", "'detection'"),
    ],
)
def test_what_does_not_exist_gets_the_nearest(finished: Path, option: str, value: str, near: str) -> None:
    result = run(finished, "search", WORD, option, value)
    assert result.exit_code == 1
    assert "is unknown" in result.stderr and near in result.stderr


HOSTILE = [
    '"',
    "'",
    "(((",
    "a AND",
    "NOT",
    "* OR 1=1",
    "x' OR '1'='1",
    "path:/etc",
    "\\",
    "é 漢字 🙂",
    "a\tb\nc",
    "[a-z]+",
    "'; DROP TABLE search; --",
    "+a -b",
    "a~2",
    "^",
    "{}",
    "%",
    "\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_query_is_an_operator(finished: Path, text: str) -> None:
    for mode in ("vector", "text", "hybrid"):
        found = hits(finished, "--mode", mode, text)
        assert len(found) == 10 or mode == "text"
    assert len(hits(finished, WORD, "--limit", "1000")) > 100


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_query_is_refused(finished: Path, text: str) -> None:
    result = run(finished, "search", text)
    assert (result.exit_code, "the query is empty" in result.stderr) == (1, True)


def test_a_long_query_is_cut_aloud_and_a_huge_one_refused(finished: Path) -> None:
    result = run(finished, "search", "0 " * 200)
    assert result.exit_code == 0
    assert "the query has 202 tokens; tiny reads the first 64" in result.stderr
    result = run(finished, "search", "x" * 100_000)
    assert result.exit_code == 1
    assert f"the query has 100,000 characters. Expected: at most {LONGEST:,}" in result.stderr


def test_wrong_usage_is_2(finished: Path) -> None:
    for args in (["--limit", "0"], ["--mode", "magic"], ["--min-score", "high"], ["--min-score", "2"]):
        assert run(finished, "search", WORD, *args).exit_code == 2


def test_columns_cannot_be_injected(finished: Path) -> None:
    index, embedder = open_index(Workspace.open(finished / "latentgloss.toml"))
    with pytest.raises(InputError, match="not a column to filter by"):
        index.search("x", None, mode="text", limit=1, filters={"1=1 OR model": "x"})
    vector = embedder.queries(["x"])[0]
    assert index.search("x", vector, mode="vector", limit=1, filters={"model": "it's"}) == []


def test_the_table_says_what_people_need(finished: Path) -> None:
    result = run(finished, "search", WORD, "--limit", "3")
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.split() == [
        "PARTITION",
        "LATENT",
        "EXPLAINER",
        "SIMILARITY",
        "DETECTION",
        "FUZZING",
        "EMBEDDING",
        "EXPLANATION",
    ]
    assert len(lines) == 3
    assert result.stderr == ""


def test_without_an_index(tmp_path: Path) -> None:
    tiny.tiny_workspace(tmp_path, n_documents=10)
    for args in (["search", WORD], ["index", "rebuild"]):
        result = run(tmp_path, *args)
        assert result.exit_code == 1
        assert "search_index" in result.stderr and "dagster asset materialize" in result.stderr


def test_a_damaged_index_is_named_and_rebuilt(own: Path) -> None:
    for path in (own / "data/embeddings/search.lance/data").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    result = run(own, "search", WORD)
    assert result.exit_code == 1
    assert "search.lance cannot be read" in result.stderr and "latentgloss index rebuild" in result.stderr
    result = run(own, "index", "rebuild", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows"].keys() == set(tiny.SAES)
    assert hits(own, WORD) != []


def test_an_interrupted_index_counts_as_none_and_is_rebuilt(own: Path) -> None:
    shutil.rmtree(own / "data/embeddings/search.lance/_versions")
    result = run(own, "search", WORD)
    assert result.exit_code == 1 and "no search index" in result.stderr
    assert run(own, "index", "rebuild").exit_code == 0
    assert hits(own, WORD) != []


def test_a_file_in_the_place_of_the_index_is_replaced(own: Path) -> None:
    shutil.rmtree(own / "data/embeddings/search.lance")
    (own / "data/embeddings/search.lance").write_bytes(b"")
    assert "no search index" in run(own, "search", WORD).stderr
    assert run(own, "index", "rebuild").exit_code == 0
    assert hits(own, WORD) != []


def test_rebuild_removes_damaged_vectors_and_makes_those_it_needs(own: Path) -> None:
    (texts,) = (own / "data/embeddings").glob("texts-*.lance")
    for path in (texts / "data").iterdir():
        path.write_bytes(b"")
    result = run(own, "index", "rebuild")
    assert result.exit_code == 0, result.stderr
    assert f"removed {texts.stem}" in result.stdout
    assert texts.is_dir()


@pytest.mark.parametrize("wrong", ["dimension", "facts"])
def test_one_command_mends_vectors_of_another_kind(own: Path, wrong: str) -> None:
    tables = Workspace.open(own / "latentgloss.toml").lance
    (name,) = (name for name in tables.names() if name.startswith("texts-"))
    told = tables.told(name)
    dimension = told.pop("dimension")
    rows = tables.open(name, told).search().to_arrow()
    if wrong == "dimension":
        flat = pa.array(np.ones(len(rows) * (dimension - 1), np.float32))
        rows = rows.set_column(1, "vector", pa.FixedSizeListArray.from_arrays(flat, dimension - 1))
    tables.drop(name)
    tables.create(name, rows.schema, told | ({"format": "0"} if wrong == "facts" else {})).add(rows)
    before = hits(own, WORD)
    result = run(own, "index", "rebuild")
    assert result.exit_code == 0, result.stderr
    assert f"removed {name} (" in result.stdout
    assert hits(own, WORD) == before


def test_an_index_of_another_dimension_is_refused_and_rebuilt(own: Path) -> None:
    workspace = Workspace.open(own / "latentgloss.toml")
    before = hits(own, WORD)
    index, _ = open_index(workspace)
    rows = index.table().search().to_arrow()
    flat = pa.array(np.ones(len(rows) * 8, np.float32))
    vectors = pa.FixedSizeListArray.from_arrays(flat, 8)
    rows = rows.set_column(rows.schema.get_field_index("vector"), "vector", vectors)
    workspace.lance.drop("search")
    workspace.lance.create("search", rows.schema, index.facts).add(rows)
    result = run(own, "search", WORD)
    assert result.exit_code == 1
    assert "was made with dimension 8. Expected: dimension 32. What to do: run `latentgloss index" in result.stderr
    assert run(own, "index", "rebuild").exit_code == 0
    assert hits(own, WORD) == before


def test_a_query_that_finds_nothing_says_so(finished: Path) -> None:
    result = run(finished, "search", "zzzzzz", "--mode", "text")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "no latent matches\n", "")
    assert run(finished, "search", "zzzzzz", "--mode", "text", "--json").stdout == "[]\n"


def test_an_index_that_is_behind_is_said_aloud(own: Path) -> None:
    path = own / "latentgloss.toml"
    text = path.read_text()
    path.write_text(text.replace("test = 30", "test = 32"))
    assert not [o.error for o in tiny.run_all(Workspace.open(path)) if o.error]
    path.write_text(text)
    tiny.run_all(Workspace.open(path))
    result = run(own, "search", WORD)
    assert result.exit_code == 0
    assert "not entirely built from the current search_index of tiny" in result.stderr
