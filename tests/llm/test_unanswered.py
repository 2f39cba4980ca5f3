"""What a language model gave no reply for: rows with a reason, that the next runs ask about again. And what it took."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import tiny
from scripted_model import Scripted, asked_of, reader

from latentgloss import schema
from latentgloss.errors import LanguageModelError
from latentgloss.pipeline.recipe import ATTEMPTS
from latentgloss.protocols import Reply
from latentgloss.store.digests import text_sha256
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentgloss.protocols import Request

SETTINGS = (
    tiny.SETTINGS
    + """
[explanations]
explainers = ["llm", "null:llm"]
nulls = 2
model = "scripted"
llm.contexts = 12
llm.sample = 12

[detection]
judges = ["llm:scripted"]
llm.sample = 8

[fuzzing]
judges = ["llm:scripted"]
llm.sample = 8
"""
)
BEFORE = list(tiny.RUNNERS)[: list(tiny.RUNNERS).index("explanations")]
ASKING = {
    "explanations": schema.EXPLANATIONS,
    "detection_scores": schema.JUDGEMENTS,
    "fuzzing_scores": schema.JUDGEMENTS,
}


class Server:
    """Answers as `reader`, but for one request of nine while it is `shaky`; after `left` more it is gone."""

    def __init__(self) -> None:
        self.shaky, self.judges, self.left = False, True, 10**9

    def __call__(self, request: Request) -> str | Reply:
        if self.left == 0:
            raise LanguageModelError("scripted is gone")
        self.left -= 1
        if self.shaky and int(text_sha256(request.messages[-1].content)[:4], 16) % 9 == 0:
            return Reply("llm_error", "no whole answer in 300 s, tried 2 times")
        if not self.judges and asked_of(request).startswith("Description"):
            return Reply("llm_error", "status 500, tried 6 times")
        said: str = reader(request)
        return said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Workspace, Server]]:
    folder = tmp_path_factory.mktemp("made")
    tiny.tiny_workspace(folder, settings=SETTINGS)
    for path in (folder / "registry" / "saes").glob("*.toml"):
        if f'name = "{tiny.SPARSIFY.split("/")[-1]}"' not in path.read_text():
            path.unlink()
    workspace = Workspace.open(folder / "latentgloss.toml")
    assert not [o.error for o in tiny.run_all(workspace, BEFORE) if o.error]

    def copy() -> tuple[Workspace, Server]:
        there = shutil.copytree(folder, tmp_path_factory.mktemp("copy"), dirs_exist_ok=True)
        workspace, server = Workspace.open(there / "latentgloss.toml"), Server()
        workspace._language_models["scripted"] = Scripted(server)
        return workspace, server

    return copy


@pytest.fixture(scope="module")
def calm(made: Callable[[], tuple[Workspace, Server]]) -> dict[str, Any]:
    workspace, _ = made()
    run(workspace)
    return results(workspace)


def run(workspace: Workspace, *stages: str) -> None:
    for outcome in tiny.run_all(workspace, list(stages or ASKING)):
        if outcome.error:
            raise outcome.error


def results(workspace: Workspace) -> dict[str, Any]:
    """Content and what it took, by stage."""
    return {
        stage: (version.manifest.data_version, version.manifest.facts["spent"])
        for stage in ASKING
        if (version := workspace.store.current(stage, tiny.SPARSIFY)) is not None
    }


def unanswered(workspace: Workspace) -> dict[str, int]:
    found: dict[str, int] = {}
    for stage, table in ASKING.items():
        version = workspace.store.current(stage, tiny.SPARSIFY)
        assert version is not None
        missing = version.read(table).filter(pl.col("status") == "llm_error")
        assert (missing["reason"] != "").all()
        assert version.manifest.facts.get("unanswered", 0) == missing.height
        found[stage] = missing.height
    return found


def stale(workspace: Workspace) -> dict[str, str]:
    return {s.asset: s.because for s in workspace.states([tiny.SPARSIFY]) if s.asset in ASKING and s.state != "fresh"}


def test_what_got_no_reply_is_a_row_and_asked_about_again(
    made: Callable[[], tuple[Workspace, Server]], calm: dict[str, Any]
) -> None:
    workspace, server = made()
    server.shaky = True
    run(workspace)
    assert all(unanswered(workspace).values()), "rows, of every stage"
    assert set(stale(workspace)) == set(ASKING)
    assert "without a reply of the language model" in stale(workspace)["explanations"]
    before = workspace.store.current("detection_scores", tiny.SPARSIFY)
    server.shaky = False
    run(workspace)
    assert not any(unanswered(workspace).values()) and not stale(workspace)
    assert results(workspace) == calm
    after = workspace.store.current("detection_scores", tiny.SPARSIFY)
    assert before is not None and after is not None and before.key != after.key
    assert before.read(schema.JUDGEMENTS).height > 0, "what was pinned to it can still be read"
    asked = server.left
    run(workspace)
    assert server.left == asked, "and then there is nothing more to do"


def test_what_never_gets_a_reply_is_a_row_in_the_end(made: Callable[[], tuple[Workspace, Server]]) -> None:
    workspace, server = made()
    server.shaky = True
    for _ in range(ATTEMPTS):
        assert stale(workspace)
        asked = server.left
        run(workspace)
        assert server.left < asked
    assert all(unanswered(workspace).values()) and not stale(workspace)
    asked = server.left
    run(workspace)
    assert server.left == asked


def test_what_a_run_took_before_it_ended_counts_as_taken(
    made: Callable[[], tuple[Workspace, Server]], calm: dict[str, Any]
) -> None:
    workspace, server = made()
    server.left, ended = 100, 0
    while True:
        try:
            run(workspace)
            break
        except LanguageModelError:
            ended += 1
            server.left = 100 * (ended + 1)
    assert ended > 2 and results(workspace) == calm


def test_samples_that_nobody_judged_are_judged_by_the_next_run(made: Callable[[], tuple[Workspace, Server]]) -> None:
    prepared, server = made()
    config = prepared.settings.folder / "latentgloss.toml"
    config.write_text(config.read_text().replace('["llm", "null:llm"]', '["best_of_k"]\nbest_of_k.k = 2'))
    workspace = Workspace.open(config)
    workspace._language_models["scripted"] = Scripted(server)
    server.judges = False
    run(workspace, "explanations")
    version = workspace.store.current("explanations", tiny.SPARSIFY)
    assert version is not None
    rows = version.read(schema.EXPLANATIONS).filter(pl.col("prompt_tokens") > 0)
    assert set(rows["status"]) == {"llm_error"} and rows["reason"].str.contains("judge").all()
    assert set(stale(workspace)) >= {"explanations"}
    server.judges = True
    run(workspace, "explanations")
    version = workspace.store.current("explanations", tiny.SPARSIFY)
    assert version is not None
    rows = version.read(schema.EXPLANATIONS).filter(pl.col("prompt_tokens") > 0)
    assert set(rows["status"]) == {"ok"} and "explanations" not in stale(workspace)
