"""assets/: one run for many SAEs, what survives a failure, what is skipped, and what automation asks for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest
import ui_queries
from dagster._core.execution.backfill import BulkActionStatus
from llm_clients import ask, client_of
from llm_server import Fault, Server
from tiny_dagster import JUDGED, SAES, Tiny, tiny

from assets import pictures
from assets.partitions import changes, range_tags, ranges
from assets.records import SKIPPED, recorded, report
from assets.stage_asset import SAE_FILES
from latentgloss.pipeline.graph import STAGES, downstream

pytestmark = [  # Dagster's own calls
    pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated"),
    pytest.mark.filterwarnings("ignore:Parameter `include_sources` of function"),
]
workspace = pytest.fixture(tiny)


def statuses(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], str]:
    return {
        (e.asset_key.to_user_string(), str(e.partition)): str(e.materialization.metadata["status"].value)
        for e in result.all_events
        if e.is_step_materialization and e.asset_key is not None
    }


def test_one_run_takes_all_stages_of_all_saes(workspace: Tiny) -> None:
    workspace.run("tokenized_corpus", "m1", "m2")
    result = workspace.run("saes", SAES[0], SAES[-1])
    assert result.success
    stages = [s.name for s in STAGES.values() if s.grain == "sae"]
    assert statuses(result) == {(stage, key): "computed" for stage in stages for key in SAES}


def test_a_second_run_computes_nothing_and_records_that(workspace: Tiny) -> None:
    workspace.everything()
    workspace.ran.clear()
    assert set(statuses(workspace.run("saes", SAES[0], SAES[-1])).values()) == {"reused"}
    assert workspace.ran == []


def test_finished_partitions_survive_a_failure_and_the_failed_are_named(workspace: Tiny) -> None:
    workspace.run("tokenized_corpus", "m1", "m2")
    workspace.run("resolved_saes", SAES[0], SAES[-1])
    workspace.broken.add(("activation_cache", SAES[1]))
    result = workspace.run("activation_cache", SAES[0], SAES[-1])
    assert not result.success
    assert workspace.instance.get_materialized_partitions(dg.AssetKey("activation_cache")) == {SAES[0], SAES[2]}
    failure = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    assert failure.user_failure_data is not None
    message = failure.user_failure_data.description or ""
    assert SAES[1] in message and "weights are cut short" in message and SAES[0] not in message
    assert recorded(workspace.instance, "activation_cache", SAES[1]) is None


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", "\n{}", "{}"])
def test_a_key_reaches_neither_the_event_log_nor_the_store_nor_the_terminal(
    workspace: Tiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], around: str
) -> None:
    """Mounted secrets end in a line break. The server quotes the key that it refuses."""
    key = "k3y/of-a+vendor"
    monkeypatch.setenv("SOME_KEY", around.format(key))
    said = f"Incorrect key provided: {key}"

    def asks() -> None:
        with (
            Server(lambda body: Fault(status=401, message=said)) as server,
            client_of(server, workspace.folder / "asked", api_key_env="SOME_KEY", patience_s=0.1) as client,
        ):
            list(client.complete([ask(1)]))

    monkeypatch.setattr(workspace, "fail", asks)
    workspace.broken.add(("tokenized_corpus", "m1"))
    run = workspace.run("tokenized_corpus", "m1")
    assert not run.success
    log = "".join(dg.serialize_value(entry) for entry in workspace.instance.all_logs(run.run_id))
    files = [path.read_text(errors="replace") for path in workspace.folder.rglob("*") if path.is_file()]
    shown = "".join(capfd.readouterr())
    for text, name in ((log, "event log"), ("".join(files), "files"), (shown, "terminal")):
        assert key not in text and key.replace("/", "\\/") not in text, name
        assert "Incorrect key provided" in text, f"the {name} says what is wrong"


@pytest.mark.parametrize("asking", [False, True])
def test_scorers_share_a_step_and_each_is_an_asset_of_its_own(workspace: Tiny, asking: bool) -> None:
    if asking:  # in threads of their own
        text = "".join(f'[{name}]\njudges = ["llm:model"]\n' for name in ("intruder", "detection", "fuzzing"))
        (workspace.folder / "latentgloss.toml").write_text(text)
    workspace.run("tokenized_corpus", "m1", "m2")
    for stage in [s.name for s in STAGES.values() if s.grain == "sae" and s.noun != "scores"][:6]:
        assert workspace.run(stage, SAES[0], SAES[-1]).success
    alone = workspace.run("fuzzing_scores", SAES[0])
    assert statuses(alone) == {("fuzzing_scores", SAES[0]): "computed"}
    assert {e.step_key for e in alone.all_events if e.is_step_materialization} == {"judged_scores"}
    workspace.broken.add(("detection_scores", SAES[1]))
    result = workspace.run("saes", SAES[0], SAES[-1])
    finished = {stage: workspace.instance.get_materialized_partitions(dg.AssetKey(stage)) for stage in JUDGED}
    assert finished == {**{stage: set(SAES) for stage in JUDGED}, "detection_scores": {SAES[0], SAES[2]}}
    assert workspace.ran.count(("fuzzing_scores", SAES[0])) == 1
    failure = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    assert failure.user_failure_data is not None
    message = failure.user_failure_data.description or ""
    assert f"detection_scores of {SAES[1]}" in message and "fuzzing" not in message


def test_checks_of_a_shared_step_can_be_made_alone_of_what_there_is(workspace: Tiny) -> None:
    workspace.run("tokenized_corpus", "m1", "m2")
    nothing = workspace.run("checks", SAES[0])
    assert not nothing.success and not nothing.get_asset_check_evaluations()
    assert workspace.run("saes", SAES[0]).success
    workspace.ran.clear()
    result = workspace.run("checks", SAES[0])
    (found,) = result.get_asset_check_evaluations()
    made = workspace.workspace.store.current("fuzzing_scores", SAES[0])
    assert result.success and found.passed and found.metadata["version"].value == made.key
    assert (found.asset_key, found.partition) == (dg.AssetKey("fuzzing_scores"), SAES[0])
    assert workspace.ran == [] and not statuses(result), "and nothing is computed"


def test_a_bridge_skips_what_has_no_input_yet_and_takes_the_rest(workspace: Tiny) -> None:
    workspace.run("tokenized_corpus", "m2")
    result = workspace.run("resolved_saes", SAES[0], SAES[-1])
    assert result.success
    assert set(statuses(result)) == {("resolved_saes", SAES[2])}


def test_a_backfill_over_partitions_that_are_skipped_ends_as_complete(tmp_path: Path) -> None:
    """m1 has no corpus: its SAEs are skipped on purpose, and so is what reads them."""
    with ui_queries.instance(tmp_path / "dagster") as instance:
        world = Tiny(tmp_path / "world", instance)
        world.run("tokenized_corpus", "m2")
        module = ModuleType("definitions_of_a_tiny_world")
        known = world.definitions  # without the jobs that are named like assets, which no repository may have
        module.defs = dg.Definitions(assets=known.assets, resources=known.resources, executor=known.executor)  # type: ignore[attr-defined]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module.__name__, module)
            with ui_queries.ui(instance, module.__name__) as ui:
                done = ui_queries.backfill(ui, instance, ["resolved_saes", "activation_cache"], list(SAES))
        assert done.status == BulkActionStatus.COMPLETED_SUCCESS
        for stage in ("resolved_saes", "activation_cache"):
            assert [recorded(instance, stage, key) == SKIPPED for key in SAES] == [True, True, False]
        # What automation asks for below is skipped as well, once; content that comes later is a change.
        assert world.run("sampled_contexts", SAES[0]).success
        assert recorded(instance, "sampled_contexts", SAES[0]) == SKIPPED
        world.run("tokenized_corpus", "m1")
        assert world.run("resolved_saes", SAES[0]).success
        assert recorded(instance, "resolved_saes", SAES[0]) != SKIPPED


def test_without_a_backfill_a_skipped_partition_has_no_record(workspace: Tiny) -> None:
    assert workspace.run("resolved_saes", SAES[0]).success
    assert recorded(workspace.instance, "resolved_saes", SAES[0]) is None


def test_within_a_grain_a_missing_input_is_a_failure(workspace: Tiny) -> None:
    assert not workspace.run("activation_cache", SAES[0]).success


# -- partitions -------------------------------------------------------------------------------------------------


def test_partitions_follow_the_registry(workspace: Tiny) -> None:
    path = workspace.declare("m1/layers.1/c")
    workspace.sync()
    assert workspace.instance.get_dynamic_partitions("sae") == [*SAES, "m1/layers.1/c"]
    path.unlink()
    workspace.sync()
    assert workspace.instance.get_dynamic_partitions("sae") == list(SAES)


def test_nothing_is_removed_while_a_file_cannot_be_read(workspace: Tiny) -> None:
    path = workspace.declare(SAES[0])
    path.write_text(path.read_text().replace("format", "fromat"))
    assert changes(workspace.instance, workspace.workspace.registry) == []


def test_a_name_that_leaves_its_folder_never_becomes_a_partition(workspace: Tiny) -> None:
    path = workspace.declare("m1/layers.1/c")
    path.write_text(path.read_text().replace('"c"', '"../c"'))
    registry = workspace.workspace.registry
    assert path in registry.problems
    assert changes(workspace.instance, registry) == []


def test_ranges_are_contiguous_in_dagsters_order(workspace: Tiny) -> None:
    assert ranges(workspace.instance, "sae", [SAES[2], SAES[0]]) == [[SAES[0]], [SAES[2]]]
    assert ranges(workspace.instance, "sae", [SAES[1], SAES[0]]) == [[SAES[0], SAES[1]]]
    assert range_tags(SAES) == {
        "dagster/asset_partition_range_start": SAES[0],
        "dagster/asset_partition_range_end": SAES[2],
    }


# -- automation -------------------------------------------------------------------------------------------------


@contextmanager
def remembered_partitions(instance: dg.DagsterInstance) -> Iterator[dg.DagsterInstance]:
    """Reads the partitions once: none is added meanwhile, and Dagster asks for them a thousand times per tick."""
    read = instance.get_dynamic_partitions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance, "get_dynamic_partitions", cache(read))
        yield instance


class Daemon:
    """Ticks of automation, with each request carried out before the next tick, as the daemon does."""

    def __init__(self, workspace: Tiny) -> None:
        self.workspace, self.cursor = workspace, None

    def tick(self) -> list[tuple[str, str]]:
        with remembered_partitions(self.workspace.instance) as instance:
            result = dg.evaluate_automation_conditions(self.workspace.definitions, instance, cursor=self.cursor)
        self.cursor = result.cursor
        asked = []
        for stage in STAGES:
            keys = [str(key) for key in result.get_requested_partitions(dg.AssetKey(stage))]
            asked += [(stage, key) for key in sorted(keys)]
            for together in ranges(self.workspace.instance, STAGES[stage].grain, keys):
                self.workspace.run(stage, together[0], together[-1])
        return asked

    def settle(self) -> list[tuple[str, str]]:
        asked, quiet = [], 0
        for _ in range(40):
            now = self.tick()
            asked += now
            quiet = 0 if now else quiet + 1
            if quiet == 2:
                return asked
        raise AssertionError(f"automation never comes to rest; last asked for {asked[-20:]}")


SAE_STAGES = [s.name for s in STAGES.values() if s.grain == "sae"]
ABOVE = [name for name in downstream("resolved_saes") if STAGES[name].grain == "model"]
"""What reads the SAEs of a model."""


def test_automation_runs_an_empty_store_to_the_end_and_then_rests(workspace: Tiny) -> None:
    Daemon(workspace).settle()
    assert {s.state for s in workspace.workspace.states()} == {"fresh"}
    assert len(workspace.ran) == len(set(workspace.ran)), "something was computed twice"


def test_a_new_sae_runs_its_chain_and_nothing_else(workspace: Tiny) -> None:
    workspace.everything()
    daemon = Daemon(workspace)
    assert daemon.settle() == []
    workspace.ran.clear()
    workspace.declare("m1/layers.1/new")
    workspace.sync()
    asked = daemon.settle()
    assert workspace.ran == [(stage, "m1/layers.1/new") for stage in SAE_STAGES] + [(s, "m1") for s in ABOVE]
    assert {key for stage, key in asked if stage in SAE_STAGES} == {"m1/layers.1/new"}


def test_changed_content_travels_and_stops_where_it_ends(workspace: Tiny) -> None:
    workspace.everything()
    daemon = Daemon(workspace)
    daemon.settle()
    workspace.ran.clear()
    workspace.external({"m2": 1})
    workspace.run("tokenized_corpus", "m2")
    daemon.settle()
    changed = ["tokenized_corpus", *downstream("tokenized_corpus")]
    # Not in one order: context_embeddings runs beside the SAEs' chain.
    assert sorted(workspace.ran) == sorted((s, "m2" if STAGES[s].grain == "model" else SAES[2]) for s in changed)
    workspace.ran.clear()
    workspace.run("activation_cache", SAES[0])
    assert {stage for stage, _ in daemon.settle()} == set(), "identical content asked for something downstream"


def test_new_weights_run_that_saes_chain(workspace: Tiny) -> None:
    for sae in SAES:
        workspace.instance.report_runless_asset_event(report(SAE_FILES, sae, "1", {}))
    workspace.everything()
    daemon = Daemon(workspace)
    assert daemon.settle() == []
    workspace.ran.clear()
    for sae in SAES:
        workspace.instance.report_runless_asset_event(report(SAE_FILES, sae, "1", {}))
    assert daemon.settle() == [], "the same version again is no news"
    workspace.external({SAES[1]: 1})
    workspace.instance.report_runless_asset_event(report(SAE_FILES, SAES[1], "2", {}))
    daemon.settle()
    assert workspace.ran == [(stage, SAES[1]) for stage in SAE_STAGES] + [(s, "m1") for s in ABOVE]


def test_one_models_missing_corpus_holds_up_no_other(workspace: Tiny) -> None:
    workspace.broken.add(("tokenized_corpus", "m1"))
    Daemon(workspace).settle()
    fresh = {(s.asset, s.partition) for s in workspace.workspace.states() if s.state == "fresh"}
    assert ("detection_scores", SAES[2]) in fresh and ("score_report", "m2") in fresh
    assert not [key for _, key in fresh if key.startswith("m1")]


def test_a_failed_sae_is_not_asked_for_again_and_holds_up_no_other(workspace: Tiny) -> None:
    workspace.broken.add(("activation_cache", SAES[1]))
    Daemon(workspace).settle()
    assert workspace.ran.count(("activation_cache", SAES[1])) == 1
    assert recorded(workspace.instance, "detection_scores", SAES[0]) is not None


# -- pictures ---------------------------------------------------------------------------------------------------


def test_text_from_the_corpus_stays_text() -> None:
    cell = pictures._cell("a|b\n<script>alert(1)</script> ![x](http://y) `c`")
    assert not set("|<>`[]()!\n") & set(cell.replace("&lt;", "").replace("&gt;", "")), cell


def test_bars_and_steps_draw_every_value() -> None:
    import numpy as np

    assert pictures.bars({"one": 1, "two": 2, "<three>": 0}, "n").count("<rect") == 4
    drawn = pictures.steps({"a": np.array([1, 2]), "b": np.array([0, 0])}, np.array([0.0, 0.5, 1.0]), "x")
    assert drawn.count("<polyline") == 2 and "nan" not in drawn
