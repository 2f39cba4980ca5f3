"""assets/records.py: what Dagster is told must be what Dagster itself would have recorded."""

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from tiny_dagster import SAES, Tiny, tiny

from assets.records import recorded
from latentgloss.pipeline.graph import STAGES

pytestmark = [  # Dagster's own calls
    pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated"),
    pytest.mark.filterwarnings("ignore:Parameter `include_sources` of function"),
]
workspace = pytest.fixture(tiny)


def status(tiny: Tiny, asset: str, partition: str) -> StaleStatus:
    """What the Dagster UI would show."""
    graph = tiny.definitions.get_repository_def().asset_graph
    resolver = CachingStaleStatusResolver(tiny.instance, graph, LoadingContextForTest(tiny.instance))
    return resolver.get_status(dg.AssetKey(asset), partition)


def record(tiny: Tiny, asset: str, partition: str) -> dg.AssetMaterialization:
    records = tiny.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition]), limit=1
    ).records
    found = records[0].asset_materialization
    assert found is not None
    return found


def test_after_everything_ran_dagster_calls_everything_fresh(workspace: Tiny) -> None:
    workspace.everything()
    for stage in STAGES.values():
        for partition in ("m1", "m2") if stage.grain == "model" else SAES:
            assert status(workspace, stage.name, partition) == StaleStatus.FRESH, (stage.name, partition)
            current = workspace.workspace.store.current(stage.name, partition)
            assert current is not None
            assert recorded(workspace.instance, stage.name, partition) == current.manifest.data_version


def test_tags_are_those_dagster_writes_itself(workspace: Tiny) -> None:
    """The same graph, recorded by Dagster: the same tags, but for the hash of what an upstream holds."""
    workspace.everything()
    ours = record(workspace, "sampled_contexts", SAES[1]).tags or {}

    @dg.asset(
        partitions_def=workspace.assets[2].partitions_def,
        deps=["resolved_saes", "activation_cache"],
        code_version=ours["dagster/code_version"],
    )
    def sampled_contexts() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion(ours["dagster/data_version"]))

    above = {dg.AssetKey("resolved_saes"), dg.AssetKey("activation_cache")}
    upstream = [a for a in workspace.assets if above & set(a.keys)]
    dg.materialize(
        [*upstream, sampled_contexts],
        selection=[sampled_contexts],
        instance=workspace.instance,
        partition_key=SAES[1],
        resources=workspace.definitions.resources,
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    theirs = record(workspace, "sampled_contexts", SAES[1]).tags or {}
    assert {k: v for k, v in theirs.items() if k.startswith("dagster/")} == ours


def test_changed_content_upstream_is_stale_in_dagster_and_identical_content_is_not(workspace: Tiny) -> None:
    workspace.everything()
    assert workspace.run("activation_cache", SAES[0], SAES[2]).success  # reused: same content, newer record
    assert status(workspace, "sampled_contexts", SAES[0]) == StaleStatus.FRESH
    workspace.external({SAES[0]: 1})
    assert workspace.run("resolved_saes", SAES[0], SAES[2]).success
    assert status(workspace, "activation_cache", SAES[0]) == StaleStatus.STALE
    assert status(workspace, "activation_cache", SAES[1]) == StaleStatus.FRESH


def test_upstream_written_during_a_run_counts_as_new(workspace: Tiny) -> None:
    """Pointers are taken before anything is read, so a version that lands meanwhile is not taken for one that was."""
    workspace.everything()
    before = (record(workspace, "explanations", SAES[0]).tags or {})["dagster/input_event_pointer/resolved_saes"]
    workspace.run("resolved_saes", SAES[0])
    assert (record(workspace, "explanations", SAES[0]).tags or {})[
        "dagster/input_event_pointer/resolved_saes"
    ] == before


def test_exact_upstream_partitions_are_in_the_metadata(workspace: Tiny) -> None:
    workspace.everything()
    pins = record(workspace, "score_report", "m1").metadata["upstream partitions"].value
    assert {pin["partition"] for pin in pins} == set(SAES[:2])  # type: ignore[union-attr,index]
