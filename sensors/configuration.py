"""The sensor that fails while a registry file cannot be used or the settings in use are not those in the file.

A failed tick is red in the UI's overview of sensors. The messages of a successful tick are only seen by someone who
opens its log. The sensor also keeps the checks of `sae_files` up to date.
"""

import dagster as dg

from assets.configuration import problems, report
from latentgloss.errors import LatentglossError
from resources import WorkspaceResource


class ConfigurationProblem(LatentglossError):
    """Something in the registry or the settings needs a person; the message says what."""


@dg.sensor(
    name="configuration",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Fails, with the reason, while a registry file cannot be used or the settings need a reload.",
)
def configuration_sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SkipReason:
    """One tick: reports the checks, and raises ConfigurationProblem if one of them fails."""
    found = problems(context.instance, workspace)
    report(context.instance, found)
    messages = [message for of_check in found.values() for message in of_check]
    if messages:
        raise ConfigurationProblem("\n".join(messages))
    return dg.SkipReason("every registry file can be used, and the settings in use are those in the file")
