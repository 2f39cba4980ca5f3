"""The one Definitions object: what `dagster dev` loads (see workspace.yaml).

Loading it imports no model library: runners are imported inside assets, when they run.
"""

import dagster as dg

import assets
from jobs.jobs import JOBS
from jobs.refresh import SCHEDULES
from resources import Progress, WorkspaceResource
from sensors.automation import automation_sensor
from sensors.registry import registry_sensor

defs = dg.Definitions(
    # include_specs: without it an AssetSpec becomes an unpartitioned stub.
    assets=dg.load_assets_from_package_module(assets, include_specs=True),
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=[registry_sensor, automation_sensor],
    resources={"workspace": WorkspaceResource(), "progress": Progress()},
    # One process per run: a model that one stage has loaded is there for the next.
    executor=dg.in_process_executor,
)
