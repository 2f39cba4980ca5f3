"""jobs/refresh.py: the nightly refresh asks for exactly what is not fresh."""

import pytest
from tiny_dagster import SAES, Tiny, tiny

from jobs.jobs import STAGES_OF_JOB
from jobs.refresh import runs
from latentgloss.pipeline.graph import STAGES, downstream

pytestmark = pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated")  # Dagster's own
workspace = pytest.fixture(tiny)


def wanted(workspace: Tiny) -> dict[str, list[tuple[list[str], list[str]]]]:
    states = workspace.workspace.states()
    return {job: runs(workspace.instance, job, states) for job in STAGES_OF_JOB}


def test_every_stage_is_in_one_job() -> None:
    assert sorted(s.name for stages in STAGES_OF_JOB.values() for s in stages) == sorted(STAGES)


def test_an_empty_store_takes_one_run_per_job(workspace: Tiny) -> None:
    for job, stages in STAGES_OF_JOB.items():
        keys = ["m1", "m2"] if stages[0].grain == "model" else list(SAES)
        assert wanted(workspace)[job] == [([s.name for s in stages], keys)]


def test_nothing_is_asked_for_when_all_is_fresh(workspace: Tiny) -> None:
    workspace.everything()
    assert set(map(len, wanted(workspace).values())) == {0}


def test_what_automation_did_not_see_is_found(workspace: Tiny) -> None:
    workspace.everything()
    workspace.external({SAES[1]: 1})  # no event says so
    chain = [s.name for s in STAGES_OF_JOB["saes"]]
    assert chain == ["resolved_saes", *(s for s in downstream("resolved_saes") if s in chain)]
    assert wanted(workspace) == {
        "corpora": [],
        "saes": [(chain, [SAES[1]])],
        "reports": [(["score_report"], ["m1"])],
        "context_vectors": [],
        "explanation_vectors": [(["explanation_embeddings"], [SAES[1]])],
        "search": [(["search_index"], ["m1"])],
    }


def test_a_key_that_is_no_partition_yet_is_left_to_the_sensor(workspace: Tiny) -> None:
    workspace.everything()
    workspace.declare("m1/layers.1/new")
    found = wanted(workspace)
    assert found["saes"] == []
