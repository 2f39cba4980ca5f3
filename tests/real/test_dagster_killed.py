"""`dagster dev` is killed as a whole while a run holds the slot of the pool `gpu`, and started again.

The run must end as failed, hold up nothing, and be asked for again. Then the pages of the UI are asked for over HTTP:
those of a run that has finished, of the killed one, and of one whose step has failed.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_processes import ask, free_port, kill_all, partitions, processes_of, running, wait
from repository import ROOT
from tiny import MODEL, SAELENS, SPARSIFY, tiny_workspace
from ui_queries import filled, variables

from assets.partitions import apply, changes, range_tags
from resources import processes
from sensors.retries import ATTEMPT, PAUSES

pytestmark = [
    pytest.mark.dagster,
    pytest.mark.timeout(600),
    # Dagster's own calls
    pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated"),
    pytest.mark.filterwarnings("ignore:Parameter `include_sources` of function"),
]
STAGE = "activation_cache"
SHORT = 90.0
"""Seconds within which the killed run must have ended: the processes' start and two ticks."""
PATIENCE = 180.0
"""Seconds for a few ticks and a run."""
PAGES = (
    "RunRootQuery", "RunLogsQuery", "RunStatsQuery", "RunStepStatsQuery", "RunAssetsQuery", "RunAssetChecksQuery",
    "RunsFeedQuery", "RunsFeedRootQuery", "CompletedRunTimelineQuery", "OngoingRunTimelineQuery",
    "PartitionHealthQuery", "AssetPartitionDetailQuery", "AssetPartitionEventsQuery", "AssetPartitionStaleQuery",
    "AssetChecksQuery", "AssetCheckDetailsQuery", "AssetCheckPartitionHealthQuery", "RecentAssetEventsQuery",
    "AssetOverviewMetadataEventsQuery", "AssetGraphLiveQuery", "SingleConcurrencyKeyQuery",
    "SingleSensorQuery", "TickHistoryQuery", "InstanceHealthQuery",
)  # fmt: skip
"""Queries of the pages that are asked for: runs and their logs, partitions, events, checks, pools, sensors, daemons."""


