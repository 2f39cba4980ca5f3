"""The commands `status`, `explanations`, `scores` and `report`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner
from command_world import P, rows, run

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.cli.show import EXPLANATION_KEYS, SCORE_KEYS
from latentgloss.pipeline.graph import STAGES
from latentgloss.store.version import MANIFEST
from latentgloss.workspace import Workspace

# status -----------------------------------------------------------------------------------------------------


def test_status_of_a_finished_workspace(finished: Path) -> None:
    found = rows(finished, "status")
    assert {tuple(row) for row in found} == {("asset", "partition", "state", "because")}
    assert {row["state"] for row in found} == {"fresh"}
    grains = [stage.grain for stage in STAGES.values()]
    assert len(found) == grains.count("model") + grains.count("sae") * len(tiny.SAES)


def test_status_of_some(finished: Path) -> None:
    assert {row["partition"] for row in rows(finished, "status", P)} == {P}
    assert {row["partition"] for row in rows(finished, "status", "tiny/*")} == set(tiny.SAES)


def test_status_of_a_workspace_in_which_nothing_ran(bare: Path) -> None:
    found = rows(bare, "status")
    assert {row["state"] for row in found} == {"missing"}
    assert found[0]["because"] == "never materialised"


def test_status_says_what_changed(finished: Path) -> None:
    text = (finished / "latentgloss.toml").read_text().replace("test = 30", "test = 25", 1)
    config = finished / "other.toml"
    config.write_text(text)
    result = CliRunner().invoke(cli, ["--config", str(config), "status", P, "--json"])
    states = {row["asset"]: row for row in json.loads(result.stdout)}
    assert states["sampled_contexts"]["state"] == "stale"
    assert "30 -> 25" in states["sampled_contexts"]["because"]
    assert states["activation_cache"]["state"] == "fresh"


def test_unknown_partition_gets_the_nearest(finished: Path) -> None:
    for args in (["status", "tiny/layers.0/wrds"], ["scores", "tiny/layers.0/wrds"], ["explanations", "../wrds"]):
        result = run(finished, *args)
        assert result.exit_code == 1
        assert "'tiny/layers.0/words'" in result.stderr


# explanations and scores ------------------------------------------------------------------------------------


def test_explanations(finished: Path) -> None:
    found = rows(finished, "explanations", P)
    assert {row["explainer"] for row in found} == {"pattern", "token_table"}
    assert len(found) == tiny.N_LATENTS * 2
    found = rows(finished, "explanations", P, "--nulls")
    assert all(tuple(row) == EXPLANATION_KEYS for row in found)
    assert {row["partition"] for row in found} == {P}
    assert len(found) == tiny.N_LATENTS * 4
    assert [(r["latent"], r["explainer"]) for r in found] == sorted((r["latent"], r["explainer"]) for r in found)
    for row in found:
        assert bool(row["explanation"]) == bool(row["label"]) == (row["status"] == "ok")
        assert len(row["label"]) <= 120
        measured = row["status"] == "ok" and row["explainer"] == "pattern"
        assert (row["coverage"] is not None) == (row["kind"] is not None) == measured
        assert bool(row["reason"]) == (row["status"] != "ok")


def test_explanations_of_one_latent_and_explainer(finished: Path) -> None:
    (row,) = rows(finished, "explanations", P, "--latent", "8", "--explainer", "pattern")
    assert (row["latent"], row["explainer"], row["status"]) == (8, "pattern", "ok")
    signal, _ = tiny.words()
    assert signal[2][:4] in row["explanation"]  # latent 8 stands for the third signal word
    assert row["label"] == f"the word '{signal[2]}'" and row["kind"] == "single token" and row["coverage"] > 0.95
    chosen = ("explanations", P, "--latent", "8", "--explainer", "pattern")
    result = run(finished, *chosen)
    assert row["label"] in result.stdout and row["explanation"] not in result.stdout
    assert row["explanation"] in run(finished, *chosen, "--full").stdout


def test_explanations_of_one_kind(finished: Path) -> None:
    every = rows(finished, "explanations", P)
    for kind in ("single token", "words", "topic"):
        found = rows(finished, "explanations", P, "--kind", kind)
        assert found == [row for row in every if row["kind"] == kind]
    assert rows(finished, "explanations", P, "--kind", "single token")


def test_scores(finished: Path) -> None:
    found = rows(finished, "scores", P, "--scorer", "detection")
    assert {(row["negatives"], row["explainer"]) for row in found} == {("random", "pattern"), ("random", "token_table")}
    found = rows(finished, "scores", P, "--scorer", "detection", "--all", "--nulls")
    assert all(tuple(row) == (*SCORE_KEYS, "metrics") for row in found)
    assert {row["scorer"] for row in found} == {"detection"}
    assert {row["negatives"] for row in found} == {"random", "same_document", "population"}
    good = [row for row in found if row["status"] == "ok"]
    assert good
    for row in good:
        assert row["ci_low"] <= row["score"] <= row["ci_high"]
        assert row["metrics"]["balanced_accuracy"] == row["score"]
    # The tiny SAE's latents stand for words: a rule that names the word knows almost all there is to know.
    of = {e: [r["score"] for r in good if r["explainer"] == e] for e in ("pattern", "null:pattern")}
    assert sorted(of["pattern"])[len(of["pattern"]) // 2] > 0.9
    assert sorted(of["null:pattern"])[len(of["null:pattern"]) // 2] < 0.6


def test_scores_as_a_table(finished: Path) -> None:
    chosen = ("scores", P, "--latent", "8", "--explainer", "pattern")
    lines = run(finished, *chosen).stdout.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["detection", "fuzzing", "embedding"], (
        "a row per scorer and judge"
    )
    lines = run(finished, *chosen, "--all").stdout.splitlines()
    assert lines[0].split()[:4] == ["LATENT", "EXPLAINER", "SCORER", "JUDGE"]
    assert sorted(line.split()[2] for line in lines[1:]) == [
        *["detection"] * 3,
        *["embedding"] * 3,
        "fuzzing",
    ]


def test_scores_of_one_scorer(finished: Path) -> None:
    found = rows(finished, "scores", P, "--scorer", "fuzzing", "--explainer", "pattern")
    assert {(row["scorer"], row["negatives"]) for row in found} == {("fuzzing", "donor")}
    assert sum(row["status"] == "ok" for row in found) > 20


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["explanations", P, "--latent", "288"], "0 to 287, since the SAE has 288 latents"),
        (["scores", P, "--latent", "288"], "0 to 287, since the SAE has 288 latents"),
        (["lineage", P, "288"], "0 to 287, since the SAE has 288 latents"),
        (["explanations", tiny.SAELENS, "--latent", "30"], "is not selected"),
        (["scores", P, "--explainer", "patern"], "'pattern'"),
        (["scores", P, "--scorer", "detecton"], "'detection'"),
        (["lineage", P, "4", "--scorer", "detecton"], "'detection'"),
    ],
)
def test_what_does_not_exist(finished: Path, args: list[str], message: str) -> None:
    result = run(finished, *args)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Expected:" in result.stderr


@pytest.mark.parametrize("command", ["explanations", "scores"])
def test_what_was_not_materialised(bare: Path, command: str) -> None:
    result = run(bare, command, P)
    assert result.exit_code == 1
    assert "has not been materialised" in result.stderr


def test_damaged_files_are_one_message(finished: Path) -> None:
    workspace = Workspace.open(finished / "latentgloss.toml")
    version = workspace.store.current("explanations", P)
    assert version is not None
    for name in ("explanations/000000-pattern.parquet", MANIFEST, "../current.json"):
        path = (finished / "data" / version.key / name).resolve()
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        try:
            result = run(finished, "explanations", P)
        finally:
            path.write_bytes(data)
        assert result.exit_code == 1
        assert str(path) in result.stderr
        assert "What to do:" in result.stderr


def test_report_is_one_screen_with_the_headline_first(finished: Path) -> None:
    result = run(finished, "report")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and len(lines) <= 40 and max(map(len, lines)) <= 100
    assert "detection" in lines[0] and "fuzzing" in lines[0]
    rows = [line for line in lines if re.search(r"\d+/\d+", line)]
    assert [line.split()[0] for line in rows] == ["layers.0/words", "layers.1.mlp/mixed"]
    assert any(line.startswith("Best: ") for line in lines) and any(line.startswith("Worst: ") for line in lines)


def test_report_as_json_and_as_a_page_has_every_row(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.md"
    result = run(finished, "report", "tiny", "--json", "--page", str(page))
    rows = json.loads(result.stdout)
    stored = Workspace.open(finished / "latentgloss.toml").store.current("score_report", "tiny")
    assert stored is not None
    assert len(rows) == stored.read(schema.REPORT).height and set(rows[0]) == set(schema.REPORT.schema)
    assert page.read_text().count("| detection |") == sum(row["scorer"] == "detection" for row in rows)


def test_report_says_what_is_missing(bare: Path) -> None:
    result = run(bare, "report")
    assert result.exit_code == 1 and "there is no report yet" in result.stderr and "score_report" in result.stderr
    result = run(bare, "report", "tini")
    assert result.exit_code == 1 and "'tiny'" in result.stderr


def test_report_says_that_no_sae_is_left(tmp_path: Path) -> None:
    tiny.computed_workspace(tmp_path)
    for path in (tmp_path / "registry" / "saes").glob("*.toml"):
        path.unlink()
    assert run(tmp_path, "report").exit_code == 0, "as it was made"
    tiny.run_all(Workspace.open(tmp_path / "latentgloss.toml"), ["score_report"])
    result = run(tmp_path, "report")
    assert result.exit_code == 1 and "no SAE of the registry has scores" in result.stderr
