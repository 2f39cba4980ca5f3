"""Stages with the judge of labels: what they store, what they reuse, and what makes them compute again."""

from __future__ import annotations

import shutil

import polars as pl
import pytest
import tiny

from latentgloss import schema
from latentgloss.pipeline.graph import STAGES
from latentgloss.scores.judges.labels import fitting, opening
from latentgloss.workspace import Workspace
from latentgloss.workspace.preflight import problems

SAE = tiny.SPARSIFY
LATENTS = [*range(0, 64, 4), *range(128, 192, 4)]
BEFORE = ("resolved_saes", "sampled_contexts", "sampled_negatives", "explanations")
SCORES = ("detection_scores", "fuzzing_scores")
JUDGED = tiny.WORLD + '[detection]\njudges = ["executed", "embedder:tiny"]\n[fuzzing]\njudges = ["embedder:tiny"]\n'


def select(folder, latents):
    tiny.register(folder, SAE, "sparsify", extra=f"latents = {latents}\n")


def run(folder, stages=(*BEFORE, *SCORES)):
    """Outcomes by stage; of one SAE."""
    workspace = Workspace.open(folder / "latentgloss.toml")
    found = {}
    for stage in stages:
        (found[stage],) = workspace.materialise(stage, [SAE], tiny.runner(stage))
        assert found[stage].error is None, found[stage].error
    return found


def table(folder, stage, name=schema.SCORES):
    return Workspace.open(folder / "latentgloss.toml").store.current(stage, SAE).read(name)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A world whose detection and fuzzing are judged by an embedder; and the outcomes."""
    folder = tmp_path_factory.mktemp("judged")
    tiny.computed_workspace(folder)
    select(folder, LATENTS)
    run(folder)
    before = table(folder, "detection_scores")
    (folder / "latentgloss.toml").write_text(JUDGED)
    return folder, before, run(folder, SCORES)


def test_labels_are_scored_beside_programs_and_their_scores_stay_as_they_were(scored):
    folder, before, _ = scored
    found = table(folder, "detection_scores")
    assert found.filter(judge="executed").sort(pl.all()).equals(before.sort(pl.all()))
    of_labels = found.filter(judge="embedder")
    assert set(of_labels["embedder"]) == {"tiny"} and set(found.filter(judge="executed")["embedder"]) == {""}
    good = of_labels.filter(explainer="pattern", status="ok")
    assert good["latent"].n_unique() > 20 and good.filter(negatives="random")["auroc"].median() > 0.9
    nulls = of_labels.filter(pl.col("explainer").str.starts_with("null:"), negatives="random", status="ok")
    assert 0.4 < nulls["auroc"].mean() < 0.6 and good["specificity"].median() > 0.2
    assert good["threshold"].null_count() == 0
    marks = table(folder, "fuzzing_scores").filter(explainer="pattern", status="ok")
    assert set(marks["judge"]) == {"embedder"} and marks["auroc"].median() > 0.9


def test_coefficients_are_stored_with_the_scores_and_give_them_again(scored):
    folder, _, outcomes = scored
    for stage in SCORES:
        ready = outcomes[stage].version.manifest.facts["ready"]
        assert set(ready) == {"pattern", "token_table"}
        fit = ready["pattern"]["embedder:tiny"]
        assert set(fit["coefficients"]) == set(fitting.FEATURES) and fit["latents"] > 20 and fit["units"] > 1000
        assert tuple(fit["coefficients"].values()) != fitting.PRIOR
    nothing = run(folder, SCORES)
    assert {o.status for o in nothing.values()} == {"reused"}


def with_one_more(scored, folder, stages=SCORES):
    """A copy of the world, computed with one latent more, which comes last."""
    shutil.copytree(scored[0], folder)
    run(folder, stages)
    old = {stage: table(folder, stage) for stage in stages}
    select(folder, [*LATENTS, 68])
    outcomes = run(folder, (*BEFORE, *stages))
    new = {stage: table(folder, stage) for stage in stages}
    assert all(68 in new[stage].filter(status="ok")["latent"] for stage in stages)
    return outcomes, old, {stage: rows.filter(pl.col("latent").is_in(LATENTS)) for stage, rows in new.items()}


def same(one, other):
    return one.sort(pl.all()).equals(other.sort(pl.all()))


def test_latents_that_are_added_change_nothing_once_there_are_enough(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "LATENTS", 8)
    folder = tmp_path / "few"
    (scored[0] / "latentgloss.toml").write_text(JUDGED + "seed = 1\n")  # of fuzzing, which is then fitted to eight
    try:
        outcomes, old, kept = with_one_more(scored, folder, ["fuzzing_scores"])
    finally:
        (scored[0] / "latentgloss.toml").write_text(JUDGED)
    fit = outcomes["fuzzing_scores"].version.manifest.facts["ready"]["pattern"]["embedder:tiny"]
    assert fit["latents"] == 8 and same(kept["fuzzing_scores"], old["fuzzing_scores"])


def test_below_that_they_change_the_coefficients_and_the_facts_say_so(scored, tmp_path):
    outcomes, old, kept = with_one_more(scored, tmp_path / "copy")
    for stage in SCORES:
        fits = [o[stage].version.manifest.facts["ready"]["pattern"]["embedder:tiny"] for o in (scored[2], outcomes)]
        assert fits[1]["latents"] == fits[0]["latents"] + 1 and fits[1]["coefficients"] != fits[0]["coefficients"]
        if stage == "detection_scores":  # in fuzzing only ranks count, which so small a change leaves as they are
            assert not same(*(rows[stage].filter(judge="embedder") for rows in (kept, old)))
        assert same(*(rows[stage].filter(judge="executed") for rows in (kept, old)))


def test_the_order_of_latents_matters_to_judges_of_labels_alone():
    for judges, parts in ((["executed"], ("cache",)), (["embedder:tiny"], ("cache", "latents"))):
        settings = {"profile": "default", "detection": {"judges": judges}, "contexts.length": 16}
        reads = {i.stage: parts for i, parts in STAGES["detection_scores"].reads(settings)}
        assert reads["resolved_saes"] == parts


def test_an_embedder_that_chose_the_negatives_is_not_asked_about_them(scored, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(scored[0], folder)
    strata = '[negatives]\nstrata = ["similar", "random"]\nnearest = 20\nembedder = "tiny"\n'
    (folder / "latentgloss.toml").write_text(JUDGED.replace("[negatives]\n", strata))
    select(folder, LATENTS[:12])
    run(folder, (*BEFORE, "detection_scores"))
    found = table(folder, "detection_scores")
    arms = {(judge, arm) for judge, arm in found.select("judge", "negatives").iter_rows()}
    assert ("executed", "similar") in arms and ("embedder", "similar") not in arms and ("embedder", "random") in arms


def test_doctor_names_judges_and_embedders_that_there_are_not(tmp_path):
    settings = tiny.WORLD + '[detection]\njudges = ["embeder:tiny"]\n[fuzzing]\njudges = ["embedder:absent"]\n'
    said = " ".join(map(str, problems(tiny.tiny_workspace(tmp_path, settings=settings))))
    assert "'embeder:tiny' is unknown" in said and "embedder:NAME" in said and "absent" in said
