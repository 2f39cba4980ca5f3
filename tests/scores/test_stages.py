"""Scores: what judges of known skill get, what failures become, and what a judge is (not) told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import tiny
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from latentgloss import schema
from latentgloss.config import Settings
from latentgloss.contexts.latent_sample import sampled, smaller
from latentgloss.protocols import Answer
from latentgloss.scores.explained_blocks import score_explanations
from latentgloss.scores.judges.opening import judge_named
from latentgloss.scores.scorers import detection
from latentgloss.scores.scorers.base import Asked
from latentgloss.scores.table import SCORERS

BLOCK = "000000"
ARMS = ["same_document", "random"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(explanations of one block, contexts to judge, corpus, workspace) of a finished tiny workspace."""
    workspace = tiny.computed_workspace(tmp_path_factory.mktemp("scored"))
    current = {
        name: workspace.store.current(name, tiny.SPARSIFY) for name in tiny.RUNNERS if name.startswith(("s", "e", "r"))
    }
    explained = current["explanations"].read(schema.EXPLANATIONS, f"{BLOCK}-pattern")
    contexts = detection.candidates(
        current["sampled_contexts"].read(schema.CONTEXTS, BLOCK),
        current["sampled_negatives"].read(schema.NEGATIVES, BLOCK),
        schema.SPLITS,
    )
    corpus = workspace.corpus(current["resolved_saes"])
    return explained, contexts, corpus, workspace


class Scripted:
    """A judge that answers by a rule that is given the truth, which no real judge sees."""

    name, embedder, decides = "scripted", "", False

    def __init__(self, world, answer):
        _, contexts, corpus, _ = world
        length = 16
        positive = contexts.filter("truth")
        tokens = corpus.contexts(positive["context"].to_numpy(), length)
        self.active = {(latent, row.tobytes()) for latent, row in zip(positive["latent"], tokens, strict=True)}
        self.answer = answer
        self.asked = []

    def judge(self, questions):
        for question in questions:
            self.asked.append(question)
            truth = np.array([(question.latent, row.tobytes()) in self.active for row in question.tokens])
            yield self.answer(question, truth)


def evidence(values, **more):
    return Answer(np.asarray(values, dtype=np.float32), None, None, None, **more)


def judged(world, answer, explained=None, contexts=None):
    given, all_contexts, corpus, _ = world
    judge = Scripted(world, answer)
    rows = detection.asked(all_contexts if contexts is None else contexts, ARMS)
    asked = Asked(rows, corpus.contexts(rows["context"].to_numpy(), 16))
    found = score_explanations(SCORERS["detection"], given if explained is None else explained, asked, ARMS, [judge])
    return found["judgements"], found["scores"], judge


def test_a_perfect_judge_gets_everything_right(world):
    _, found, _ = judged(world, lambda q, truth: evidence(truth))
    good = found.filter(status="ok")
    assert good.height > 20
    assert (good["score"] == 1).all()
    assert (good["corrected"] == 1).all()
    assert (good["auroc"] == 1).all()
    assert ((good["ci_low"] < 1) & (good["ci_high"] == 1)).all()


@pytest.mark.parametrize("said", [True, False])
def test_a_judge_that_always_says_the_same_is_at_chance(world, said):
    def answer(question, truth):
        always = np.full(len(truth), said)
        return Answer(always.astype(np.float32), always, None, None)

    _, found, _ = judged(world, answer)
    good = found.filter(status="ok")
    assert (good["score"] == 0.5).all()
    assert (good["corrected"] == 0).all()
    assert (good["auroc"] == 0.5).all()


def test_a_coin_is_at_chance(world):
    draw = np.random.default_rng(0)
    _, found, _ = judged(world, lambda q, truth: evidence(draw.random(len(truth))))
    good = found.filter(status="ok")
    assert good["auroc"].mean() == pytest.approx(0.5, abs=0.03)
    assert good["score"].mean() == pytest.approx(0.5, abs=0.03)


def test_the_judges_own_decision_is_kept(world):
    _, found, _ = judged(world, lambda q, truth: Answer(truth.astype(np.float32), ~truth, None, None))
    assert (found.filter(status="ok")["score"] == 0).all()


