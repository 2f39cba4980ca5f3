"""Commands: what they print, which codes they end with, and that nothing ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import tiny
from click.testing import CliRunner, Result
from command_world import P, rows, run
from repository import ROOT

from latentgloss.cli import cli
from latentgloss.cli.output import clean, plain, print_table
from latentgloss.llm.ledger import Cost
from latentgloss.llm.remarks import Remarks
from latentgloss.protocols import Reply
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator


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
