"""The sensor that asks again for what a failed or cancelled run has left.

A condition of automation is true once for each change, and a request makes it false, whether the run succeeds or not.
This sensor therefore looks at runs that have ended without success, and asks for those of their partitions that the
store does not hold fresh. `PAUSES` is the bound: a partition that always fails is asked for that many times more, and
then only by the nightly schedules, by a new change, or by hand. The sensor's message names it until then. A new change
starts the count anew.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg

from assets.partitions import range_tags
from jobs.jobs import JOBS, STAGES_OF_JOB
from jobs.refresh import runs
from latentgloss.pipeline.graph import STAGES
from latentgloss.workspace import State
from resources import WorkspaceResource

PAUSES = (60.0, 600.0, 3600.0)
"""Seconds between the end of a run without success and the request that follows it, for each attempt but the first."""
WINDOW = 86_400.0
"""Seconds for which a run is remembered. What ended earlier is left to the nightly schedules."""
ATTEMPT = "latentgloss/attempt"
"""The tag of a run that was asked for again: its number, from 2."""
BY_ITSELF = ("dagster/from_automation_condition", "dagster/schedule_name", "dagster/sensor_name")
"""Tags of runs that were not started by hand. A run that a person started is that person's to start again."""

NAMED = 20
"""Most partitions that the sensor's message names."""

ENDED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
GOING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

Target = tuple[str, str]
"""(stage, partition)."""


def targets(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[Target]:
    """The stages and partitions that a run was to materialise. Keys whose partition was removed are left out."""
    if run.asset_selection is not None:
        stages = [key.to_user_string() for key in run.asset_selection if key.to_user_string() in STAGES]
    else:
        stages = [stage.name for stage in STAGES_OF_JOB.get(run.job_name, [])]
    found: set[Target] = set()
    for name in stages:
        known = list(instance.get_dynamic_partitions(STAGES[name].grain))
        one = run.tags.get("dagster/partition")
        first = run.tags.get("dagster/asset_partition_range_start", one)
        last = run.tags.get("dagster/asset_partition_range_end", one)
        if first in known and last in known:
            found |= {(name, key) for key in known[known.index(first) : known.index(last) + 1]}
        else:
            found |= {(name, key) for key in (first, last) if key in known}
    return found


def attempt(run: dg.DagsterRun) -> int:
    """Which attempt a run is, from 1."""
    return int(run.tags.get(ATTEMPT, "1"))


def ended(instance: dg.DagsterInstance, now: float) -> list[dg.RunRecord]:
    """Records of the runs that ended without success within `WINDOW` and were not started by hand."""
    since = datetime.fromtimestamp(now - WINDOW, UTC)
    records = instance.get_run_records(filters=dg.RunsFilter(statuses=ENDED, updated_after=since))
    return [record for record in records if any(tag in record.dagster_run.tags for tag in BY_ITSELF)]


def end_of(record: dg.RunRecord) -> float:
    """When a run ended, in seconds since 1970."""
    return record.end_time or record.update_timestamp.timestamp()


def given_up(instance: dg.DagsterInstance, records: Sequence[dg.RunRecord]) -> list[Target]:
    """What is not asked for again: its latest run of `records` was the last attempt, and it has no record since."""
    last: dict[Target, dg.RunRecord] = {}
    for record in sorted(records, key=lambda record: (end_of(record), record.storage_id)):
        last |= dict.fromkeys(targets(instance, record.dagster_run), record)
    return sorted(
        target
        for target, record in last.items()
        if attempt(record.dagster_run) > len(PAUSES) and not _recorded_since(instance, target, end_of(record))
    )


def _recorded_since(instance: dg.DagsterInstance, target: Target, when: float) -> bool:
    stage, partition = target
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(stage), asset_partitions=[partition], after_timestamp=when)
    return bool(instance.fetch_materializations(wanted, limit=1).records)


def _told(found: Sequence[Target]) -> str:
    """The message about what was given up; empty if nothing was."""
    names = [f"{stage} of {partition}" for stage, partition in found[:NAMED]]
    more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return (
        f"not asked for again before the next night, after {len(PAUSES) + 1} attempts that failed or were cancelled: "
        f"{', '.join(names)}{more}"
        if found
        else ""
    )


def requests(
    instance: dg.DagsterInstance, states: Sequence[State], run: dg.DagsterRun, taken: set[Target]
) -> Iterator[dg.RunRequest]:
    """The requests for what a run has left, without what is `taken` by another request."""
    left = targets(instance, run) - taken
    wanted = [state for state in states if (state.asset, state.partition) in left]
    for job in STAGES_OF_JOB:
        for assets, keys in runs(instance, job, wanted):
            yield dg.RunRequest(
                job_name=job,
                asset_selection=[dg.AssetKey(a) for a in assets],
                tags={**range_tags(keys), ATTEMPT: str(attempt(run) + 1)},
            )


@dg.sensor(
    name="retries",
    jobs=JOBS,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks again, a bounded number of times, for what a failed or cancelled run has left.",
)
def retries_sensor(
    context: dg.SensorEvaluationContext, workspace: WorkspaceResource
) -> dg.SensorResult | dg.SkipReason:
    """One tick: a request for each partition whose run ended without success and whose pause is over."""
    return tick(context, workspace, datetime.now(UTC).timestamp())


def tick(
    context: dg.SensorEvaluationContext, workspace: WorkspaceResource, now: float
) -> dg.SensorResult | dg.SkipReason:
    """The tick at a time, in seconds since 1970."""
    instance = context.instance
    known: dict[str, float] = json.loads(context.cursor) if context.cursor else {}
    records = ended(instance, now)
    again = [record.dagster_run for record in records if record.dagster_run.run_id not in known and _due(record, now)]
    told = _told(given_up(instance, records))
    if told:
        context.log.warning(told)
    if not again:
        return dg.SkipReason(told or "no run has to be asked for again")
    going = instance.get_runs(filters=dg.RunsFilter(statuses=GOING))
    busy = {target for run in going for target in targets(instance, run)}
    states = workspace.opened().states()
    asked: list[dg.RunRequest] = []
    handled: dict[str, float] = {}
    taken: set[Target] = set()
    for run in sorted(again, key=attempt):  # so that the count of the newest change counts
        if targets(instance, run) & busy:
            continue  # until the run that is at it has ended
        asked += requests(instance, states, run, taken)
        taken |= targets(instance, run)
        handled[run.run_id] = now
    kept = {run_id: when for run_id, when in known.items() if when > now - WINDOW}
    quiet = told or "what failed or was cancelled is fresh now, or another run is at it"
    return dg.SensorResult(
        run_requests=asked, skip_reason=None if asked else quiet, cursor=json.dumps({**kept, **handled})
    )


def _due(record: dg.RunRecord, now: float) -> bool:
    """Whether a run that ended may be asked for again and its pause is over."""
    number = attempt(record.dagster_run)
    return number <= len(PAUSES) and now >= end_of(record) + PAUSES[number - 1]
