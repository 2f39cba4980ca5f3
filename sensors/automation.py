"""The sensor that evaluates the conditions in `assets/automation.py` and requests the runs. It is on by default.

Several partitions are requested as a backfill. Without one, each would be a run of its own and load its model again.
"""

import dagster as dg

automation_sensor = dg.AutomationConditionSensorDefinition(
    name="automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Runs assets that are missing or out of date as soon as their inputs are ready.",
)
