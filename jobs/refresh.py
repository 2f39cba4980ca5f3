"""The nightly refresh. It looks at the current state of the store, whereas automation reacts to events.

It compares recipes (`Workspace.states`), which is exact, and requests runs of exactly those stages and partitions that
are not fresh, in as few runs as the partitions allow. The schedules run one after another, because each job depends on
the results of earlier ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from assets.partitions import range_tags, ranges
from jobs.jobs import JOBS, STAGES_OF_JOB
from latentgloss.workspace import State
from resources import WorkspaceResource

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

HOURS = {"corpora": 1, "saes": 2, "reports": 6, "context_vectors": 6, "explanation_vectors": 7, "search": 8}
"""The hour at which each job's schedule runs."""


def runs(instance: dg.DagsterInstance, job: str, states: Sequence[State]) -> list[tuple[list[str], list[str]]]:
    """The runs that bring a job's stages up to date, as (stages, contiguous partitions); empty if all are fresh.

    Partitions share a run if the same stages of theirs are not fresh. SAEs and models that are not yet partitions in
    Dagster are left out.
    """
    stages = STAGES_OF_JOB[job]
    grain = stages[0].grain
    known = set(instance.get_dynamic_partitions(grain))
    wanted: dict[str, list[str]] = defaultdict(list)
    names = {stage.name for stage in stages}
    for state in states:
        if state.asset in names and state.partition in known and state.state != "fresh":
            wanted[state.partition].append(state.asset)
    grouped: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for partition, assets in wanted.items():
        grouped[tuple(assets)].append(partition)
    return [(list(assets), keys) for assets, found in grouped.items() for keys in ranges(instance, grain, found)]


def _schedule(job: "UnresolvedAssetJobDefinition") -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"nightly_{job.name}",
        job=job,
        cron_schedule=f"0 {HOURS[job.name]} * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Runs everything that `latentgloss status` does not show as fresh, even if automation missed it.",
    )
    def nightly(
        context: dg.ScheduleEvaluationContext, workspace: WorkspaceResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        found = [
            dg.RunRequest(asset_selection=[dg.AssetKey(a) for a in assets], tags=range_tags(keys))
            for assets, keys in runs(context.instance, job.name, workspace.opened().states())
        ]
        return found or dg.SkipReason("everything is fresh")

    return nightly


SCHEDULES = [_schedule(job) for job in JOBS]