def test_what_a_judge_is_asked_does_not_tell_the_truth(world):
    _, _, judge = judged(world, lambda q, truth: evidence(truth))
    first, share = [], []
    for question in judge.asked:
        truth = np.array([(question.latent, row.tobytes()) in judge.active for row in question.tokens])
        if truth.any() and not truth.all():
            first.append(truth[0])
            share.append(truth.mean())
        assert not hasattr(question, "truth")
    assert np.mean(first) == pytest.approx(np.mean(share), abs=0.15)


def test_each_arm_has_questions_of_its_own(world):
    judgements, _, judge = judged(world, lambda q, truth: evidence(truth))
    test = judgements.filter(split="test")
    for (arm,), rows in test.group_by("negatives"):
        assert set(rows["stratum"].unique()) <= {"activating", arm}
    latents = judgements["latent"].n_unique()
    assert len(judge.asked) == 4 * latents  # two arms on test; select and explain for the threshold in one


def test_a_failed_judgement_is_excluded_and_counted_never_wrong(world):
    def answer(question, truth):
        values = truth.astype(np.float32)
        values[::2] = np.nan
        status = ["parse_failed" if i % 2 == 0 else "ok" for i in range(len(truth))]
        return evidence(values, status=status, reason=["no digit" if s != "ok" else "" for s in status])

    judgements, found, _ = judged(world, answer)
    failed = judgements.filter(pl.col("status") == "parse_failed")
    assert failed.height > 0
    assert failed["prediction"].null_count() == failed.height
    good = found.filter(status="ok")
    assert (good["score"] == 1).all()
    assert ((good["coverage"] > 0.4) & (good["coverage"] < 0.6)).all()


def test_a_decision_that_came_with_a_failure_is_not_counted(world):
    """A judge of its own mind that failed on every other context, and was wrong wherever it failed."""

    def answer(question, truth):
        failed = np.arange(len(truth)) % 2 == 0
        status = ["parse_failed" if f else "ok" for f in failed]
        said = np.where(failed, ~truth, truth)
        return Answer(said.astype(np.float32), said, None, None, status, ["" if s == "ok" else "cut" for s in status])

    judgements, found, _ = judged(world, answer)
    failed = judgements.filter(pl.col("status") != "ok")
    assert failed.height > 0
    assert failed["prediction"].null_count() == failed["evidence"].null_count() == failed.height
    assert (found.filter(status="ok")["score"] == 1).all()


def test_evidence_without_a_threshold_decides_nothing(world):
    """No answers on select and explain: τ is unknown, and an unknown τ is no "no"."""
    only_test = world[1].filter(split="test")
    judgements, found, _ = judged(world, lambda q, truth: evidence(truth), contexts=only_test)
    assert judgements["prediction"].null_count() == judgements.height
    assert "ok" not in found["status"].to_list()
    assert found["score"].null_count() == found.height


def test_a_latent_without_random_negatives_takes_its_threshold_from_the_next_arm(world):
    explained, contexts, *_ = world
    latent = explained.filter(status="ok")["latent"][0]
    without = contexts.filter(~((pl.col("latent") == latent) & (pl.col("stratum") == "random")))
    _, found, _ = judged(world, lambda q, truth: evidence(truth), contexts=without)
    rows = {row["negatives"]: row for row in found.filter(latent=latent).iter_rows(named=True)}
    assert rows["same_document"]["score"] == 1
    assert rows["random"]["status"] == "unscored"
    assert rows["random"]["reason"]


def test_a_judge_that_never_answers_leaves_rows_with_a_reason_and_no_number(world):
    def answer(question, truth):
        n = len(truth)
        return evidence(np.full(n, np.nan), status=["refused"] * n, reason=["no"] * n)

    _, found, _ = judged(world, answer)
    asked = found.filter(pl.col("status").is_in(["ok", "unscored"]))
    assert (asked["status"] == "unscored").all()
    assert (asked["reason"] != "").all()
    assert asked["score"].null_count() == asked.height
    assert (asked["coverage"] == 0).all()


