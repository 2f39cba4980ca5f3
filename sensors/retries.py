"""The sensor that asks again for what a failed or cancelled run has left.

A condition of automation is true once for each change, and a request makes it false, whether the run succeeds or not.
This sensor therefore looks at runs that have ended without success, and asks for those of their partitions that the
store does not hold fresh. `PAUSES` is the bound: a partition that always fails is asked for that many times more, and
then only by the nightly schedules, by a new change, or by hand.
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
"""Tags of runs that nobody started by hand. A run that a person started is that person's to start again."""

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


def due(
    instance: dg.DagsterInstance, handled: Sequence[str], now: float
) -> tuple[list[dg.DagsterRun], list[dg.DagsterRun]]:
    """Runs that ended without success, were not started by hand, and are not `handled`.

    Returns those whose pause is over and that may be asked for again, and those whose attempts are used up.
    """
    since = datetime.fromtimestamp(now - WINDOW, UTC)
    again, used_up = [], []
    for record in instance.get_run_records(filters=dg.RunsFilter(statuses=ENDED, updated_after=since)):
        run = record.dagster_run
        if run.run_id in handled or not any(tag in run.tags for tag in BY_ITSELF):
            continue
        if attempt(run) > len(PAUSES):
            used_up.append(run)
        elif now >= (record.end_time or record.update_timestamp.timestamp()) + PAUSES[attempt(run) - 1]:
            again.append(run)
    return again, used_up


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
    again, used_up = due(instance, list(known), now)
    if not again and not used_up:
        return dg.SkipReason("no run has to be asked for again")
    for run in used_up:
        context.log.warning(
            f"run {run.run_id} was attempt {attempt(run)} and is not asked for again before the next night: "
            f"{sorted(targets(instance, run))}"
        )
    going = instance.get_runs(filters=dg.RunsFilter(statuses=GOING)) if again else []
    busy = {target for run in going for target in targets(instance, run)}
    states = workspace.opened().states() if again else []
    asked: list[dg.RunRequest] = []
    handled = {run.run_id: now for run in used_up}
    taken: set[Target] = set()
    for run in sorted(again, key=attempt, reverse=True):  # so that the latest attempt's number counts
        if targets(instance, run) & busy:
            continue  # until the run that is at it has ended
        asked += requests(instance, states, run, taken)
        taken |= targets(instance, run)
        handled[run.run_id] = now
    kept = {run_id: when for run_id, when in known.items() if when > now - WINDOW}
    return dg.SensorResult(
        run_requests=asked,
        skip_reason=None if asked else "what failed or was cancelled is fresh now, or another run is at it",
        cursor=json.dumps({**kept, **handled}),
    )
