"""The sensor that ends runs whose process is gone, after kill -9, a full memory or a reboot.

Such a run would stay STARTED, keep the slots of its pools, and hold up automation. Dagster's run monitoring
(`dagster.yaml`) handles runs that never start, do not end when they are cancelled, or take too long; the default
launcher lets it check nothing else.
"""

import time

import dagster as dg

from resources import processes

FIRST_STEP = 120.0
"""Seconds after the start of a run within which its first step has begun and written which process it is."""
RUNNING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ends every run whose process is gone, frees its slots, and returns the ids of these runs."""
    ended = []
    for record in instance.get_run_records(filters=dg.RunsFilter(statuses=RUNNING)):
        run = record.dagster_run
        tag = run.tags.get(processes.TAG)
        if not (processes.is_gone(tag) if tag is not None else _never_began(record)):
            continue
        now = instance.get_run_by_id(run.run_id)
        if now is None or now.is_finished:  # it ended while it was looked at
            continue
        message = (
            "The process of this run is gone (killed, out of memory, or the machine restarted). Finished partitions "
            "and blocks are kept; a new run continues where this one stopped."
        )
        if now.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(now, message)
        else:
            instance.report_run_failed(now, message)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    return ended


def _never_began(record: dg.RunRecord) -> bool:
    """Whether a started run has had the time to begin its first step, and has not: it was killed in between.

    A run that is still starting is left to Dagster's run monitoring.
    """
    started = record.start_time if record.dagster_run.status != dg.DagsterRunStatus.STARTING else None
    return started is not None and time.time() - started > FIRST_STEP


@dg.sensor(
    name="lost_runs",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Fails runs whose process is gone and frees their slots, so that nothing waits for them.",
)
def lost_runs_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """One tick: ends the runs whose process is gone."""
    ended = end_lost_runs(context.instance)
    for run_id in ended:
        context.log.warning(f"run {run_id}: its process is gone; the run was ended")
    return dg.SkipReason(f"ended {', '.join(ended)}" if ended else "every run has its process")
