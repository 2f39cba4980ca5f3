"""sensors/retries.py: what a failed or cancelled run has left is asked for again, so many times and no more."""

from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from tiny_dagster import SAES, Tiny, TinyResource, tiny

from assets.partitions import range_tags
from jobs.jobs import STAGES_OF_JOB
from sensors.retries import ATTEMPT, PAUSES, WINDOW, tick

pytestmark = pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated")  # Dagster's own
workspace = pytest.fixture(tiny)
AUTOMATION = {"dagster/from_automation_condition": "true"}


class Sensor:
    """Ticks of the sensor over a workspace, each at a time of its own and with the cursor of the last one."""

    def __init__(self, workspace: Tiny) -> None:
        self.workspace = workspace
        self.cursor: str | None = None
        self.now = max(r.update_timestamp.timestamp() for r in workspace.instance.get_run_records())
        self.message = ""

    def tick(self, later: float) -> list[tuple[list[str], str, str, str]]:
        """(stages, first and last partition, attempt) of each request of a tick so many seconds later."""
        self.now += later
        resource = TinyResource(config=str(self.workspace.folder / "latentgloss.toml"))
        with dg.build_sensor_context(instance=self.workspace.instance, cursor=self.cursor) as context:
            result = tick(context, resource, self.now)
        if isinstance(result, dg.SkipReason):
            self.message = result.skip_message or ""
            return []
        self.message = result.skip_reason.skip_message or "" if result.skip_reason else ""
        self.cursor = result.cursor
        return [
            (
                [key.to_user_string() for key in request.asset_selection or ()],
                request.tags["dagster/asset_partition_range_start"],
                request.tags["dagster/asset_partition_range_end"],
                request.tags[ATTEMPT],
            )
            for request in result.run_requests or ()
        ]


def resolved(workspace: Tiny) -> None:
    """The first two stages, fresh."""
    assert workspace.run("tokenized_corpus", "m1", "m2").success
    assert workspace.run("resolved_saes", SAES[0], SAES[-1]).success


def ended(workspace: Tiny, stage: str, *keys: str, status: dg.DagsterRunStatus, **tags: str) -> None:
    """A run of one stage as automation starts it (or as `tags` say), which has done nothing."""
    create_run_for_test(
        workspace.instance,
        job_name="__ASSET_JOB",
        asset_selection=frozenset([dg.AssetKey(stage)]),
        status=status,
        tags={**range_tags(keys), **(tags or AUTOMATION)},
    )


def failed(workspace: Tiny, stage: str, first: str, last: str, **tags: str) -> None:
    """A run of one stage as automation starts it, which has failed and recorded that in the store."""
    assert not workspace.run(stage, first, last).success
    keys = SAES[SAES.index(first) : SAES.index(last) + 1]
    ended(workspace, stage, *keys, status=dg.DagsterRunStatus.FAILURE, **AUTOMATION, **tags)


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
def test_changed_partitions_are_asked_for_again(workspace: Tiny, status: dg.DagsterRunStatus) -> None:
    resolved(workspace)
    workspace.external({SAES[1]: 1})
    ended(workspace, "resolved_saes", *SAES, status=status)
    sensor = Sensor(workspace)
    assert sensor.tick(PAUSES[0] - 30) == []
    assert sensor.tick(31) == [(["resolved_saes"], SAES[1], SAES[1], "2")], "the others are fresh"
    assert sensor.tick(31) == [], "once"


def test_a_partition_that_always_fails_is_given_up(workspace: Tiny) -> None:
    resolved(workspace)
    workspace.external({SAES[0]: 1, SAES[2]: 1})
    workspace.broken.add(("resolved_saes", SAES[0]))
    failed(workspace, "resolved_saes", SAES[0], SAES[2])
    sensor, attempts = Sensor(workspace), []
    for pause in (*PAUSES, WINDOW / 4, WINDOW / 4):
        for stages, first, last, number in sensor.tick(pause + 1):
            attempts.append((stages, first, last, number))
            failed(workspace, "resolved_saes", first, last, **{ATTEMPT: number})
    assert attempts == [(["resolved_saes"], SAES[0], SAES[0], str(n)) for n in range(2, len(PAUSES) + 2)]
    assert workspace.ran.count(("resolved_saes", SAES[0])) == 2 + len(PAUSES), "with the one before the change"


def test_a_run_that_succeeds_at_last_is_asked_for_no_more(workspace: Tiny) -> None:
    resolved(workspace)
    workspace.external({SAES[1]: 1})
    workspace.broken.add(("resolved_saes", SAES[1]))
    failed(workspace, "resolved_saes", SAES[1], SAES[1])
    workspace.broken.clear()
    sensor = Sensor(workspace)
    ((_, first, last, _),) = sensor.tick(PAUSES[0] + 1)
    assert workspace.run("resolved_saes", first, last).success
    assert [sensor.tick(pause + 1) for pause in PAUSES] == [[]] * len(PAUSES)


