"""Stages whose language model cannot be read: they end and say why; mended, they ask again, and about nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import judged_world
import polars as pl
import pytest
import tiny
from click.testing import CliRunner
from judged_world import number_of, request_of
from llm_server import Server, completion
from scripted_model import asked_of, reader

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.store.digests import text_sha256
from latentgloss.workspace import Workspace
from latentgloss.workspace.forgetting import _with_leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

P = tiny.SPARSIFY
CONTEXTS = ["tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives"]
SETTINGS = (
    tiny.SETTINGS
    + """
[explanations]
explainers = ["llm"]
model = "judge"
llm.contexts = 8
llm.sample = {explained}

[detection]
judges = ["llm:judge"]
llm.sample = 4

[budget]
usd = 1000
"""
)
THINKING = completion(None, ended="length", reasoning_content="Let me see. The first")


class Answers:
    """A careful reader, but what it says is spoilt as `spoil` says, from the request and its right answer."""

    def __init__(self) -> None:
        self.spoil: Callable[[str, str], Any] = lambda asked, good: good

    def __call__(self, body: dict[str, Any]) -> Any:
        request = request_of(body)
        return self.spoil(asked_of(request), reader(request))


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def server(answers: Answers) -> Iterator[Server]:
    with Server(answers, name=number_of) as server:
        yield server


def world(folder: Path, server: Server, explained: int) -> Path:
    tiny.computed_workspace(folder, SETTINGS.format(explained=explained), stages=CONTEXTS)
    judged_world.register(folder, server, in_flight=64)
    return folder


def run(folder: Path, *stages: str) -> tuple[list[str], list[pl.DataFrame]]:
    """A run in a process of its own, as it were. Errors and tables by stage."""
    workspace = Workspace.open(folder / "latentgloss.toml")
    errors, tables = [], []
    for stage in stages:
        (outcome,) = workspace.materialise(stage, [P], tiny.runner(stage))
        errors.append(str(outcome.error or ""))
        if outcome.version is not None:
            tables.append(outcome.version.read(schema.EXPLANATIONS if stage == "explanations" else schema.JUDGEMENTS))
    model = workspace._language_models.get("judge")
    if model is not None:
        model.close()  # type: ignore[attr-defined]
    return errors, tables


def state(folder: Path, stage: str) -> tuple[str, str]:
    workspace = Workspace.open(folder / "latentgloss.toml")
    (found,) = [s for s in workspace.states([P]) if s.asset == stage]
    return found.state, found.because


def forget(folder: Path, *args: str) -> Any:
    result = CliRunner().invoke(
        cli, ["--config", str(folder / "latentgloss.toml"), "replies", "forget", *args, "--json"]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_run_that_can_read_nothing_ends_and_the_next_one_asks_again(
    tmp_path: Path, server: Server, answers: Answers
) -> None:
    folder = world(tmp_path, server, explained=40)
    answers.spoil = lambda asked, good: THINKING
    (error,), _ = run(folder, "explanations")
    assert "none of the first 20 queries could be read" in error and "all of them thinking" in error
    assert "reasoning_tokens" in error and "Let me see. The first" in error
    assert server.requests.total() == 40, "not 80"
    assert state(folder, "explanations") == ("failed", error)
    answers.spoil = lambda asked, good: good
    server.requests.clear()
    (error,), (table,) = run(folder, "explanations")
    asked = table.filter(pl.col("model").is_not_null())
    assert not error and asked.height == 40 and set(asked["status"]) == {"ok"}
    assert server.requests.total() == 40, "each of them once"
    assert state(folder, "explanations")[0] == "fresh"


def test_a_run_of_few_latents_says_it_too(tmp_path: Path, server: Server, answers: Answers) -> None:
    folder = world(tmp_path, server, explained=5)
    answers.spoil = lambda asked, good: "I cannot say."
    for _ in range(2):
        (error,), _ = run(folder, "explanations")
        assert "llm: none of the 5 replies for explanations" in error and "EXPLANATION:" in error
    answers.spoil = lambda asked, good: good
    (error,), (table,) = run(folder, "explanations")
    assert not error and set(table.filter(pl.col("model").is_not_null())["status"]) == {"ok"}


def test_forgotten_rows_are_asked_about_again(tmp_path: Path, server: Server, answers: Answers) -> None:
    folder = world(tmp_path, server, explained=12)

    def some(asked: str, good: str) -> str:
        return "I cannot say." if int(text_sha256(asked)[:4], 16) % 3 == 0 else f"{good}<|im_end|>"

    answers.spoil = some
    stages = ("explanations", "detection_scores")
    errors, before = run(folder, *stages)
    assert not any(errors)
    unread = [table.filter(status="parse_failed") for table in before]
    assert all(0 < rows.height < table.height for rows, table in zip(unread, before, strict=True))
    assert not before[0]["explanation"].str.contains("im_end").any()

    answers.spoil = lambda asked, good: good
    server.requests.clear()
    run(folder, *stages)
    assert not server.requests and state(folder, "explanations")[0] == "fresh"
    found = forget(folder, "--dry-run")["found"]
    assert [(item["stage"], item["model"], item["rows"]) for item in found] == [
        (stage, "judge", rows.height) for stage, rows in zip(stages, unread, strict=True)
    ]
    assert state(folder, "explanations")[0] == "fresh", "a dry run changes nothing"
    assert forget(folder, "--model", "judge")["found"] == found
    assert state(folder, "explanations")[0] == "stale" and "replies forget" in state(folder, "explanations")[1]

    (error,), (after,) = run(folder, "explanations")
    assert not error and server.requests.total() == unread[0].height, "and about nothing else"
    key = ["latent", "explainer"]
    assert after.join(unread[0], on=key, how="anti").equals(before[0].join(unread[0], on=key, how="anti"))
    assert set(after.join(unread[0], on=key, how="semi")["status"]) == {"ok"}
    (error,), (judged,) = run(folder, "detection_scores")
    assert not error and set(judged["status"]) == {"ok"}
    assert state(folder, "explanations")[0] == "fresh"
    server.requests.clear()
    run(folder, *stages)
    assert not server.requests and not forget(folder)["found"]


def test_what_stays_unreadable_can_be_forgotten_any_number_of_times(
    tmp_path: Path, server: Server, answers: Answers
) -> None:
    folder = world(tmp_path, server, explained=6)
    answers.spoil = lambda asked, good: "?" if int(text_sha256(asked)[:4], 16) % 2 else good
    run(folder, "explanations")
    for _ in range(2):
        rows = forget(folder)["found"][0]["rows"]
        server.requests.clear()
        (error,), (table,) = run(folder, "explanations")
        assert not error and table.filter(status="parse_failed").height == rows
        assert server.requests.total() == 2 * rows and state(folder, "explanations")[0] == "fresh"


def test_explanations_with_a_control_token_of_an_earlier_release_are_found() -> None:
    rows = pl.DataFrame(
        {
            "status": ["ok", "ok", "parse_failed", "ok"],
            "explanation": ["The words nutoro.<|im_end|>", "Months.", "", "Fires on <|im_end|> between turns."],
            "model": ["judge"] * 4,
        }
    )
    assert _with_leaks(rows).height == 1
    assert _with_leaks(rows.clear()).is_empty()
