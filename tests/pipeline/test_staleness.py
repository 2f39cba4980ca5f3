"""What a change makes stale: exactly what depends on it, down to the block, and nothing else."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import tiny

from assets import pictures
from latentgloss import schema
from latentgloss.pipeline.graph import STAGES, downstream
from latentgloss.workspace import Workspace
from latentgloss.workspace.search import open_index

if TYPE_CHECKING:
    from pathlib import Path

SAE, OTHER = tiny.SPARSIFY, tiny.SAELENS
LATENTWISE = ("sampled_contexts", "sampled_negatives", "explanations", "detection_scores", "fuzzing_scores")


LATENTS = [*range(0, 48, 4), *range(128, 192, 4), 280, 284]
"""Latents of `SAE` that are explained, in two blocks; few, because each change computes them again."""


def select(folder: Path, latents: list[int]) -> None:
    tiny.register(folder, SAE, "sparsify", extra=f"latents = {latents}\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which every stage has run once."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.tiny_workspace(folder)
    select(folder, LATENTS)
    outcomes = tiny.run_all(Workspace.open(folder / "latentgloss.toml"))
    assert not [o.error for o in outcomes if o.error]
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it, free to change."""
    target = tmp_path / "copy"
    shutil.copytree(finished, target)
    return target


def set_settings(folder: Path, old: str, new: str) -> None:
    path = folder / "latentgloss.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def add_settings(folder: Path, text: str) -> None:
    path = folder / "latentgloss.toml"
    path.write_text(path.read_text() + text)