def test_every_latent_has_a_row_per_arm_and_a_failed_explanation_has_no_number(world):
    explained, _, _, _ = world
    first = explained.filter(status="ok")["latent"][0]
    broken = explained.with_columns(
        status=pl.when(pl.col("latent") == first).then(pl.lit("parse_failed")).otherwise("status"),
        reason=pl.when(pl.col("latent") == first).then(pl.lit("no sentence")).otherwise("reason"),
    )
    judgements, found, _ = judged(world, lambda q, truth: evidence(truth), broken)
    assert found.height == 2 * explained.height
    rows = found.filter(latent=first)
    assert rows["status"].to_list() == ["no_explanation"] * 2
    assert rows["reason"].to_list() == ["no sentence"] * 2
    assert rows["score"].null_count() == 2
    assert judgements.filter(latent=first).is_empty()
    dead = found.filter(status="dead")
    assert dead.height > 0
    assert dead["score"].null_count() == dead.height


def test_only_the_test_split_is_scored(world):
    """Answers on select and explain move the threshold and nothing else."""

    def noisy_elsewhere(question, truth):
        return evidence(truth)

    judgements, found, _ = judged(world, noisy_elsewhere)
    n = judgements.filter(split="test").group_by("latent", "negatives").len()
    joined = found.filter(status="ok").join(n, on=["latent", "negatives"])
    assert (joined["n"] == joined["len"]).all()


def test_specificity_is_the_score_minus_the_null(world):
    *_, workspace = world
    table = workspace.store.current("detection_scores", tiny.SPARSIFY).read(schema.SCORES)
    key = ["latent", "negatives"]
    drawn = table.filter(pl.col("explainer").str.starts_with("null:pattern"))
    assert drawn["explainer"].n_unique() == 2
    null = drawn.group_by(key).agg(null=pl.col("score").mean()).drop_nulls()
    both = table.filter(explainer="pattern", status="ok").join(null, on=key)
    assert both.height > 40
    assert both.filter((pl.col("score") - pl.col("null") - pl.col("specificity")).abs() > 1e-12).is_empty()
    assert both["specificity"].median() > 0.2


def test_nothing_judged_was_shown(world):
    *_, corpus, workspace = world
    explained = workspace.store.current("explanations", tiny.SPARSIFY).read(schema.EXPLANATIONS)
    judgements = workspace.store.current("detection_scores", tiny.SPARSIFY).read(schema.JUDGEMENTS)
    shown = set(explained["context_ids"].explode().drop_nulls().to_list())
    scored = set(judgements.filter(split="test")["context"].to_list())
    assert shown
    assert scored
    assert not shown & scored
    splits = corpus.split_of_context(16)
    assert {int(splits[c]) for c in shown} == {0}
    assert {int(splits[c]) for c in scored} == {2}


def test_nothing_drawn_touches_several_documents(world):
    """A boundary would tell the stratum, and so the truth (decision 0012)."""
    *_, corpus, workspace = world
    positions = np.arange(corpus.tokens.size).reshape(-1, 16)
    documents = [set(corpus.document_of_position(window).tolist()) - {-1} for window in positions]
    several = {window for window, of in enumerate(documents) if len(of) != 1}
    assert len(several) > 20
    for stage, table in (
        ("sampled_contexts", schema.CONTEXTS),
        ("sampled_negatives", schema.NEGATIVES),
        ("detection_scores", schema.JUDGEMENTS),
        ("fuzzing_scores", schema.JUDGEMENTS),
        ("embedding_scores", schema.JUDGEMENTS),
    ):
        drawn = workspace.store.current(stage, tiny.SPARSIFY).read(table)
        assert drawn.height and not set(drawn["context"]) & several


# A scorer that ranks and does not decide ----------------------------------------------------------------------

RANKING = replace(SCORERS["detection"], name="embedding", metric="auroc", splits=("test",))


