"""Commands: what they print, which codes they end with, and that nothing ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import tiny
from click.testing import CliRunner, Result
from repository import ROOT

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.cli.output import clean, plain, print_table
from latentgloss.cli.show import EXPLANATION_KEYS, SCORE_KEYS
from latentgloss.llm.ledger import Cost
from latentgloss.llm.remarks import Remarks
from latentgloss.pipeline.gc import reachable
from latentgloss.pipeline.graph import STAGES
from latentgloss.protocols import Reply
from latentgloss.store.version import MANIFEST
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

P = tiny.SPARSIFY


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a workspace in which every stage was run. Tests that change anything use `bare`."""
    root = tmp_path_factory.mktemp("cli")
    tiny.computed_workspace(root)
    return root


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Folder of a workspace in which nothing was run."""
    tiny.tiny_workspace(tmp_path, n_documents=60)
    return tmp_path


def run(root: Path, *args: str) -> Result:
    result = CliRunner().invoke(cli, ["--config", str(root / "latentgloss.toml"), *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def rows(root: Path, *args: str) -> Any:
    result = run(root, *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def commands(group: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))
    else:
        yield path


# All of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    assert f"Example:\n    latentgloss {' '.join(path)}" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    "args", [["nonsense"], ["scores"], ["lineage", P], ["lineage", P, "x"], ["gc", "--broken", "a"]]
)
def test_wrong_usage_is_2(args: list[str]) -> None:
    assert CliRunner().invoke(cli, args).exit_code == 2


def test_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTGLOSS_CONFIG", raising=False)
    result = CliRunner().invoke(cli, ["status"])
    assert result.exit_code == 1
    assert "no latentgloss.toml" in result.stderr


def test_settings_are_found_upward(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bare / "saes" / "words")
    monkeypatch.delenv("LATENTGLOSS_CONFIG", raising=False)
    assert CliRunner().invoke(cli, ["saes", "list"]).exit_code == 0


def started(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom latentgloss.cli import cli\n"
        "cli(['scores', '--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'polars', 'pyarrow', 'numpy', 'dagster') if m in sys.modules])"
    )
    out, _ = started(code).communicate(timeout=60)
    assert out.splitlines()[-1] == "[]"


def test_reading_scores_loads_no_torch(finished: Path) -> None:
    code = (
        "import sys\nfrom latentgloss.cli import cli\n"
        f"for args in (['status'], ['scores', {P!r}, '--latent', '4'], ['lineage', {P!r}, '4'], ['saes', 'list']):\n"
        f"    cli(['--config', {str(finished / 'latentgloss.toml')!r}, *args], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'dagster') if m in sys.modules])"
    )
    out, err = started(code).communicate(timeout=60)
    assert out.splitlines()[-1] == "[]", err


def test_a_reader_that_leaves_is_no_error(finished: Path) -> None:
    process = started(
        "from latentgloss.cli import main; main()",
        "--config",
        str(finished / "latentgloss.toml"),
        "explanations",
        P,
        "--json",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == "["
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert message == ""


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


# saes -------------------------------------------------------------------------------------------------------


def test_saes_list(bare: Path) -> None:
    found = rows(bare, "saes", "list")
    assert [row["partition"] for row in found["saes"]] == sorted(tiny.SAES)
    assert [row["control"] for row in found["saes"]] == [False, True]
    assert found["problems"] == []


def test_saes_list_names_files_that_cannot_be_used(bare: Path) -> None:
    (bare / "registry" / "saes" / "typo.toml").write_text('modle = "tiny"\n')
    found = rows(bare, "saes", "list")
    (problem,) = found["problems"]
    assert problem["where"].endswith("typo.toml")
    assert "did you mean 'model'?" in problem["message"]
    assert "typo.toml" in run(bare, "saes", "list").stderr


def test_saes_check_of_what_is_fine(bare: Path) -> None:
    found = rows(bare, "saes", "check")
    assert {row["partition"]: (row["n_latents"], row["d_in"], row["width"]) for row in found["saes"]} == {
        P: (tiny.N_LATENTS, tiny.D_MODEL, tiny.D_MODEL),
        tiny.SAELENS: (64, tiny.D_MODEL, tiny.D_MODEL),
    }


def test_saes_check_reports_all_problems(bare: Path) -> None:
    tiny.write_saelens(bare / "saes" / "narrow", d_in=tiny.D_MODEL // 2)
    tiny.register(bare, "tiny/layers.1/narrow", "saelens")
    tiny.register(bare, "tiny/layers.9/nowhere", "sparsify", folder="words", extra="latents = [999]\n")
    tiny.register(bare, "tiny/layers.0/absent", "saelens")
    tiny.write_saelens(bare / "saes" / "cut")
    weights = bare / "saes" / "cut" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    tiny.register(bare, "tiny/layers.0/cut", "saelens")
    (bare / "registry" / "saes" / "escape.toml").write_text(
        'model = "tiny"\nhookpoint = "layers.0"\nname = "../x"\nformat = "saelens"\nsource = "path:."\n'
    )
    result = run(bare, "saes", "check", "--json")
    assert result.exit_code == 1
    assert "5 of 7 SAEs and registry files have problems" in result.stderr
    found = json.loads(result.stdout)
    messages = {row["partition"]: [p["message"] for p in row["problems"]] for row in found["saes"]}
    assert messages[P] == messages[tiny.SAELENS] == []
    assert "width 32" in messages["tiny/layers.1/narrow"][0]
    assert len(messages["tiny/layers.9/nowhere"]) == 2  # the latent that is not there, and the hookpoint
    assert "999" in messages["tiny/layers.9/nowhere"][0]
    assert "layers.9" in messages["tiny/layers.9/nowhere"][1]
    assert "cannot be read" in messages["tiny/layers.0/absent"][0]
    assert "not a readable safetensors file" in messages["tiny/layers.0/cut"][0]
    assert "escape.toml" in found["problems"][0]["where"]
    # A check of one SAE reports the problems of that SAE only.
    assert run(bare, "saes", "check", P).exit_code == 0
    assert run(bare, "saes", "check", "tiny/layers.1/narrow").exit_code == 1


# gc ---------------------------------------------------------------------------------------------------------

FIRST = ["tokenized_corpus", "resolved_saes"]


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


def recomputed(root: Path, seed: int) -> Workspace:
    """The first stages, run with another seed of the splits."""
    (root / "latentgloss.toml").write_text(f"{tiny.SETTINGS}\n[corpus]\nseed = {seed}\n")
    workspace = Workspace.open(root / "latentgloss.toml")
    assert [o.error for o in tiny.run_all(workspace, FIRST) if o.error] == []
    return workspace


def manifests(root: Path) -> set[str]:
    return {p.parent.relative_to(root / "data").as_posix() for p in (root / "data").rglob(MANIFEST)}


def test_gc_removes_what_nothing_refers_to(bare: Path) -> None:
    recomputed(bare, 0)
    old = manifests(bare)
    recomputed(bare, 1)
    everything = manifests(bare)
    listed = rows(bare, "gc", "--dry-run")
    assert {f"{r['stage']}/{r['partition']}/{r['fingerprint']}" for r in listed["removed"]} == old
    assert listed["bytes"] > 0
    assert manifests(bare) == everything
    assert rows(bare, "gc")["removed"] == listed["removed"]
    assert manifests(bare) == everything - old
    assert not any((bare / "data" / key).exists() for key in old)
    assert rows(bare, "gc")["removed"] == []
    assert {row["state"] for row in rows(bare, "status") if row["asset"] in FIRST} == {"fresh"}


def test_gc_keeps_what_lineage_from_a_pointer_reaches(bare: Path) -> None:
    recomputed(bare, 0)
    old = manifests(bare)
    (bare / "latentgloss.toml").write_text(f"{tiny.SETTINGS}\n[corpus]\nseed = 1\n")
    workspace = Workspace.open(bare / "latentgloss.toml")
    tiny.run_all(workspace, FIRST[:1])  # the SAEs still stand on the old corpus
    assert rows(bare, "gc")["removed"] == []
    assert manifests(bare) > old
    assert reachable(Workspace.open(bare / "latentgloss.toml").store) == manifests(bare)


def test_gc_refuses_where_a_manifest_on_the_way_is_damaged(bare: Path) -> None:
    workspace = recomputed(bare, 0)
    recomputed(bare, 1)
    version = workspace.store.current("resolved_saes", P)
    assert version is not None
    (bare / "data" / version.key / MANIFEST).write_text("{}")
    before = manifests(bare)
    result = run(bare, "gc")
    assert result.exit_code == 1
    assert "manifest.json is damaged" in result.stderr
    assert manifests(bare) == before


@pytest.mark.parametrize("name", ["tokens.npy", MANIFEST, "../current.json"])
def test_gc_broken_makes_room_for_a_new_computation(bare: Path, name: str) -> None:
    workspace = recomputed(bare, 0)
    version = workspace.store.current("tokenized_corpus", tiny.MODEL)
    assert version is not None
    path = (bare / "data" / version.key / name).resolve()
    path.write_bytes(path.read_bytes()[:-10])
    assert rows(bare, "gc", "--broken", "tokenized_corpus", tiny.MODEL, "--dry-run")["removed"]
    assert path.exists()
    assert rows(bare, "gc", "--broken", "tokenized_corpus", tiny.MODEL)["removed"]
    again = Workspace.open(bare / "latentgloss.toml")
    outcomes = tiny.run_all(again, FIRST)
    assert [o.error for o in outcomes if o.error] == []
    repaired = again.store.current("tokenized_corpus", tiny.MODEL)
    assert repaired is not None
    assert repaired.manifest.data_version == version.manifest.data_version
    assert all(error is None for _, error in repaired.verify())


def test_gc_broken_leaves_what_verifies(bare: Path) -> None:
    recomputed(bare, 0)
    before = manifests(bare)
    assert rows(bare, "gc", "--broken", "tokenized_corpus", tiny.MODEL)["removed"] == []
    assert manifests(bare) == before


@pytest.mark.parametrize("args", [["tokenised", "tiny"], ["tokenized_corpus", "tinny"], ["tokenized_corpus", "../x"]])
def test_gc_broken_of_what_does_not_exist(bare: Path, args: list[str]) -> None:
    recomputed(bare, 0)
    result = run(bare, "gc", "--broken", *args)
    assert result.exit_code == 1
    assert "is unknown" in result.stderr


# doctor -----------------------------------------------------------------------------------------------------


def test_doctor(bare: Path) -> None:
    found = rows(bare, "doctor")
    assert set(found) == {"python", "platform", "packages", "devices", "settings", "registry", "store", "problems"}
    assert found["settings"] == str(bare / "latentgloss.toml")
    assert found["registry"] == {
        "root": str(bare / "registry"),
        "models": 1,
        "saes": len(tiny.SAES),
        "language_models": {},
        "problems": [],
    }
    assert found["store"]["writable"] is True
    assert found["store"]["free_bytes"] > 0
    assert found["packages"]["polars"]
    assert found["devices"][0].startswith("cpu")


def test_doctor_says_that_nothing_needs_attention(bare: Path) -> None:
    result = run(bare, "doctor")
    assert result.exit_code == 0 and "Nothing needs attention" in result.stdout and "saes check" in result.stdout


def test_doctor_without_torch(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert any("torch cannot be used" in device for device in rows(bare, "doctor")["devices"])


def test_doctor_finds_what_needs_attention(bare: Path) -> None:
    (bare / "registry" / "saes" / "typo.toml").write_text('modle = "tiny"\n')
    (bare / "data").write_text("a file where the store should be")
    result = run(bare, "doctor")
    assert result.exit_code == 1
    assert "Error: 2 things need attention:" in result.stderr and "typo.toml" in result.stderr
    assert "did you mean 'model'? What to do" in result.stderr and "'hookpoint' is missing" in result.stderr
    assert "cannot be written" in result.stderr


def test_doctor_goes_on_when_settings_are_wrong(bare: Path) -> None:
    (bare / "latentgloss.toml").write_text("stor = 'data'\n")
    result = run(bare, "doctor", "--json")
    assert result.exit_code == 1
    assert "did you mean 'store'?" in json.loads(result.stdout)["problems"][0]
    assert json.loads(result.stdout)["packages"]["numpy"]


# printing ---------------------------------------------------------------------------------------------------


def test_text_of_a_model_cannot_drive_the_terminal() -> None:
    assert plain("a\x1b[31mb\nc\td") == "a\ufffd[31mb c d"


def test_json_has_no_nan() -> None:
    assert clean({"a": [float("nan"), (float("inf"), 1.5)], "b": None}) == {"a": [None, [None, 1.5]], "b": None}


def test_tables_align(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "N"), [["a", 1], ["bcd", 22], ["e", None]])
    assert capsys.readouterr().out.splitlines() == ["NAME   N", "a      1", "bcd   22", "e      -"]


def test_spent_adds_up_what_was_asked_and_says_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "latentgloss.toml").write_text("[budget]\nusd = 20.0\n")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(tmp_path / "latentgloss.toml"), "spent", *arguments])

    assert run().output.startswith("No language model was asked in this store.\nBudget: 20.00 usd;")
    assert not (tmp_path / "data").exists()
    ledger = Workspace.open(tmp_path / "latentgloss.toml").ledger
    entry = ledger.send("vendor", ("explanations", P), Cost(1000, 0, 160, 4.0))
    ledger.send("vendor", ("explanations", P), Cost(1000, 0, 160, 4.0))  # in flight, or killed
    with ledger.database.transaction() as transaction:
        ledger.answered(transaction, entry, "vendor", ("explanations", P), Cost(900, 500, 60, 3.25))
        ledger.answered(transaction, None, "own", ("detection_scores", P), Cost(50_000, 0, 700, 0.0))
        remarks = Remarks("vendor", "gpt-x", ledger.database)
        remarks.of_reply(transaction, Reply("ok", model="gpt-y", note="completion_tokens = -7"), None)
    ledger.database.close()

    found = json.loads(run("--json").output)
    assert [(r["model"], r["kind"], r["replies"]) for r in found["remarks"]] == [
        ("vendor", "another_model", 1),
        ("vendor", "usage", 1),
    ]
    assert "vendor was not answered by the model that was asked for" in run().output
    assert "the last: completion_tokens = -7)." in run().output
    assert [(row["model"], row["stage"], row["partition"], row["paid"]) for row in found["rows"]] == [
        ("own", "detection_scores", P, False),
        ("vendor", "explanations", P, True),
    ]
    assert found["rows"][1] == {
        "model": "vendor",
        "stage": "explanations",
        "partition": P,
        "paid": True,
        "answered": 1,
        "unanswered": 1,
        "prompt_tokens": 1900,
        "cached_prompt_tokens": 500,
        "completion_tokens": 220,
        "usd": 7.25,
    }
    assert found["total"] == {
        "answered": 2,
        "unanswered": 1,
        "prompt_tokens": 51_900,
        "cached_prompt_tokens": 500,
        "completion_tokens": 920,
        "usd": 7.25,
    }
    assert found["budget"] == {
        "tokens": {"limit": None, "spent": 2120, "left": None},
        "usd": {"limit": 20.0, "spent": 7.25, "left": 12.75},
    }
    by_model = json.loads(run("--json", "--by", "model").output)
    assert [row["model"] for row in by_model["rows"]] == ["own", "vendor"] and "stage" not in by_model["rows"][0]
    assert by_model["total"] == found["total"]
    lines = run().output.splitlines()
    assert lines[0].split()[:4] == ["MODEL", "STAGE", "PARTITION", "REQUESTS"]
    assert lines[3].split() == ["total", "2", "1", "51,900", "500", "920", "7.25"]
    assert lines[-1] == "Budget: 20.00 usd; paid models have taken 7.25, 12.75 are left."
    (tmp_path / "latentgloss.toml").write_text("")
    assert run("--by", "stage").output.endswith("There is no budget, so paid models are not asked.\n")
