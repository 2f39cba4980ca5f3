"""The Definitions object that `dagster dev` loads (see workspace.yaml).

Loading it imports no model library, because assets import their runners only when they run.
"""

from latentgloss.machine.memory import keep_freed_memory

keep_freed_memory()  # before any thread gets an allocator arena of its own

import dagster as dg  # noqa: E402

import assets  # noqa: E402
from assets.configuration import CHECKS  # noqa: E402
from jobs.jobs import JOBS  # noqa: E402
from jobs.refresh import SCHEDULES  # noqa: E402
from resources import Progress, WorkspaceResource  # noqa: E402
from sensors.automation import automation_sensor  # noqa: E402
from sensors.configuration import configuration_sensor  # noqa: E402
from sensors.lost_runs import lost_runs_sensor  # noqa: E402
from sensors.registry import registry_sensor  # noqa: E402
from sensors.retries import retries_sensor  # noqa: E402

defs = dg.Definitions(
    # Without include_specs, an AssetSpec becomes an unpartitioned stub.
    assets=dg.load_assets_from_package_module(assets, include_specs=True),
    asset_checks=CHECKS,
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=[registry_sensor, configuration_sensor, automation_sensor, lost_runs_sensor, retries_sensor],
    resources={"workspace": WorkspaceResource(), "progress": Progress()},
    # A run is one process, so that a model that one stage has loaded is available to the next stage.
    executor=dg.in_process_executor,
)
