"""The one Definitions object: what `dagster dev` loads (see workspace.yaml).

Loading it imports no model library: runners are imported inside assets, when they run.
"""

from latentgloss.machine.memory import keep_freed_memory

keep_freed_memory()  # before any thread has an arena of its own

import dagster as dg  # noqa: E402

import assets  # noqa: E402
from jobs.jobs import JOBS  # noqa: E402
from jobs.refresh import SCHEDULES  # noqa: E402
from resources import Progress, WorkspaceResource  # noqa: E402
from sensors.automation import automation_sensor  # noqa: E402
from sensors.registry import registry_sensor  # noqa: E402

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
