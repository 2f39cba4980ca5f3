"""Whatever is recorded can be read by the queries of Dagster's own UI: runs, logs, events, partitions, checks.

The real definitions run over the shared computed world, so that the real pictures, facts and checks are recorded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
import ui_queries
from tiny import SPARSIFY, computed_workspace
from ui_queries import Ui, documents, filled, variables

from assets.partitions import apply, changes, range_tags
from jobs.jobs import STAGES_OF_JOB
from latentgloss.pipeline.graph import STAGES

pytestmark = [  # Dagster's own calls
    pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated"),
    pytest.mark.filterwarnings("ignore:Parameter `include_sources` of function"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:dagster_graphql"),
]
BACKFILL = "abcdefgh"
UNASKED = {
    # Subscriptions that wait for the next event.
    "AssetLiveRunLogsSubscription", "CapturedLogsSubscription",
    # Pages of ticks and evaluations, which only the daemon records.
    "GetAssetEvaluationDetailsQuery", "GetEvaluationsSpecificPartitionQuery", "PartitionSubsetListQuery",
    "ScheduleStateQuery", "SelectedTickQuery", "SensorStateQuery", "TickLogEventsQuery",
    # Pages about single ops and their graphs, and about components, which show definitions only.
    "CodeLocationAppManagedComponentsQuery",
    "GraphExplorerRootQuery", "JobAutomationListQuery", "PipelineExplorerRootQuery", "SidebarGraphOpQuery",
    "SidebarOpGraphsQuery", "SidebarPipelineOpQuery", "SnapshotQuery", "UsedSolidDetailsQuery",
}  # fmt: skip


@dataclass
class Recorded:
    instance: dg.DagsterInstance
    ui: Ui
    runs: dict[str, dg.ExecuteInProcessResult]

    def events(self, run: str) -> list[dict[str, Any]]:
        answer = self.ui.ask("RunLogsQuery", {"runId": self.runs[run].run_id, "limit": 1000})
        assert answer["pipelineRunOrError"]["__typename"] == "Run"
        return list(answer["logsForRun"]["events"])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """One finished run of every job, and one failed run."""
    folder = tmp_path_factory.mktemp("ui")
    workspace = computed_workspace(folder)
    with (
        pytest.MonkeyPatch.context() as patch,
        ui_queries.instance(folder / "dagster") as instance,
    ):
        patch.setenv("LATENTGLOSS_CONFIG", str(folder / "latentgloss.toml"))
        apply(instance, changes(instance, workspace.registry))
        runs = {job: run(instance, job) for job in STAGES_OF_JOB}
        next((folder / "saes").rglob("sae.safetensors")).write_bytes(b"cut short")
        runs["failed"] = run(instance, "saes", SPARSIFY)
        assert {name: found.success for name, found in runs.items()} == {
            **dict.fromkeys(STAGES_OF_JOB, True),
            "failed": False,
        }
        with ui_queries.ui(instance, "definitions") as ui:
            stages = [stage.name for stage in STAGES_OF_JOB["saes"]]
            ui_queries.requested(ui, instance, BACKFILL, stages, instance.get_dynamic_partitions("sae"))
            yield Recorded(instance, ui, runs)


def run(instance: dg.DagsterInstance, job: str, *keys: str) -> dg.ExecuteInProcessResult:
    from definitions import defs

    chosen = keys or tuple(instance.get_dynamic_partitions(STAGES_OF_JOB[job][0].grain))
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags={**range_tags(chosen), "dagster/backfill": BACKFILL},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


@pytest.mark.parametrize("name", [*STAGES_OF_JOB, "failed"])
def test_the_log_of_every_run_loads(recorded: Recorded, name: str) -> None:
    found = recorded.events(name)
    logged = recorded.instance.all_logs(recorded.runs[name].run_id)
    assert len(found) == len(logged)
    outputs = [event for event in found if event["__typename"] == "ExecutionStepOutputEvent"]
    if name == "failed":
        failure = next(event for event in found if event["__typename"] == "ExecutionStepFailureEvent")
        assert SPARSIFY in failure["error"]["message"] or SPARSIFY in failure["message"]
    else:
        stages = {stage.name for stage in STAGES_OF_JOB[name]}
        assert {event["outputName"] for event in outputs} >= stages
        assert all(event["typeCheck"]["success"] for event in outputs)
        made = [event for event in found if event["__typename"] == "MaterializationEvent"]
        assert {event["assetKey"]["path"][0] for event in made} == stages
        assert all(any(entry["label"] == "picture" for entry in event["metadataEntries"]) for event in made)
    first = recorded.ui.ask("PipelineRunLogsSubscription", {"runId": recorded.runs[name].run_id})
    assert len(first["pipelineRunLogs"]["messages"]) == len(logged)


@pytest.mark.parametrize(
    ("name", "asset", "check"),
    [("saes", "detection_scores", "judgements_cover"), ("failed", "activation_cache", "most_latents_alive")],
)
def test_every_page_can_be_read(recorded: Recorded, name: str, asset: str, check: str) -> None:
    values = variables(asset, check, SPARSIFY, recorded.runs[name].run_id, "saes", BACKFILL)
    unasked, failed = set(), []
    for query in documents():
        send = filled(query, values)
        if send is None or query in UNASKED:
            unasked.add(query)
            continue
        try:
            recorded.ui.ask(query, send)
        except Exception as e:
            failed.append(f"{query}: {e}")
    assert not failed, "\n".join(failed)
    assert unasked <= UNASKED


def test_every_asset_can_be_read(recorded: Recorded) -> None:
    for stage in STAGES.values():
        key = {"path": [stage.name]}
        partitions = recorded.instance.get_dynamic_partitions(stage.grain)
        live = recorded.ui.ask("AssetGraphLiveQuery", {"assetKeys": [key]})["assetNodes"][0]
        counted = live["partitionStats"]
        assert counted["numMaterialized"] + counted["numFailed"] == len(partitions), stage.name
        checks = recorded.ui.ask("AssetChecksQuery", {"assetKey": key})["assetNodeOrError"]["assetChecksOrError"]
        for check in checks["checks"]:
            statuses = [keys for status, keys in check["partitionStatuses"].items() if status != "__typename"]
            assert sorted(key for keys in statuses for key in keys) == sorted(partitions)
        send = {"assetKey": key, "limit": 100, "eventTypeSelectors": ["MATERIALIZATION", "FAILED_TO_MATERIALIZE"]}
        events = recorded.ui.ask("RecentAssetEventsQuery", send)
        assert SPARSIFY in str(events) or stage.grain == "model"