def test_a_scorer_without_thresholds_scores_by_rank_on_the_test_split_alone(world):
    explained, _, corpus, workspace = world
    current = {n: workspace.store.current(n, tiny.SPARSIFY) for n in ("sampled_contexts", "sampled_negatives")}
    candidates = detection.candidates(
        current["sampled_contexts"].read(schema.CONTEXTS, BLOCK),
        current["sampled_negatives"].read(schema.NEGATIVES, BLOCK),
        RANKING.splits,
    )
    rows = detection.asked(candidates, ARMS)
    asked = Asked(rows, corpus.contexts(rows["context"].to_numpy(), 16))
    judge = judge_named("executed", workspace.vocabulary(tiny.MODEL))
    found = score_explanations(RANKING, explained, asked, ARMS, [judge])
    judgements, table = found["judgements"], found["scores"]
    assert set(judgements["split"]) == {"test"}
    assert judgements["prediction"].null_count() == judgements.height
    assert judgements["evidence"].null_count() == 0
    good = table.filter(status="ok")
    assert good.height > 20 and set(table["metric"]) == {"auroc"} and set(table["scorer"]) == {"embedding"}
    assert (good["score"] == good["auroc"]).all() and (good["ci_low"] == good["auroc_low"]).all()
    assert (good["corrected"] - (2 * good["score"] - 1)).abs().max() < 1e-12
    for column in ("threshold", "balanced_accuracy", "tpr", "recall_decile_10"):
        assert table[column].null_count() == table.height
    stored = workspace.store.current("detection_scores", tiny.SPARSIFY).read(schema.SCORES, f"{BLOCK}-pattern")
    both = good.join(stored, on=["latent", "negatives"], suffix="_detection")
    assert both.height == good.height
    assert (both["auroc"] - both["auroc_detection"]).abs().max() < 1e-12


def test_rank_without_evidence_is_unscored_with_a_reason(world):
    explained, contexts, corpus, _ = world
    rows = detection.asked(contexts.filter(split="test"), ARMS)
    judge = Scripted(world, lambda q, truth: evidence(np.full(len(truth), np.nan)))
    asked = Asked(rows, corpus.contexts(rows["context"].to_numpy(), 16))
    table = score_explanations(RANKING, explained, asked, ARMS, [judge])["scores"]
    put = table.filter(pl.col("status").is_in(["ok", "unscored"]))
    assert (put["status"] == "unscored").all() and (put["reason"] != "").all() and (put["coverage"] == 0).all()
    assert table["score"].null_count() == table["auroc"].null_count() == table.height


# A sample of the latents --------------------------------------------------------------------------------------


def test_a_sample_is_part_of_a_larger_one_and_of_the_eligible(world):
    eligibility = world[3].store.current("sampled_contexts", tiny.SPARSIFY).read(schema.ELIGIBILITY)
    eligible = set(eligibility.filter(status="eligible")["latent"].to_list())
    few, more, other = (set(sampled(eligibility, n, seed).tolist()) for n, seed in ((5, 0), (9, 0), (5, 1)))
    assert len(few) == 5 and few < more < eligible and few != other
    gone = eligibility.filter(pl.col("latent") != min(few))
    assert few - {min(few)} < set(sampled(gone, 5, 0).tolist())
    assert sampled(eligibility, None, 0) is None and sampled(eligibility, "all", 0) is None


def test_without_settings_language_models_get_a_sample_of_wide_saes_and_all_of_narrow_ones():
    """What explains and judges by a language model; the rest has no sample. The three samples are the same."""
    settings = Settings()
    wide, narrow = (
        pl.DataFrame({"latent": np.arange(n, dtype=np.uint32), "status": ["eligible"] * n}) for n in (5000, 900)
    )
    asked = [settings.explanations, settings.detection, settings.fuzzing]
    of_wide, of_narrow = ([sampled(frame, s.llm.sample, s.seed).tolist() for s in asked] for frame in (wide, narrow))
    assert len(of_wide[0]) == 1000 and of_wide == [of_wide[0]] * 3
    assert of_narrow == [list(range(900))] * 3
    assert settings.detection.sample is settings.fuzzing.sample is settings.embedding.sample is None
    assert (smaller(None, "all"), smaller("all", 7, None), smaller(9, 7)) == (None, 7, 7)


