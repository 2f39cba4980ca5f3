"""Declarative automation, switched on: `dagster dev` runs what the conditions in `assets/automation.py` ask for."""

import dagster as dg

automation_sensor = dg.AutomationConditionSensorDefinition(
    name="automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Requests what is missing or out of date as soon as its inputs are there.",
)