def change_sae(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "saes" / "words" / "sae.safetensors"
    tensors = load_file(path)
    tensors["encoder.bias"] = tensors["encoder.bias"] + 0.01
    save_file(tensors, path)


def change_model(folder: Path) -> None:
    tiny.write_model(folder / "model", seed=2)


def change_corpus(folder: Path) -> None:
    tiny.write_corpus(folder / "corpus" / "documents.jsonl", tiny.documents(400, seed=9))


def one_more_explainer(folder: Path) -> None:
    names = '["pattern", "token_table", "null:pattern", "null:token_table"]'
    set_settings(folder, "nulls = 2", f"nulls = 2\nexplainers = {names}")


def one_more_latent(folder: Path) -> None:
    tiny.register(folder, OTHER, "saelens", extra="latents = {start = 0, stop = 25}\ncontrol = true\n")


CORPUS, CACHE = ["tokenized_corpus"], ["resolved_saes", "activation_cache"]
BOTH = (SAE, OTHER)


def of(stages: list[str], saes: tuple[str, ...] = BOTH) -> set[tuple[str, str]]:
    return {
        (stage, partition) for stage in stages for partition in (saes if STAGES[stage].grain == "sae" else ("tiny",))
    }


SCORES = ["detection_scores", "fuzzing_scores", "embedding_scores"]
ON_TEST = ["intruder_scores"]
"""Reads activating contexts of test, and no explanation."""
LATER = ["explanations", *SCORES, "explanation_embeddings", "search_index", "score_report"]
CHANGES: dict[str, tuple[Any, set[tuple[str, str]]]] = {
    "nothing": (lambda folder: None, set()),
    "batch size": (lambda f: set_settings(f, "batch_tokens = 2048", "batch_tokens = 512"), set()),
    "another place for the model cache": (
        lambda f: set_settings(f, 'model_cache = "cache"', 'model_cache = "c2"'),
        set(),
    ),
    "seed of the report": (lambda f: set_settings(f, "resamples = 200", "resamples = 201"), of(["score_report"])),
    "more test contexts": (
        lambda f: set_settings(f, "test = 30", "test = 32"),
        of(["sampled_contexts", *ON_TEST, *SCORES, "search_index", "score_report"]),
    ),
    "more explain contexts": (
        lambda f: set_settings(f, "explain = 60", "explain = 62"),
        of(["sampled_contexts", *LATER]),
    ),
    "seed of the negatives": (
        lambda f: set_settings(f, "[negatives]", "[negatives]\nseed = 5"),
        of(["sampled_negatives", *LATER]),
    ),
    "fewer rules": (lambda f: add_settings(f, "[explanations.pattern]\nrules = 2\n"), of(LATER)),
    "one more explainer": (
        lambda f: one_more_explainer(f),
        of(LATER),
    ),
    "precision of the cache": (
        lambda f: add_settings(f, '[activations]\nprecision = "float32"\n'),
        of(["activation_cache", "sampled_contexts", "sampled_negatives", *ON_TEST, *LATER]),
    ),
    "one SAE's weights": (
        change_sae,
        of([*CACHE, "sampled_contexts", "sampled_negatives", *ON_TEST, *LATER], (SAE,)),
    ),
    "the model": (change_model, of([*CACHE, "sampled_contexts", "sampled_negatives", *ON_TEST, *LATER])),
    "the corpus": (change_corpus, of(list(STAGES))),
    "the corpus recomputed to identical content": (
        lambda f: add_settings(f, "[corpus]\nnear_duplicate = 0.81\n"),
        of(CORPUS),
    ),
    "an SAE declared a control": (
        lambda f: tiny.register(f, SAE, "sparsify", extra=f"latents = {LATENTS}\ncontrol = true\n"),
        of(["score_report"]),
    ),
    "one more latent": (
        one_more_latent,
        of(["resolved_saes", "sampled_contexts", "sampled_negatives", *ON_TEST, *LATER], (OTHER,)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_recomputes_exactly_what_depends_on_it(folder, change):
    apply, expected = CHANGES[change]
    apply(folder)
    workspace = Workspace.open(folder / "latentgloss.toml")
    outcomes = tiny.run_all(workspace)
    assert not [o.error for o in outcomes if o.error]
    computed = {(o.stage, o.partition) for o in outcomes if o.status == "computed"}
    assert computed == expected
    assert all(s.state == "fresh" for s in workspace.states())


def test_status_names_what_changed_before_anything_runs(folder):
    set_settings(folder, "test = 30", "test = 32")
    states = {(s.asset, s.partition): s for s in Workspace.open(folder / "latentgloss.toml").states()}
    assert states["sampled_contexts", SAE].because == "settings.contexts.test: 30 -> 32"
    assert states["detection_scores", SAE].because.startswith("input ")
    assert states["activation_cache", SAE].state == "fresh"
    assert states["sampled_negatives", SAE].state == "fresh"


def blocks(folder: Path) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """(computed, reused) block names per latent-wise stage and SAE of a run."""
    workspace = Workspace.open(folder / "latentgloss.toml")
    seen: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for outcome in tiny.run_all(workspace):
        assert outcome.error is None
        if outcome.stage in LATENTWISE and outcome.status == "computed":
            seen[outcome.stage, outcome.partition] = outcome.blocks_computed, outcome.blocks_reused
    return seen


def test_one_more_explainer_computes_only_its_blocks(folder):
    one_more_explainer(folder)
    seen = blocks(folder)
    assert seen["explanations", SAE] == (4, 8)  # two blocks of latents; two explainers and two nulls were there
    assert seen["explanations", OTHER] == (2, 4)


def test_a_change_of_one_explainer_leaves_the_others_blocks_alone(tmp_path):
    folder = tmp_path
    tiny.computed_workspace(folder)  # with all latents, so that a changed text is in the nulls
    add_settings(folder, "[explanations.pattern]\nrules = 2\n")
    assert blocks(folder)["explanations", SAE] == (4, 4)  # pattern, and nulls in which it shows; the token table stays


def test_another_wording_of_one_explainer_recomputes_its_blocks_and_no_others(folder, monkeypatch):
    for module in ("explainer", "rules"):
        monkeypatch.setattr(f"latentgloss.explanations.explainers.pattern.{module}.VERSION", 99)
    states = {(s.asset, s.partition): s for s in Workspace.open(folder / "latentgloss.toml").states()}
    assert "external.explainers.pattern.version" in states["explanations", SAE].because
    assert states["sampled_contexts", SAE].state == "fresh"
    assert blocks(folder)["explanations", SAE] == (4, 4)  # no text is in the nulls of the second block


def test_one_latent_more_touches_only_its_block(folder):
    select(folder, [*LATENTS, 286])
    seen = blocks(folder)
    assert seen["sampled_contexts", SAE] == (1, 1)
    assert seen["sampled_negatives", SAE] == (1, 1)
    assert seen["explanations", SAE] == (4, 4)
    assert seen["detection_scores", SAE] == seen["fuzzing_scores", SAE] == (4, 4)


def test_going_back_finds_the_old_version(folder):
    set_settings(folder, "test = 30", "test = 32")
    tiny.run_all(Workspace.open(folder / "latentgloss.toml"))
    set_settings(folder, "test = 32", "test = 30")
    workspace = Workspace.open(folder / "latentgloss.toml")
    assert {o.status for o in tiny.run_all(workspace)} == {"reused"}
    assert all(s.state == "fresh" for s in workspace.states())


def test_downstream_follows_the_edges():
    assert downstream("sampled_negatives") == LATER
    assert downstream("tokenized_corpus") == [name for name in STAGES if name != "tokenized_corpus"]


def test_nothing_is_computed_from_weights_that_changed_since_they_were_resolved(folder):
    change_sae(folder)
    set_settings(folder, "[machine]", '[activations]\nprecision = "float32"\n[machine]')
    workspace = Workspace.open(folder / "latentgloss.toml")
    outcomes = {o.partition: o for o in tiny.run_all(workspace, ["activation_cache"])}
    assert outcomes[SAE].status == "failed"
    assert "changed since resolved_saes" in str(outcomes[SAE].error)
    assert outcomes[OTHER].status == "computed"
    assert not [o.error for o in tiny.run_all(workspace) if o.error]


def test_one_broken_sae_does_not_stop_the_others(tmp_path):
    workspace = tiny.tiny_workspace(tmp_path)
    (tmp_path / "saes" / "words" / "sae.safetensors").write_bytes(b"not a tensor")
    outcomes = tiny.run_all(workspace)
    failed = {o.partition for o in outcomes if o.status == "failed" and o.stage == "resolved_saes"}
    assert failed == {SAE}
    assert {o.partition for o in outcomes if o.stage == "detection_scores" and o.status == "computed"} == {OTHER}
    states = {(s.asset, s.partition): s for s in workspace.states()}
    assert states["resolved_saes", SAE].state == "failed"
    assert "safetensors" in states["resolved_saes", SAE].because
    assert states["score_report", "tiny"].state == "fresh"


@pytest.mark.parametrize(
    ("stage", "partition"),
    [("tokenized_corpus", "tiny"), ("resolved_saes", SAE), ("activation_cache", SAE), ("detection_scores", OTHER),
     ("score_report", "tiny"), ("search_index", "tiny")],
)  # fmt: skip
def test_a_version_whose_files_are_gone_is_stale_and_made_again(folder, stage, partition):
    workspace = Workspace.open(folder / "latentgloss.toml")
    version = workspace.store.current(stage, partition)
    name = sorted(version.manifest.files)[-1]
    (folder / "data" / version.key / name).unlink()
    (state,) = [s for s in workspace.states([partition]) if s.asset == stage]
    assert (state.state, state.because) == ("stale", f"file {name} is missing")
    outcomes = tiny.run_all(Workspace.open(folder / "latentgloss.toml"))
    assert not [o.error for o in outcomes if o.error]
    assert {(o.stage, o.partition) for o in outcomes if o.status == "computed"} == {(stage, partition)}
    after = Workspace.open(folder / "latentgloss.toml")
    assert {s.state for s in after.states()} == {"fresh"}
    repaired = after.store.current(stage, partition)
    assert repaired.manifest.data_version == version.manifest.data_version
    assert all(error is None for _, error in repaired.verify())


OVER_SAES = ["score_report", "search_index"]


def of_model(folder: Path) -> dict[str, str]:
    states = Workspace.open(folder / "latentgloss.toml").states(["tiny"])
    return {s.asset: s.state for s in states if s.asset in OVER_SAES}


def test_without_its_last_sae_a_model_has_an_empty_report_and_index(folder):
    files = {path: path.read_text() for path in (folder / "registry" / "saes").glob("*.toml")}
    before = Workspace.open(folder / "latentgloss.toml").store.current("score_report", "tiny")
    for path in files:
        path.unlink()
    assert of_model(folder) == dict.fromkeys(OVER_SAES, "stale")
    workspace = Workspace.open(folder / "latentgloss.toml")
    assert [o.status for o in tiny.run_all(workspace, OVER_SAES)] == ["computed", "computed"]
    assert of_model(folder) == dict.fromkeys(OVER_SAES, "fresh")
    report, index = (workspace.store.current(stage, "tiny") for stage in OVER_SAES)
    assert report.read(schema.REPORT).is_empty() and report.manifest.facts["partitions"] == []
    assert index.json("index.json")["rows"] == {} and open_index(workspace)[0].counts() == {}
    assert pictures.report(report) == "No SAE of this model has scores." and "no explanation" in pictures.indexed(index)
    for path, text in files.items():
        path.write_text(text)
    assert of_model(folder) == dict.fromkeys(OVER_SAES, "stale")
    workspace = Workspace.open(folder / "latentgloss.toml")
    assert not [o.error for o in tiny.run_all(workspace, OVER_SAES) if o.error]
    assert workspace.store.current("score_report", "tiny").key == before.key


def test_without_its_last_sae_that_has_scores_a_model_has_an_empty_report(folder):
    """The other SAE is still declared, but none of its stages has run."""
    for stage in STAGES.values():
        if stage.grain == "sae":
            shutil.rmtree(folder / "data" / stage.name / OTHER)
    assert not [o.error for o in tiny.run_all(Workspace.open(folder / "latentgloss.toml"), OVER_SAES) if o.error]
    (folder / "registry" / "saes" / "words.toml").unlink()
    assert of_model(folder) == dict.fromkeys(OVER_SAES, "stale")
    assert not [o.error for o in tiny.run_all(Workspace.open(folder / "latentgloss.toml"), OVER_SAES) if o.error]
    assert of_model(folder) == dict.fromkeys(OVER_SAES, "fresh")
    assert not [o.error for o in tiny.run_all(Workspace.open(folder / "latentgloss.toml")) if o.error]
    report = Workspace.open(folder / "latentgloss.toml").store.current("score_report", "tiny")
    assert report.manifest.facts["partitions"] == [OTHER]


def test_a_file_with_a_mistake_empties_nothing(folder):
    for path in (folder / "registry" / "saes").glob("*.toml"):
        path.write_text(path.read_text().replace("hookpoint", "hokpoint"))
    assert of_model(folder) == dict.fromkeys(OVER_SAES, "missing")


def test_a_model_that_never_had_an_sae_has_no_report(tmp_path):
    workspace = tiny.tiny_workspace(tmp_path)
    for path in (tmp_path / "registry" / "saes").glob("*.toml"):
        path.unlink()
    assert of_model(tmp_path) == dict.fromkeys(OVER_SAES, "missing")
    assert {o.status for o in tiny.run_all(workspace, OVER_SAES)} == {"failed"}