def test_latents_outside_the_sample_are_rows_with_a_reason_and_the_report_leaves_them_out(tmp_path):
    settings = tiny.SETTINGS + "\n[fuzzing]\nsample = 6\n"
    workspace = tiny.computed_workspace(tmp_path, settings)
    assert not [o.error for o in tiny.run_all(workspace) if o.error]
    whole = workspace.store.current("detection_scores", tiny.SPARSIFY).read(schema.SCORES).filter(negatives="random")
    table = workspace.store.current("fuzzing_scores", tiny.SPARSIFY).read(schema.SCORES)
    assert table.height == whole.height
    for (explainer,), rows in table.group_by("explainer"):
        left_out = rows.filter(status="not_sampled")
        judged = rows.filter(pl.col("status").is_in(["ok", "unscored", "no_explanation"]))
        assert judged["latent"].n_unique() == 6
        assert left_out["score"].null_count() == left_out.height and (left_out["reason"] != "").all()
        counts = dict(whole.filter(explainer=explainer)["status"].value_counts().iter_rows())
        assert dict(rows["status"].value_counts().iter_rows())["rare"] == counts["rare"]
    report = workspace.store.current("score_report", tiny.MODEL).read(schema.REPORT)
    rows = report.filter(partition=tiny.SPARSIFY, scorer="fuzzing", explainer="pattern", metric="auroc")
    assert rows["n_scored"].to_list() == [6] and rows["gain"].null_count() == 0


# --- the population ----------------------------------------------------------------------------------------------


def of_population(world, answer, shares=None, rate=0.05):
    """Judgements and scores by a scripted judge, with strata shares given by hand: (same_document, random)."""
    given, contexts, corpus, _ = world
    judge = Scripted(world, answer)
    rows = detection.asked(contexts, ARMS)
    latents = given["latent"].to_list()
    share = dict(zip(ARMS, shares or (0.1, 0.9), strict=True))
    population = pl.DataFrame(
        [{"latent": i, "stratum": s, "share": share[s], "firing_rate": rate} for i in latents for s in ARMS],
        schema_overrides={"latent": pl.UInt32},
    )
    asked = Asked(rows, corpus.contexts(rows["context"].to_numpy(), 16), population=population)
    found = score_explanations(SCORERS["detection"], given, asked, ARMS, [judge])
    return found["judgements"], found["scores"]


def some_right(seed):
    draw = np.random.default_rng(seed)

    def answer(question, truth):
        value = truth + 0.8 * draw.standard_normal(len(truth))
        return Answer(value.astype(np.float32), value > 0.6, None, None)

    return answer


