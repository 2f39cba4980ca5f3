"""sensors/registry.py: a file becomes a partition, weights become versions, mistakes become messages."""

import json
import logging
from pathlib import Path

import dagster as dg
import pytest
from tiny_dagster import SAES, Tiny, TinyResource

from latentgloss.workspace import Workspace
from resources import WorkspaceResource
from resources.workspace import changed_since_loaded, loaded_settings
from sensors.registry import read_cursor, registry_sensor

pytestmark = pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated")  # Dagster's own


def tick(workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    resource = WorkspaceResource(config=str(workspace.settings.folder / "latentgloss.toml"))
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"workspace": resource}) as context:
        result = registry_sensor(context)
    assert isinstance(result, dg.SensorResult)
    for request in result.dynamic_partitions_requests or []:
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        else:
            for key in request.partition_keys:
                instance.delete_dynamic_partition(request.partitions_def_name, key)
    return result


def a_sae_file(workspace: Workspace) -> Path:
    return sorted((workspace.settings.registry_root / "saes").rglob("*.toml"))[0]


def test_first_tick_declares_everything_and_the_second_is_quiet(tiny_workspace: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(tiny_workspace, instance)
        assert instance.get_dynamic_partitions("sae") == sorted(tiny_workspace.registry.saes)
        assert instance.get_dynamic_partitions("model") == sorted(tiny_workspace.registry.models)
        assert {e.partition for e in first.asset_events} == set(tiny_workspace.registry.saes)
        assert not first.run_requests
        second = tick(tiny_workspace, instance, first.cursor)
        assert not second.asset_events and not second.dynamic_partitions_requests
        assert second.cursor == first.cursor


def test_changed_weights_are_reported_for_that_sae_only(tiny_workspace: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(tiny_workspace, instance)
        sae = next(iter(tiny_workspace.registry.saes.values()))
        weights = next(sae.path.glob("*.safetensors"))
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        again = tick(tiny_workspace, instance, first.cursor)
        assert [e.partition for e in again.asset_events] == [sae.partition]


def test_a_file_with_a_mistake_is_named_and_stops_no_other(
    tiny_workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    path = a_sae_file(tiny_workspace)
    broken = path.with_name("broken.toml")
    broken.write_text(path.read_text().replace("hookpoint", "hokpoint"))
    with dg.DagsterInstance.ephemeral() as instance, caplog.at_level(logging.INFO):
        result = tick(tiny_workspace, instance)
        assert instance.get_dynamic_partitions("sae") == sorted(tiny_workspace.registry.saes)
        quiet = tick(tiny_workspace, instance, result.cursor)
    assert quiet.skip_reason is not None
    message = quiet.skip_reason.skip_message or ""
    assert "broken.toml" in message and "'hookpoint'" in message


def test_missing_weights_are_named_and_stop_no_other(tiny_workspace: Workspace) -> None:
    sae, *others = tiny_workspace.registry.saes.values()
    for file in sae.path.glob("*.safetensors"):
        file.unlink()
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(tiny_workspace, instance)
        assert {e.partition for e in first.asset_events} == {o.partition for o in others}
        quiet = tick(tiny_workspace, instance, first.cursor)
        assert quiet.skip_reason is not None
        assert sae.partition in (quiet.skip_reason.skip_message or "")


def test_a_removed_file_removes_its_partition(tiny_workspace: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(tiny_workspace, instance)
        a_sae_file(tiny_workspace).unlink()
        second = tick(tiny_workspace, instance, first.cursor)
        left = sorted(Workspace.open(tiny_workspace.settings.folder / "latentgloss.toml").registry.saes)
        assert instance.get_dynamic_partitions("sae") == left
        assert sorted(read_cursor(second.cursor)) == left


def test_a_removed_sae_leaves_report_and_index(tmp_path: Path) -> None:
    """Only those of its model, and only what was made; what automation sees by itself is not asked for here."""
    with dg.DagsterInstance.ephemeral() as instance:
        world = Tiny(tmp_path, instance)
        first, second, other = SAES
        world.everything()
        world.declare(first).unlink()
        found = [tick_of(world) for _ in range(2)]
        assert found == [[("reports", ["score_report"], "m1"), ("search", ["search_index"], "m1")], []]
        assert instance.get_dynamic_partitions("sae") == [second, other]
        for job in ("score_report", "search_index"):
            assert world.run(job, "m1").success
        report = world.workspace.store.current("score_report", "m1")
        assert report is not None and {pin["partition"] for pin in report.manifest.inputs} == {second}
        assert all(s.state == "fresh" for s in world.workspace.states() if s.asset in ("score_report", "search_index"))


def test_the_last_sae_of_a_model_leaves_them_too(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        world = Tiny(tmp_path, instance)
        world.everything()
        path = world.declare(SAES[2])
        declared = path.read_text()
        path.unlink()
        found = [tick_of(world) for _ in range(2)]
        assert found == [[("reports", ["score_report"], "m2"), ("search", ["search_index"], "m2")], []]
        for job in ("score_report", "search_index"):
            assert world.run(job, "m2").success
            made = world.workspace.store.current(job, "m2")
            assert made is not None and made.manifest.inputs == []
        assert {s.state for s in world.workspace.states()} == {"fresh"}
        path.write_text(declared)
        assert {s.asset for s in world.workspace.states() if s.state != "fresh"} == {"score_report", "search_index"}


def tick_of(world: Tiny) -> list[tuple[str | None, list[str], str]]:
    """A tick over a tiny world: the requested (job, stages, first partition)."""
    resource = TinyResource(config=str(world.folder / "latentgloss.toml"))
    with dg.build_sensor_context(instance=world.instance, resources={"workspace": resource}) as context:
        result = registry_sensor(context)
    assert isinstance(result, dg.SensorResult)
    world.sync()
    return [
        (
            r.job_name,
            [key.to_user_string() for key in r.asset_selection or ()],
            r.tags["dagster/asset_partition_range_start"],
        )
        for r in result.run_requests or ()
    ]


def test_a_cursor_of_another_layout_starts_over() -> None:
    assert read_cursor(None) == {}
    assert read_cursor(json.dumps({"version": 0, "sae_files": {"a": "b"}})) == {}
    assert read_cursor(json.dumps({"version": 1, "sae_files": {"a": "b"}})) == {"a": "b"}


def test_changed_settings_ask_for_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latentgloss.toml"
    path.write_text("")
    monkeypatch.setenv("LATENTGLOSS_CONFIG", str(path))
    loaded_settings.cache_clear()
    try:
        assert changed_since_loaded() == []
        path.write_text("[contexts]\ntest = 50\n")
        assert changed_since_loaded() == ["sampled_contexts"]
        path.write_text("[machine]\nbatch_tokens = 512\n")
        assert changed_since_loaded() == []
    finally:
        loaded_settings.cache_clear()
