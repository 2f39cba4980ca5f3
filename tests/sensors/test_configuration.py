"""sensors/configuration.py: what is wrong with registry or settings fails a check and a tick, until it is mended."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from tiny_dagster import SAES, Tiny, TinyResource, tiny

from assets.configuration import REGISTRY, SETTINGS, registry_can_be_read
from assets.records import latest_problems
from resources.workspace import loaded_settings
from sensors.configuration import ConfigurationProblem, configuration_sensor

pytestmark = pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated")  # Dagster's own
workspace = pytest.fixture(tiny)


@pytest.fixture(autouse=True)
def settings(workspace: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The settings file of the workspace, loaded by this process."""
    path = workspace.folder / "latentgloss.toml"
    monkeypatch.setenv("LATENTGLOSS_CONFIG", str(path))
    loaded_settings.cache_clear()
    loaded_settings()
    yield path
    loaded_settings.cache_clear()


def resource(workspace: Tiny) -> TinyResource:
    return TinyResource(config=str(workspace.folder / "latentgloss.toml"))


def message(workspace: Tiny) -> str:
    """What the tick fails with; empty if it does not fail."""
    with dg.build_sensor_context(instance=workspace.instance, resources={"workspace": resource(workspace)}) as context:
        try:
            assert isinstance(configuration_sensor(context), dg.SkipReason)
        except ConfigurationProblem as e:
            return str(e)
    return ""


def results(workspace: Tiny) -> int:
    key = dg.AssetCheckKey(dg.AssetKey("sae_files"), REGISTRY)
    return len(workspace.instance.event_log_storage.get_asset_check_execution_history(key, limit=100))


@pytest.mark.parametrize(
    ("folder", "text", "named"),
    [
        ("saes", "[broken", "odd.toml"),
        ("models", 'name = "odd"\nsorce = "path:x"\n', "'sorce'"),
        ("embedders", 'name = "odd"\n', "odd.toml"),
    ],
)
def test_a_broken_file_fails_the_check_and_the_tick_until_it_is_gone(
    workspace: Tiny, folder: str, text: str, named: str
) -> None:
    assert message(workspace) == "" and latest_problems(workspace.instance, "sae_files", REGISTRY) == []
    path = workspace.folder / "registry" / folder / "odd.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert named in message(workspace) and "odd.toml" in message(workspace)
    (found,) = latest_problems(workspace.instance, "sae_files", REGISTRY) or []
    assert named in found
    assert results(workspace) == 2, "a result for each change, not for each tick"
    path.unlink()
    assert message(workspace) == "" and latest_problems(workspace.instance, "sae_files", REGISTRY) == []


def test_it_says_which_partitions_a_broken_file_holds_back(workspace: Tiny) -> None:
    gone = workspace.declare(SAES[1])
    gone.unlink()
    broken = workspace.declare(SAES[0])
    text = broken.read_text()
    broken.write_text(text.replace("hookpoint", "hokpoint"))
    workspace.sync()
    assert workspace.instance.get_dynamic_partitions("sae") == list(SAES)
    assert SAES[1] in message(workspace) and "not removed" in message(workspace)
    broken.write_text(text)
    workspace.sync()
    assert workspace.instance.get_dynamic_partitions("sae") == [SAES[0], SAES[2]]
    assert message(workspace) == ""


def test_a_broken_file_of_another_kind_holds_nothing_back(workspace: Tiny) -> None:
    other = workspace.folder / "registry/language_models/odd.toml"
    other.parent.mkdir()
    other.write_text("[broken")
    workspace.declare(SAES[1]).unlink()
    workspace.sync()
    assert workspace.instance.get_dynamic_partitions("sae") == [SAES[0], SAES[2]]
    assert "odd.toml" in message(workspace) and "not removed" not in message(workspace)


def test_settings_that_need_a_reload_fail(workspace: Tiny, settings: Path) -> None:
    settings.write_text("[negatives]\ntest = 50\n")
    assert "sampled_negatives" in message(workspace) and "reload" in message(workspace)
    assert latest_problems(workspace.instance, "sae_files", SETTINGS)
    assert latest_problems(workspace.instance, "sae_files", REGISTRY) == []
    settings.write_text("")
    assert message(workspace) == "" and latest_problems(workspace.instance, "sae_files", SETTINGS) == []


def test_settings_that_cannot_be_read_fail_with_the_reason(workspace: Tiny, settings: Path) -> None:
    settings.write_text("[negatives\n")
    assert "latentgloss.toml" in message(workspace)
    assert latest_problems(workspace.instance, "sae_files", SETTINGS)


def test_the_check_can_be_executed_by_hand(workspace: Tiny) -> None:
    (workspace.folder / "registry/saes/odd.toml").write_text("")
    result = registry_can_be_read(dg.build_asset_check_context(instance=workspace.instance), resource(workspace))
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed and "odd.toml" in str(result.metadata["problems"])
