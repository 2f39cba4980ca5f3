"""Explanations: one row per latent and explainer, nulls, weights, and processes that change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scripted_model
import tiny
from hypothesis import given
from hypothesis import strategies as st

from latentgloss import schema
from latentgloss.errors import SettingsError
from latentgloss.explainers import EXPLAINERS, Tools, base_of
from latentgloss.explanations import in_order, null_explanations
from latentgloss.marks import dense_activations
from latentgloss.settings import ImportedSettings, Settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workspace = tiny.tiny_workspace(tmp_path_factory.mktemp("explained"))
    assert not [o.error for o in tiny.run_all(workspace) if o.error]
    return workspace


def test_every_latent_asked_for_has_one_row_per_explainer(finished):
    rows = finished.store.current("explanations", tiny.SPARSIFY).read(schema.EXPLANATIONS)
    eligibility = finished.store.current("sampled_contexts", tiny.SPARSIFY).read(schema.ELIGIBILITY)
    for (_,), group in rows.group_by("explainer"):
        assert sorted(group["latent"]) == sorted(eligibility["latent"])
    failed = rows.filter(pl.col("status") != "ok")
    assert (failed["reason"] != "").all()
    assert (failed["explanation"] == "").all()
    assert failed["program"].null_count() == failed.height


def test_a_planted_word_is_found(finished):
    """Latent 4 i of the planted SAE stands for signal word i."""
    signal, _ = tiny.words()
    rows = finished.store.current("explanations", tiny.SPARSIFY).read(schema.EXPLANATIONS)
    texts = dict(rows.filter(explainer="pattern", status="ok").select("latent", "explanation").iter_rows())
    # Words that begin alike are named by their first four letters where that is enough.
    named = [signal[latent // 4][:4] in text for latent, text in texts.items() if latent < 128]
    assert len(named) > 20
    assert np.mean(named) > 0.9


def test_nulls_are_other_latents_texts(finished):
    rows = finished.store.current("explanations", tiny.SPARSIFY).read(schema.EXPLANATIONS)
    own = rows.filter(explainer="pattern", status="ok").select("latent", "explanation")
    null = rows.filter(explainer="null:pattern", status="ok")
    assert null.height == own.height
    assert (null["source_latent"] != null["latent"]).all()
    same = null.join(own, left_on="source_latent", right_on="latent", suffix="_source")
    assert (same["explanation"] == same["explanation_source"]).all()
    different = null.join(own, on="latent", suffix="_own")
    assert (different["explanation"] != different["explanation_own"]).all()


def rows_of(texts):
    return schema.EXPLANATIONS.frame(
        {
            "latent": i, "explainer": "pattern", "status": "ok" if text else "too_few_contexts", "reason": "",
            "explanation": text, "context_ids": [], "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0,
        }
        for i, text in enumerate(texts)
    )  # fmt: skip


def no_twins(n, pairs=()):
    near = {i: [b for a, b in pairs if a == i] for i in range(n)}
    rows = [(i, near[i], [0.9] * len(near[i])) for i in range(n)]
    columns = {"latent": pl.UInt32, "neighbours": pl.List(pl.UInt32), "neighbour_cosines": pl.List(pl.Float32)}
    return pl.DataFrame(rows, schema=columns, orient="row")


@given(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=2, max_size=12), st.sampled_from("bcde"))
def test_one_latent_more_changes_only_those_it_becomes_partner_of(texts, new):
    before = null_explanations(rows_of(texts), no_twins(len(texts)), "null:pattern", 0)
    after = null_explanations(rows_of([*texts, new]), no_twins(len(texts) + 1), "null:pattern", 0)
    for old, now in zip(before.iter_rows(named=True), after.iter_rows(named=True), strict=False):
        assert now == old or now["source_latent"] == len(texts)


def test_twins_and_equal_texts_are_no_nulls():
    found = null_explanations(rows_of(["a", "b", "a"]), no_twins(3, [(0, 1), (1, 0)]), "null:pattern", 0)
    assert found["source_latent"].to_list() == [None, 2, 1]
    assert found["status"].to_list() == ["no_partner", "ok", "ok"]
    assert "no other latent" in found["reason"][0]


def test_activations_are_laid_out_by_offset():
    frame = pl.DataFrame(
        {"offsets": [[1, 3], [], [0]], "activations": [[0.5, 2.0], [], [1.0]]},
        schema={"offsets": pl.List(pl.UInt8), "activations": pl.List(pl.Float32)},
    )
    assert dense_activations(frame, 4).tolist() == [[0, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_nulls_come_after_what_they_are_the_null_of():
    assert in_order(("null:pattern",)) == ["pattern", "null:pattern"]
    with pytest.raises(SettingsError, match="patern"):
        base_of("null:patern")


def test_weights_restore_the_population(finished):
    """Over a latent's windows the weights add up to the windows the explain split has."""
    from latentgloss.evidence import BlockEvidence
    from latentgloss.stages import STAGES
    from latentgloss.work import Work

    stage = STAGES["explanations"]
    work = Work(finished, stage, tiny.SPARSIFY, finished.recipe(stage, tiny.SPARSIFY))
    corpus = finished.corpus(work.input("resolved_saes"))
    usable = work.input("sampled_contexts").manifest.facts["windows_usable"]["explain"]
    evidence = list(BlockEvidence(work, corpus, "000000"))
    assert len(evidence) > 30
    for one in evidence:
        # windows active only on masked tokens are in neither class
        assert one.windows.weight.sum() == pytest.approx(usable, rel=0.02)
        assert len(one.context_ids) == len(one.windows.tokens) == len(set(one.context_ids))


def test_processes_give_what_one_process_gives(finished, tmp_path):
    settings = tiny.SETTINGS.replace("workers = 1", "workers = 2")
    workspace = tiny.tiny_workspace(tmp_path, settings=settings)
    assert not [o.error for o in tiny.run_all(workspace) if o.error]
    for partition in tiny.SAES:
        one, two = (w.store.current("explanations", partition).manifest for w in (finished, workspace))
        assert one.data_version == two.data_version


def test_every_explainer_says_what_decides_its_output():
    settings = Settings().explanations.model_copy(
        update={"model": "scripted", "imported": ImportedSettings(file="{sae}.csv")}
    )
    tools = Tools("m/h/s", Path(), lambda name: scripted_model.Scripted(), lambda name: scripted_model.Everything())
    for name, make in EXPLAINERS.items():
        identity = make.identity(settings, tools)
        assert identity["explainer"] == name
        assert "version" in identity
