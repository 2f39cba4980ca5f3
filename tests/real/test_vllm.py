"""vLLM for real, on the CPU: a server behind `openai_compatible`, and the engine `vllm` in a process of its own.

SmolLM2 explains and judges latents of one of the demo's SAEs through both. What it says is bad at this size; that every
latent has a row, that no judge's reply is unreadable, and that both ways agree, does not depend on its size.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
import vllm_world as world

from benchmarks import vllm_server
from benchmarks.environments import VLLM
from latentgloss import schema
from latentgloss.llm.opening import model_of
from latentgloss.models.files import ready_folder
from latentgloss.protocols import Message, Request
from latentgloss.workspace import Workspace

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]  # a quarter of an hour where others use the cores
BY_MODEL = pl.col("judge") == "smol"
ASKED_OF_MODEL = ("llm", "null:llm")


@pytest.fixture(scope="module")
def python() -> Path:
    if not VLLM.is_made() and not os.environ.get("CI"):
        pytest.skip("no environment with vLLM: make test-vllm")
    return VLLM.made()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "world"
    world.write(folder)
    return folder


@pytest.fixture(scope="module")
def inside(python: Path, prepared: Path) -> Workspace:
    """Explained and judged by vLLM in the process that runs the stages."""
    folder = shutil.copytree(prepared, prepared.parent / "inside")
    paths = os.pathsep.join(map(str, (world.ROOT, world.ROOT / "tests")))
    done = subprocess.run(
        [str(python), str(world.ROOT / "tests" / "vllm_world.py"), str(folder)],
        env=vllm_server.environment(PYTHONPATH=paths),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    print(done.stdout[-2000:])
    return Workspace.open(folder / "latentgloss.toml")


@pytest.fixture(scope="module")
def server(python: Path, prepared: Path, inside: Workspace):
    """After `inside` is done: two engines would share the cores."""
    spec = inside.registry.language_model("smol")
    log = prepared.parent / "server.log"
    running = vllm_server.VllmServer(
        python, ready_folder(model_of(spec, spec.model), inside.model_cache), log, dtype=world.DTYPE
    )
    with running:
        yield running
    print(log.read_text(errors="replace")[-4000:])  # pytest shows it beside a failure


@pytest.fixture(scope="module")
def served(server: vllm_server.VllmServer, prepared: Path) -> Workspace:
    """Explained and judged through the server."""
    folder = shutil.copytree(prepared, prepared.parent / "served")
    world.ask(folder, world.served(server.base_url))
    return Workspace.open(folder / "latentgloss.toml")


@pytest.fixture(scope="module", params=["served", "inside"])
def finished(request: pytest.FixtureRequest) -> Workspace:
    return request.getfixturevalue(request.param)


def table(workspace: Workspace, stage: str, name: schema.Table) -> pl.DataFrame:
    return workspace.store.current(stage, world.SAE).read(name)


def judgements(workspace: Workspace) -> pl.DataFrame:
    stages = ("detection_scores", "fuzzing_scores")
    return pl.concat([table(workspace, stage, schema.JUDGEMENTS) for stage in stages])


def test_every_latent_has_its_row_and_every_reply_a_status(finished: Workspace) -> None:
    rows = table(finished, "explanations", schema.EXPLANATIONS)
    eligible = rows.filter(explainer="pattern", status="ok")["latent"]
    assert (rows.group_by("explainer").len()["len"] == world.ASKED).all()
    llm = rows.filter(pl.col("latent").is_in(eligible.implode()), explainer="llm")
    assert llm.height >= world.JUDGED
    assert set(llm["status"]) == {"ok"}, "held to a line, every reply is one"
    assert (llm["prompt_tokens"] > 1000).all() and (llm["completion_tokens"] > 0).all()
    assert (llm["explanation"] != "").to_list() == (llm["status"] == "ok").to_list()
    assert (llm["reply"].str.len_chars() > 0).all()
    print(llm["status"].value_counts(), llm.select("latent", "explanation"))


def test_no_reply_of_a_judge_held_to_a_choice_or_a_schema_is_unreadable(finished: Workspace) -> None:
    asked = judgements(finished).filter(BY_MODEL, pl.col("status") != "no_donor")
    assert set(asked["scorer"]) == {"detection", "fuzzing"}
    together = asked.group_by("scorer", "latent", "explainer", "prompt").len().group_by("scorer").agg(pl.max("len"))
    assert dict(together.iter_rows()) == {"detection": 5, "fuzzing": world.TOO_MANY_TO_LIST}
    assert set(asked["explainer"]) >= {"pattern", "null:pattern", "llm"}
    assert asked.height > 200
    assert (asked["status"] == "ok").all(), asked.group_by("scorer", "explainer", "status").len()
    assert asked["evidence"].drop_nulls().drop_nans().is_between(0, 1).all()
    known = asked["probability"].drop_nulls().drop_nans()
    assert known.len() > 0.9 * asked.height  # log probabilities of the answer's tokens came with it
    assert ((known > 0) & (known < 1)).any()


def test_scores_stand_beside_those_of_the_pattern_and_of_nulls(finished: Workspace) -> None:
    for stage in ("detection_scores", "fuzzing_scores"):
        rows = table(finished, stage, schema.SCORES).filter(pl.col("negatives") != "population", status="ok")
        by = rows.group_by("scorer", "judge", "explainer").agg(
            n=pl.len(), balanced_accuracy=pl.col("balanced_accuracy").median(), auroc=pl.col("auroc").median()
        )
        print(by.sort("judge", "explainer"))
        of_model = by.filter(BY_MODEL)
        assert set(of_model["explainer"]) >= {"pattern", "null:pattern", "llm"}
        assert of_model["balanced_accuracy"].is_between(0, 1).all()
        assert by.filter(judge="executed", explainer="pattern")["auroc"][0] > 0.6  # the world is one that can be read


def test_both_ways_ask_the_same_and_are_told_much_the_same(served: Workspace, inside: Workspace) -> None:
    """Equal prompts, token for token. Replies differ where two tokens are as likely to the last bits."""
    key = ["latent", "explainer"]
    a, b = (table(w, "explanations", schema.EXPLANATIONS).filter(explainer="llm").sort(key) for w in (served, inside))
    assert a["prompt_sha256"].to_list() == b["prompt_sha256"].to_list()
    once = (a["completion_tokens"] <= 80) & (b["completion_tokens"] <= 80)  # a second prompt quotes the first reply
    assert (a.filter(once)["prompt_tokens"] == b.filter(once)["prompt_tokens"]).all() and once.any()
    asked = a["prompt_tokens"] > 0
    same = (a.filter(asked)["reply"] == b.filter(asked)["reply"]).mean()

    key = ["latent", "explainer", "scorer", "negatives", "split", "context", "stratum"]
    rows = [
        judgements(w).filter(BY_MODEL, pl.col("explainer") == "pattern", pl.col("status") == "ok")
        for w in (served, inside)
    ]
    both = rows[0].join(rows[1], on=key, how="full", suffix="_inside")
    assert both.height == rows[0].height == rows[1].height > 100
    assert both["prompt"].to_list() == both["prompt_inside"].to_list()
    agree = (both["prediction"] == both["prediction_inside"]).mean()
    apart = (both["probability"] - both["probability_inside"]).abs().drop_nulls().drop_nans()
    print(
        f"same explanations {same:.3f}; same verdicts {agree:.4f} of {both.height}; "
        f"probabilities apart: median {apart.median():.2g}, most {apart.max():.2g}"
    )
    assert agree > 0.9
    assert apart.median() < 0.02


def test_the_server_does_what_its_entry_declares(served: Workspace) -> None:
    """JSON, choices, seeds, log probabilities, stops; and a prompt that is too long fails alone."""
    schema_ = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }

    def ask(text: str, **given: object) -> Request:
        return Request((Message("user", text),), **{"max_tokens": 40} | given)  # type: ignore[arg-type]

    story = [ask("Tell me a story.", temperature=1.0, seed=seed) for seed in (1, 2)]
    model = served.language_model("smol")
    try:
        replies = list(
            model.complete(
                [
                    ask("Name a city as JSON.", json_schema=schema_),
                    ask("Is Paris in France?", choice=("Yes", "No"), logprobs=3),
                    ask("Say: one, two, three", stop=(",",)),
                    *story,
                    ask("x " * 4000),
                    ask("And now?"),
                ]
            )
        )
    finally:
        model.close()
    described, chosen, stopped, one, two, too_long, after = replies
    assert set(json.loads(described.text)) == {"city"}
    assert chosen.text in ("Yes", "No") and chosen.logprobs and chosen.logprobs[0].top
    assert "," not in stopped.text and stopped.status == "ok"
    assert one.text != two.text
    assert too_long.status == "llm_error" and "2048" in too_long.reason
    assert after.status in ("ok", "truncated")


def test_beginnings_of_prompts_are_computed_once(served: Workspace) -> None:
    """The server says how much of its prompts its prefix cache had: instructions and examples are most of them."""
    of = {row["stage"]: row for row in served.ledger.totals()}
    for stage in ("detection_scores", "fuzzing_scores"):
        assert of[stage]["cached_prompt_tokens"] > 0.5 * of[stage]["prompt_tokens"]
    print(of)
