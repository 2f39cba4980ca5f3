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
from latentgloss.config.settings import ImportedSettings, Settings
from latentgloss.contexts.marks import dense_activations
from latentgloss.errors import SettingsError
from latentgloss.explanations.explainers import EXPLAINERS, base_of, block_name, explainer_of, in_order
from latentgloss.explanations.explainers.base import Tools
from latentgloss.explanations.nulls import POOL, Pool, null_explanations


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny.computed_workspace(tmp_path_factory.mktemp("explained"))


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
    null = rows.filter(pl.col("explainer").str.starts_with("null:"), status="ok")
    assert null["explainer"].n_unique() == finished.settings.explanations.nulls == 2
    assert (null["source_latent"] != null["latent"]).all()
    assert null.select("latent", "source_latent").is_unique().all(), "two different ones"
    same = null.join(own, left_on="source_latent", right_on="latent", suffix="_source")
    assert same.height == null.height
    assert (same["explanation"] == same["explanation_source"]).all()
    different = null.join(own, on="latent", suffix="_own")
    assert (different["explanation"] != different["explanation_own"]).all()
    # All but the first few that were asked for have both.
    assert null.group_by("latent").len().filter(len=2).height >= own.height - 8


def rows_of(texts):
    return schema.EXPLANATIONS.frame(
        {
            "latent": i,
            "explainer": "pattern",
            "status": "ok" if text else "too_few_contexts",
            "reason": "",
            "explanation": text,
            "label": text,
            "context_ids": [],
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "cost_usd": 0.0,
        }
        for i, text in enumerate(texts)
    )


def no_twins(n, pairs=()):
    near = {i: [b for a, b in pairs if a == i] for i in range(n)}
    rows = [(i, near[i], [0.9] * len(near[i])) for i in range(n)]
    columns = {"latent": pl.UInt32, "neighbours": pl.List(pl.UInt32), "neighbour_cosines": pl.List(pl.Float32)}
    return pl.DataFrame(rows, schema=columns, orient="row")


def nulls(texts, n=2, twins=(), in_turn=None):
    """Partners of each latent, None for want of one; checked to be what the tables say."""
    rows = rows_of(texts)
    order = np.arange(len(texts), dtype=np.uint32) if in_turn is None else np.array(in_turn, dtype=np.uint32)
    names = ["null:pattern", "null:pattern:2", "null:pattern:3"][:n]
    found = null_explanations(rows, no_twins(len(texts), twins), Pool.of(rows.lazy(), order), names, 0)
    for name, frame in found.items():
        assert frame["explainer"].unique().to_list() == [name]
        for row in frame.iter_rows(named=True):
            source = row["source_latent"]
            assert row["explanation"] == ("" if source is None else texts[source])
            assert (row["status"] == "ok") == (source is not None)
    return [found[name]["source_latent"].to_list() for name in names]


_TEXTS = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=2, max_size=12)


@given(_TEXTS, st.lists(st.sampled_from("abcde"), max_size=5), st.randoms())
def test_latents_that_come_later_change_no_null(texts, more, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    before = nulls(texts, in_turn=order)
    after = nulls([*texts, *more], in_turn=[*order, *range(len(texts), len(texts) + len(more))])
    assert [draw[: len(texts)] for draw in after] == before


@given(_TEXTS)
def test_more_nulls_change_none_and_no_latent_has_one_twice(texts):
    two, three = nulls(texts, 2), nulls(texts, 3)
    assert three[:2] == two
    for of in zip(*three, strict=True):
        given = [source for source in of if source is not None]
        assert len(set(given)) == len(given)


def test_twins_and_equal_texts_are_no_nulls():
    assert nulls(["a", "b", "a", "c"], 1, [(1, 0), (0, 1)])[0][:3] == [None, None, 1]
    assert nulls(["a", "a", "a"], 1) == [[None, None, None]]


def test_a_wide_sae_has_partners_from_its_first_latents_only():
    texts = [str(i) for i in range(POOL + 300)]
    (first, second) = nulls(texts)
    assert max(first[1:]) < POOL > max(second[2:])
    assert len(set(first[POOL:])) > 200, "and they are spread over them"


def test_activations_are_laid_out_by_offset():
    frame = pl.DataFrame(
        {"offsets": [[1, 3], [], [0]], "activations": [[0.5, 2.0], [], [1.0]]},
        schema={"offsets": pl.List(pl.UInt8), "activations": pl.List(pl.Float32)},
    )
    assert dense_activations(frame, 4).tolist() == [[0, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_nulls_come_after_what_they_are_the_null_of():
    settings = Settings().explanations.model_copy(update={"explainers": ("null:pattern", "token_table"), "nulls": 3})
    assert in_order(settings) == ["pattern", "token_table", "null:pattern", "null:pattern:2", "null:pattern:3"]
    assert in_order(settings.model_copy(update={"nulls": 1}))[2:] == ["null:pattern"]
    for name in in_order(settings):
        assert explainer_of(block_name("000007", name)) == name
        assert base_of(name) == name.removeprefix("null:").split(":")[0]
    for wrong in ("null:patern", "pattern:2", "null:pattern:b"):
        with pytest.raises(SettingsError, match=wrong):
            base_of(wrong)


def test_weights_restore_the_population(finished):
    """The weights of a latent's examples add up to the number of windows of the explain split."""
    from latentgloss.explanations.evidence import BlockEvidence
    from latentgloss.preview.one_latent import as_it_stands

    run = as_it_stands(finished, "explanations", tiny.SPARSIFY)
    corpus = finished.corpus(run.input("resolved_saes"))
    usable = run.input("sampled_contexts").manifest.facts["windows_usable"]["explain"]
    evidence = list(BlockEvidence(run, corpus, "000000"))
    assert len(evidence) > 30
    for one in evidence:
        # windows active only on masked tokens are in neither class
        assert one.examples.weight.sum() == pytest.approx(usable, rel=0.02)
        assert len(one.context_ids) == len(one.examples.tokens) == len(set(one.context_ids))


def test_processes_give_what_one_process_gives(finished, tmp_path):
    settings = tiny.WORLD.replace("workers = 1", "workers = 2")
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
