"""sensors/lost_runs.py: a run whose process is gone is ended and holds no slot; every other run is left alone."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.test_utils import create_run_for_test
from tiny_dagster import SAES, Tiny, tiny

from resources import processes
from sensors.lost_runs import FIRST_STEP, end_lost_runs

pytestmark = pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated")  # Dagster's own
workspace = pytest.fixture(tiny)


@pytest.fixture
def ended() -> dict[str, Any]:
    """The identity of a process that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    found = processes.identity(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_gone(json.dumps(found)), "killed, but nobody has asked for its result yet"
    process.wait()
    return found


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def started(instance: dg.DagsterInstance, who: dict[str, Any] | None, status: dg.DagsterRunStatus) -> str:
    tags = {} if who is None else {processes.TAG: json.dumps(who)}
    return create_run_for_test(instance, status=status, tags=tags).run_id


def test_a_process_is_known_by_more_than_its_number(ended: dict[str, Any]) -> None:
    here = processes.identity()
    assert not processes.is_gone(json.dumps(here))
    assert processes.is_gone(json.dumps(ended))
    assert processes.is_gone(json.dumps({**here, "started": "1"})), "the number was given to another process"
    assert processes.is_gone(json.dumps({**here, "boot": "before"})), "the machine restarted"
    assert not processes.is_gone(json.dumps({**ended, "host": "elsewhere"})), "it cannot be seen from here"


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_without_its_process_fails(
    instance: dg.DagsterInstance, ended: dict[str, Any], status: dg.DagsterRunStatus
) -> None:
    lost = started(instance, ended, status)
    kept = [started(instance, processes.identity(), status), started(instance, None, status)]
    assert end_lost_runs(instance) == [lost]
    assert instance.get_run_by_id(lost).status == dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]
    assert {instance.get_run_by_id(run).status for run in kept} == {status}  # type: ignore[union-attr]
    assert end_lost_runs(instance) == []


@pytest.mark.parametrize("seconds", [FIRST_STEP - 30, FIRST_STEP + 30])
def test_a_run_that_was_killed_before_its_first_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """It has not written which process it is, and began so many seconds ago."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = instance.get_run_by_id(started(instance, None, dg.DagsterRunStatus.NOT_STARTED))
        starting = instance.get_run_by_id(started(instance, None, dg.DagsterRunStatus.STARTING))
        assert run is not None and starting is not None
        instance.report_dagster_event(DagsterEvent(DagsterEventType.RUN_START.value, run.job_name), run.run_id)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + seconds)
        late = seconds > FIRST_STEP
        assert end_lost_runs(instance) == [run.run_id] * late
        monkeypatch.undo()
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        assert found.status == (dg.DagsterRunStatus.FAILURE if late else dg.DagsterRunStatus.STARTED)


def test_a_run_that_was_being_cancelled_is_cancelled(instance: dg.DagsterInstance, ended: dict[str, Any]) -> None:
    lost = started(instance, ended, dg.DagsterRunStatus.CANCELING)
    assert end_lost_runs(instance) == [lost]
    assert instance.get_run_by_id(lost).status == dg.DagsterRunStatus.CANCELED  # type: ignore[union-attr]


def test_its_slots_are_free(ended: dict[str, Any], tmp_path: Any) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 1)
        lost = started(instance, ended, dg.DagsterRunStatus.STARTED)
        assert storage.claim_concurrency_slot("gpu", lost, "activation_cache").is_claimed
        assert not storage.claim_concurrency_slot("gpu", "another", "activation_cache").is_claimed
        end_lost_runs(instance)
        assert storage.claim_concurrency_slot("gpu", "another", "activation_cache").is_claimed


def test_every_run_says_which_process_it_is(workspace: Tiny) -> None:
    workspace.run("tokenized_corpus", "m1", "m2")
    workspace.run("resolved_saes", SAES[0])
    runs = workspace.instance.get_runs()
    assert [json.loads(run.tags[processes.TAG]) for run in runs] == [processes.identity()] * 2


def test_settings_of_the_instance_bound_every_run() -> None:
    import yaml
    from repository import ROOT

    monitoring = yaml.safe_load((ROOT / "dagster.yaml").read_text())["run_monitoring"]
    assert monitoring["enabled"]
    for bound in ("start_timeout_seconds", "cancel_timeout_seconds", "max_runtime_seconds"):
        assert monitoring[bound] > 0
    assert monitoring["free_slots_after_run_end_seconds"] > 0