def test_a_run_started_by_hand_is_left_to_who_started_it(workspace: Tiny) -> None:
    ended(workspace, "tokenized_corpus", "m1", status=dg.DagsterRunStatus.FAILURE, started="by hand")
    assert Sensor(workspace).tick(PAUSES[0] + 1) == []


def test_it_waits_for_a_run_that_is_at_it(workspace: Tiny) -> None:
    ended(workspace, "tokenized_corpus", "m1", status=dg.DagsterRunStatus.CANCELED)
    ended(workspace, "tokenized_corpus", "m1", "m2", status=dg.DagsterRunStatus.NOT_STARTED, started="by hand")
    sensor = Sensor(workspace)
    assert sensor.tick(PAUSES[0] + 1) == []
    (going,) = workspace.instance.get_runs(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED]))
    workspace.instance.report_run_canceled(going)
    assert sensor.tick(30) == [(["tokenized_corpus"], "m1", "m1", "2")]


def test_a_whole_job_is_asked_for_by_stage(workspace: Tiny) -> None:
    """A run of the nightly schedule that was killed; one of its partitions is no longer in the registry."""
    resolved(workspace)
    workspace.external({SAES[0]: 1})
    tags: dict[str, Any] = {**range_tags(SAES[:2]), "dagster/schedule_name": "nightly_saes"}
    create_run_for_test(workspace.instance, job_name="saes", status=dg.DagsterRunStatus.FAILURE, tags=tags)
    workspace.instance.delete_dynamic_partition("sae", SAES[1])
    found = Sensor(workspace).tick(PAUSES[0] + 1)
    chain = [stage.name for stage in STAGES_OF_JOB["saes"]]
    assert found == [(chain, SAES[0], SAES[0], "2")]


class Automation:
    """Ticks of automation over the activations of one SAE alone."""

    def __init__(self, workspace: Tiny) -> None:
        self.workspace, self.cursor = workspace, None

    def tick(self) -> list[str]:
        """The partitions that are asked for."""
        asset = dg.AssetKey("activation_cache")
        result = dg.evaluate_automation_conditions(
            self.workspace.definitions,
            self.workspace.instance,
            asset_selection=dg.AssetSelection.assets(asset),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return sorted(str(key) for key in result.get_requested_partitions(asset))


@pytest.mark.parametrize("start", ["missing", "changed"])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_partition_is_asked_for_so_often_and_anew_after_each_change(workspace: Tiny, how: str, start: str) -> None:
    """Automation and retries together: the first request and three more, whatever ends the runs; then the message."""
    target = ("activation_cache", SAES[1])

    def end(number: str) -> None:
        if how == "failed":
            failed(workspace, *target, target[1], **{ATTEMPT: number})
        else:
            ended(workspace, *target, status=dg.DagsterRunStatus.CANCELED, **AUTOMATION, **{ATTEMPT: number})

    def change(value: int) -> None:
        workspace.external({SAES[1]: value})
        assert workspace.run("resolved_saes", SAES[1]).success

    def attempts() -> list[str]:
        """The attempts in five hours in which every run ends without success."""
        made = []
        for pause in (*PAUSES, *[WINDOW / 12] * 2):
            for _ in range(2):
                for key in automation.tick():
                    assert key == SAES[1]
                    made.append("1")
                    end("1")
            for stages, first, last, number in sensor.tick(pause + 1):
                assert (stages, first, last) == ([target[0]], SAES[1], SAES[1])
                made.append(number)
                end(number)
        return made

    resolved(workspace)
    for key in SAES if start == "changed" else (SAES[0], SAES[2]):
        assert workspace.run("activation_cache", key).success
    automation, sensor = Automation(workspace), Sensor(workspace)
    if how == "failed":
        workspace.broken.add(target)
    if start == "changed":
        assert automation.tick() == []
        change(1)
    assert attempts() == ["1", "2", "3", "4"]
    assert "after 4 attempts" in sensor.message and f"activation_cache of {SAES[1]}" in sensor.message
    change(2)
    assert attempts() == ["1", "2", "3", "4"], "it has changed again"
    workspace.broken.clear()
    assert workspace.run(*target).success
    assert sensor.tick(30) == [] and SAES[1] not in sensor.message


def test_the_count_of_the_newest_change_counts(workspace: Tiny) -> None:
    """The partition changed again while its last attempt was due: the new content gets all of its attempts."""
    resolved(workspace)
    workspace.external({SAES[1]: 1})
    ended(workspace, "resolved_saes", SAES[1], status=dg.DagsterRunStatus.FAILURE, **{ATTEMPT: "3", **AUTOMATION})
    ended(workspace, "resolved_saes", SAES[1], status=dg.DagsterRunStatus.FAILURE)
    sensor = Sensor(workspace)
    assert sensor.tick(max(PAUSES) + 1) == [(["resolved_saes"], SAES[1], SAES[1], "2")]
    assert sensor.tick(30) == []
