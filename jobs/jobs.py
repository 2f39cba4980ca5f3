"""One named job per grain: for `make demo`, backfills from the command line, and the nightly schedules.

A job has one grain, because a run has one kind of partition. To run across grains, materialise from the UI's graph
or leave it to automation.
"""

from typing import TYPE_CHECKING

import dagster as dg

from assets.stage_asset import is_bridge
from latentgloss.stages import STAGES, Stage

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def _job(name: str, stages: list[Stage], description: str) -> "UnresolvedAssetJobDefinition":
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*(s.name for s in stages)),
        description=description,
    )


_models = [s for s in STAGES.values() if s.grain == "model"]
STAGES_OF_JOB: dict[str, list[Stage]] = {
    "corpora": [s for s in _models if not is_bridge(s)],
    "saes": [s for s in STAGES.values() if s.grain == "sae"],
    "reports": [s for s in _models if is_bridge(s)],
}
"""In the order in which they build on each other."""

JOBS = [
    _job("corpora", STAGES_OF_JOB["corpora"], "Corpus of each model."),
    _job("saes", STAGES_OF_JOB["saes"], "From the activations to the scores of each SAE."),
    _job("reports", STAGES_OF_JOB["reports"], "Report of each model over its SAEs."),
]