class World:
    """The tiny world with an instance of its own, in which the corpus is computed."""

    def __init__(self, folder: Path) -> None:
        self.workspace = tiny_workspace(folder / "world")
        self.home = folder / "home"
        self.home.mkdir()
        shutil.copy(ROOT / "dagster.yaml", self.home)
        self.env = {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "LATENTGLOSS_CONFIG": str(self.workspace.settings.folder / "latentgloss.toml"),
            "PYTHONWARNINGS": "ignore",
        }
        self.logs: list[Path] = []
        self.instance = dg.DagsterInstance.from_config(str(self.home))

    @contextmanager
    def started(self) -> Iterator[tuple[int, Callable[[str, Callable[[], bool], float], None]]]:
        """`dagster dev`: its port, and a function that waits while it runs."""
        port = free_port()
        self.logs.append(self.home.parent / f"dev{len(self.logs)}.log")
        args = ("dev", "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml")
        with running("dagster", *args, env=self.env, log=self.logs[-1]) as dev:
            yield port, lambda what, until, seconds: wait(what, until, seconds, self.logs, dev)

    def runs(self, stage: str, *statuses: dg.DagsterRunStatus, attempt: str | None = None) -> list[dg.DagsterRun]:
        """Runs of one stage that have one of these statuses, newest first."""
        found = self.instance.get_runs(filters=dg.RunsFilter(statuses=list(statuses)))
        return [
            run for run in found if run.asset_selection == {dg.AssetKey(stage)} and run.tags.get(ATTEMPT) == attempt
        ]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.setenv("LATENTGLOSS_CONFIG", made.env["LATENTGLOSS_CONFIG"])
    from definitions import defs

    apply(made.instance, changes(made.instance, made.workspace.registry))
    done = defs.resolve_job_def("corpora").execute_in_process(
        instance=made.instance,
        tags=range_tags([MODEL]),
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    assert done.success
    try:
        yield made
    finally:
        kill_all(made.home)
        made.instance.dispose()


def test_a_run_that_was_killed_with_everything_fails_and_is_asked_for_again(world: World) -> None:
    going = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)
    with world.workspace.store.files.lock(f"{STAGE}/{SPARSIFY}"), world.started() as (_, waits):
        # The lock is held here, so the run stays in its step until it is killed.
        waits(f"a run of {STAGE}", lambda: any(processes.TAG in r.tags for r in world.runs(STAGE, *going)), PATIENCE)
        (run,) = world.runs(STAGE, *going)
        kill_all(world.home)
    (lost,) = world.runs(STAGE, dg.DagsterRunStatus.STARTED)
    assert lost.run_id == run.run_id and processes_of(world.home) == []
    for weights in (world.workspace.registry.sae(SAELENS).path).glob("*.safetensors"):
        weights.write_bytes(b"cut short")  # so that a step fails too

    began = time.monotonic()
    with world.started() as (port, waits):
        waits("the end of the killed run", lambda: bool(world.runs(STAGE, dg.DagsterRunStatus.FAILURE)), SHORT)
        print(f"ended after {time.monotonic() - began:.0f} s")
        assert world.runs(STAGE, *going) == []
        events = check_pages(port, world, lost)
        (end,) = of_kind(events, "RunFailureEvent")
        assert "process of this run is gone" in end["message"] and made(events) == {}
        pass_time(world.home, lost, PAUSES[0])
        ended = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS)
        waits("the second attempt", lambda: bool(world.runs(STAGE, *ended, attempt="2")), PATIENCE)
        (again,) = world.runs(STAGE, *ended, attempt="2")
        assert again.tags["dagster/sensor_name"] == "retries"
        assert partitions(port, STAGE) == [SPARSIFY] and partitions(port, STAGE, "failedPartitions") == [SAELENS]
        events = check_pages(port, world, again)
        assert list(made(events)) == [SPARSIFY] and "picture" in made(events)[SPARSIFY]
        (failure,) = of_kind(events, "ExecutionStepFailureEvent")
        assert SAELENS in failure["error"]["message"]
        checks = of_kind(events, "AssetCheckEvaluationEvent")
        assert [check["evaluation"]["partition"] for check in checks] == [SPARSIFY], checks
        (finished,) = world.runs("resolved_saes", dg.DagsterRunStatus.SUCCESS)
        events = check_pages(port, world, finished)
        assert list(made(events)) == [SPARSIFY, SAELENS] and all(
            "picture" in labels for labels in made(events).values()
        )
        (output,) = of_kind(events, "ExecutionStepOutputEvent")
        assert output["outputName"] == "resolved_saes" and output["typeCheck"]["success"]


def pass_time(home: Path, run: dg.DagsterRun, seconds: float) -> None:
    """Moves the end of a run back, so that the pause after it is over."""
    with sqlite3.connect(home / "history" / "runs.db") as runs:
        runs.execute("UPDATE runs SET end_time = end_time - ? WHERE run_id = ?", (seconds, run.run_id))


def check_pages(port: int, world: World, run: dg.DagsterRun) -> list[dict[str, Any]]:
    """Asks for every page of `PAGES` about a run, and returns the events of its log, as many as are recorded."""
    values = variables(STAGE, "most_latents_alive", SPARSIFY, run.run_id, "saes", "")
    failed = []
    for page in PAGES:
        send = filled(page, values)
        assert send is not None, page
        try:
            ask(port, page, send)
        except Exception as e:
            failed.append(f"{page}: {e}")
    assert not failed, "\n".join(failed)
    listed = ask(port, "RunsFeedQuery", {"limit": 100, "view": "RUNS"})["runsFeedOrError"]["results"]
    recorded = world.instance.get_run_by_id(run.run_id)
    assert recorded is not None
    assert {entry["id"]: entry["runStatus"] for entry in listed}[run.run_id] == recorded.status.value
    events: list[dict[str, Any]] = ask(port, "RunLogsQuery", {"runId": run.run_id, "limit": 1000})["logsForRun"][
        "events"
    ]
    assert len(events) == len(world.instance.all_logs(run.run_id))
    return events


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["__typename"] == kind]


def made(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The labels of the metadata of each materialised partition."""
    found = of_kind(events, "MaterializationEvent")
    return {event["partition"]: [entry["label"] for entry in event["metadataEntries"]] for event in found}
