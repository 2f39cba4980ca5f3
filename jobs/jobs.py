"""Named jobs for `make demo`, for backfills from the command line, and for the nightly schedules.

All stages of a job have the same grain, because a run has one kind of partition. To run stages of several grains,
materialise them from the graph in the UI, or leave them to automation.
"""

from typing import TYPE_CHECKING

import dagster as dg

from assets.stage_asset import is_bridge
from latentgloss.pipeline.graph import STAGES
from latentgloss.pipeline.stage import Stage

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def _job(name: str, stages: list[Stage], description: str) -> "UnresolvedAssetJobDefinition":
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*(s.name for s in stages)),
        description=description,
    )


def _stages(grain: str, *, bridge: bool | None = None, embeddings: bool = False) -> list[Stage]:
    return [
        s
        for s in STAGES.values()
        if s.grain == grain and (s.noun == "embeddings") == embeddings and bridge in (None, is_bridge(s))
    ]


STAGES_OF_JOB: dict[str, list[Stage]] = {
    "corpora": _stages("model", bridge=False),
    "saes": _stages("sae"),
    "reports": _stages("model", bridge=True),
    "context_vectors": _stages("model", bridge=False, embeddings=True),
    "explanation_vectors": _stages("sae", embeddings=True),
    "search": _stages("model", bridge=True, embeddings=True),
}
"""The stages of each job. Jobs are in the order in which they depend on each other."""
SEARCH = ("context_vectors", "explanation_vectors", "search")
"""The jobs that `latentgloss search` needs in addition to the others."""

JOBS = [
    _job("corpora", STAGES_OF_JOB["corpora"], "The corpus of each model."),
    _job("saes", STAGES_OF_JOB["saes"], "The stages of each SAE, from activations to scores."),
    _job("reports", STAGES_OF_JOB["reports"], "The report of each model over its SAEs."),
    _job("context_vectors", STAGES_OF_JOB["context_vectors"], "Vectors of the contexts in each model's corpus."),
    _job("explanation_vectors", STAGES_OF_JOB["explanation_vectors"], "Vectors of the explanations of each SAE."),
    _job("search", STAGES_OF_JOB["search"], "The search index over the SAEs of each model."),
]