def test_scores_of_the_population_weigh_strata_by_their_share(world):
    judgements, found = of_population(world, some_right(0), shares=(0.3, 0.7), rate=0.02)
    rows = found.filter(negatives="population", status="ok")
    assert rows.height > 20
    test = judgements.filter(split="test")
    for row in rows.iter_rows(named=True):
        mine = test.filter(latent=row["latent"])
        positive = mine.filter("truth", negatives="random")
        negative = {arm: mine.filter(~pl.col("truth"), negatives=arm) for arm in ARMS}
        tpr = positive["prediction"].mean()
        fpr = sum(share * negative[arm]["prediction"].mean() for arm, share in zip(ARMS, (0.3, 0.7), strict=True))
        precision = 0.02 * tpr / (0.02 * tpr + 0.98 * fpr)
        assert row["tpr"] == pytest.approx(tpr)
        assert row["tnr"] == pytest.approx(1 - fpr)
        assert row["score"] == row["balanced_accuracy"] == pytest.approx((tpr + 1 - fpr) / 2)
        assert row["precision_at_base_rate"] == pytest.approx(precision)
        assert row["f1_at_base_rate"] == pytest.approx(2 * precision * tpr / (precision + tpr))
        assert row["n"] == positive.height + sum(part.height for part in negative.values())
        weight = [0.02 / positive.height] * positive.height
        for arm, share in zip(ARMS, (0.3, 0.7), strict=True):
            weight += [0.98 * share / negative[arm].height] * negative[arm].height
        every = pl.concat([positive, *negative.values()])
        truth, evidence_ = every["truth"].to_numpy(), every["evidence"].to_numpy()
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, evidence_, sample_weight=weight))
        expected = average_precision_score(truth, evidence_, sample_weight=weight)
        assert row["auprc_at_base_rate"] == pytest.approx(expected)
        for name in ("tpr", "tnr", "auroc"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"] or row[name] in (0, 1)
        assert row["precision_low"] < row["precision_at_base_rate"] < row["precision_high"]
        assert row["unresolved"] == (row["precision_high"] - row["precision_low"] > 0.2)
        assert row["f1"] is None


def test_other_arms_do_not_speak_of_the_base_rate(world):
    _, found = of_population(world, some_right(1))
    arms = found.filter(pl.col("negatives") != "population", status="ok")
    for name in ("precision_at_base_rate", "f1_at_base_rate", "auprc_at_base_rate", "unresolved"):
        assert arms[name].null_count() == arms.height
    assert arms["auprc"].null_count() == 0 == arms["tpr_low"].null_count()


@pytest.mark.parametrize("shares", [(0.1, 0.6), (0.0, 0.9)])
def test_strata_that_are_not_everything_stand_for_no_population(world, shares):
    _, found = of_population(world, some_right(2), shares=shares)
    rows = found.filter(negatives="population")
    assert (rows["status"] != "ok").all()
    assert rows["precision_at_base_rate"].null_count() == rows.height
    unscored = rows.filter(status="unscored")
    assert unscored.height > 20
    assert (unscored["reason"] != "").all()


def test_a_stratum_whose_judgements_were_lost_leaves_the_population_unscored(world):
    _, contexts, corpus, _ = world
    gone = contexts.filter(stratum="same_document", split="test")
    tokens = corpus.contexts(gone["context"].to_numpy(), 16)
    gone = {(latent, row.tobytes()) for latent, row in zip(gone["latent"], tokens, strict=True)}

    def answer(question, truth):
        lost = np.array([(question.latent, row.tobytes()) in gone for row in question.tokens])
        status = ["llm_error" if x else "ok" for x in lost]
        return evidence(np.where(lost, np.nan, truth), status=status, reason=["gone" if x else "" for x in lost])

    _, found = of_population(world, answer)
    judged = found.filter(pl.col("status").is_in(["ok", "unscored"]))
    assert (judged.filter(negatives="population")["status"] == "unscored").all()
    assert (judged.filter(negatives="random")["status"] == "ok").sum() > 20


def test_the_population_is_scored_end_to_end_with_what_the_samples_say(world):
    _, _, _, workspace = world
    current = {name: workspace.store.current(name, tiny.SPARSIFY) for name in ("detection_scores", "sampled_negatives")}
    found = current["detection_scores"].read(schema.SCORES).filter(explainer="pattern", status="ok")
    strata = current["sampled_negatives"].read(schema.STRATA_SHARES).filter(split="test")
    by = {(r["latent"], r["negatives"]): r for r in found.iter_rows(named=True)}
    rows = [r for (_, arm), r in by.items() if arm == "population"]
    assert len(rows) > 20
    for row in rows:
        shares = dict(strata.filter(latent=row["latent"]).select("stratum", "share").iter_rows())
        assert sum(shares.values()) == pytest.approx(1)
        tnr = sum(w * by[row["latent"], arm]["tnr"] for arm, w in shares.items() if w)
        assert row["tnr"] == pytest.approx(tnr)
        assert row["tpr"] == by[row["latent"], "random"]["tpr"]
    assert sum(row["specificity"] is None for row in rows) <= 2  # who was asked for first has nobody's text but its own


def test_the_report_counts_the_latents_better_than_the_nulls_of_their_sae(world):
    _, _, _, workspace = world
    report = workspace.store.current("score_report", "tiny").read(schema.REPORT)
    rows = report.filter(explainer="pattern", scorer="detection", negatives="random", metric="balanced_accuracy")
    found = workspace.store.current("detection_scores", tiny.SPARSIFY).read(schema.SCORES)
    (row,) = rows.filter(partition=tiny.SPARSIFY).iter_rows(named=True)
    scored = found.filter(negatives="random", explainer="pattern", status="ok")
    null = found.filter(negatives="random", status="ok").filter(pl.col("explainer").str.starts_with("null:"))
    null = null["score"].to_numpy()
    assert row["specificity"] == pytest.approx(scored["specificity"].median())
    assert row["specificity_low"] <= row["specificity"] <= row["specificity_high"]
    assert 80 < len(null) < 400  # one bin
    p = np.array([(1 + (null >= s).sum()) / (len(null) + 1) for s in scored["score"]])
    assert row["n_specific"] == (stats.false_discovery_control(p) <= 0.05).sum() > 0
    assert report.filter(explainer="null:pattern")["n_specific"].null_count() == len(
        report.filter(explainer="null:pattern")
    )
