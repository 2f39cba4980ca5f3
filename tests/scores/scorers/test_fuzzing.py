"""Fuzzing: whose marks a context wears, what can be told without reading, and what the executed judge makes of it."""

from __future__ import annotations

import fuzzing_world as world
import numpy as np
import polars as pl
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from latentgloss import schema
from latentgloss.contexts.marks import marks, masked_tokens
from latentgloss.explanations.explainers.pattern.rules import Item, Pattern, Rule
from latentgloss.models.vocabulary import Vocabulary
from latentgloss.planted import attackers
from latentgloss.protocols import Answer, Question
from latentgloss.scores.explained_blocks import score_explanations
from latentgloss.scores.judges.opening import judge_named
from latentgloss.scores.scorers import fuzzing
from latentgloss.scores.scorers.base import Asked, Texts
from latentgloss.scores.table import SCORERS

BLOCK = "000000"


def both(frame, masked, seed=0):
    """Per context (row of `frame`): its own marks, the donor's marks, status; and all rows."""
    found = fuzzing.versions(frame, masked, seed)
    at = {key: i for i, key in enumerate(found.rows.select("latent", "context", "truth").iter_rows())}
    own, worn = (
        np.array([found.marks[at[latent, c, truth]] for latent, c in frame.select("latent", "context").iter_rows()])
        for truth in (True, False)
    )
    status = [found.rows["status"][at[latent, c, True]] for latent, c in frame.select("latent", "context").iter_rows()]
    return own, worn, np.array(status), found


seeds = st.integers(0, 10_000)
sizes = st.integers(3, 30)


@given(seeds, sizes)
def test_own_marks_are_the_unmasked_tokens_above_three_tenths_of_the_maximum(seed, n):
    frame, masked = world.contexts(seed, [1, 2], n)
    own, *_ = both(frame, masked)
    for marked, active, mask in zip(own, world.dense(frame), masked, strict=True):
        most = max(a for a, m in zip(active, mask, strict=True) if not m)
        limit = np.float32(0.3) * most
        assert marked.tolist() == [bool(a > limit) and not m for a, m in zip(active, mask, strict=True)]
        assert marked.any()


@given(seeds, sizes)
def test_wrong_marks_are_those_of_another_context_of_the_decile_on_silent_unmasked_tokens(seed, n):
    frame, masked = world.contexts(seed, [1, 2], n)
    own, worn, status, _ = both(frame, masked)
    closed = (world.dense(frame) > 0) | masked
    group = frame.select("latent", "split", "decile").rows()

    def fits(row, donor):
        return row != donor and group[row] == group[donor] and not (own[donor] & closed[row]).any()

    everyone = range(frame.height)
    for i in everyone:
        if status[i] == "ok":
            assert any((worn[i] == own[j]).all() and fits(i, j) for j in everyone)
        else:  # not even another that has nobody could have been its partner
            assert not any(status[j] != "ok" and fits(i, j) and fits(j, i) for j in everyone)


@given(seeds, sizes)
def test_the_wrong_patterns_of_a_decile_are_its_right_ones_in_another_order(seed, n):
    frame, masked = world.contexts(seed, [1, 2], n)
    own, worn, status, _ = both(frame, masked)
    group = np.array([hash(key) for key in frame.select("latent", "split", "decile").rows()])
    for one in np.unique(group):
        here = (group == one) & (status == "ok")
        assert sorted(own[here].tolist()) == sorted(worn[here].tolist())


@given(seeds, sizes, st.integers(0, 5))
def test_nothing_depends_on_other_latents_or_on_the_order_of_rows(seed, n, salt):
    frame, masked = world.contexts(seed, [3, 5, 900], n)
    everything = fuzzing.versions(frame, masked, salt)
    mine = frame["latent"] == 5
    alone = fuzzing.versions(frame.filter(mine), masked[mine.to_numpy()], salt)
    assert everything.rows.filter(latent=5).equals(alone.rows)
    assert (everything.marks[(everything.rows["latent"] == 5).to_numpy()] == alone.marks).all()
    order = np.random.default_rng(salt).permutation(frame.height)
    shuffled = fuzzing.versions(frame[order], masked[order], salt)
    assert shuffled.rows.equals(everything.rows)
    assert (shuffled.marks == everything.marks).all()


@given(seeds, sizes)
def test_the_versions_of_a_context_are_in_different_questions(seed, n):
    frame, masked = world.contexts(seed, [1, 2], n)
    *_, found = both(frame, masked)
    per = found.rows.group_by("latent", "context").agg(pl.col("part").sort(), pl.len(), pl.col("truth").n_unique())
    assert (per["len"] == 2).all() and (per["truth"] == 2).all()
    assert per["part"].to_list() == [[0, 1]] * per.height
    assert found.rows.equals(found.rows.sort("latent", "arm", "split", "part", maintain_order=True))


def test_the_seed_chooses_other_donors_and_halves():
    frame, masked = world.contexts(0, list(range(20)))
    first, second = (fuzzing.versions(frame, masked, seed) for seed in (0, 1))
    key = ["latent", "context", "truth"]
    joined = first.rows.with_row_index("i").join(second.rows.with_row_index("j"), on=key, suffix="_2")
    assert 0.4 < (joined["part"] == joined["part_2"]).mean() < 0.6
    wrong = joined.filter(~pl.col("truth"))
    assert not (first.marks[wrong["i"].to_numpy()] == second.marks[wrong["j"].to_numpy()]).all(1).all()


# Attackers --------------------------------------------------------------------------------------------------


def test_an_attacker_that_sees_only_marks_is_at_chance_and_would_not_be_with_random_ones():
    frame, masked = world.contexts(7, list(range(120)), 100)
    own, worn, status, _ = both(frame, masked)
    ok = status == "ok"
    assert ok.mean() > 0.5
    latent = frame["latent"].to_numpy()
    silent = (world.dense(frame) == 0) & ~masked

    def attacked(wrong, keep):
        features = attackers.of_marks(np.concatenate([own[keep], wrong[keep]]))
        truth = np.repeat([True, False], keep.sum())
        return attackers.attack(features, truth, np.tile(latent[keep], 2))

    area, _ = attacked(worn, ok)
    assert abs(area - 0.5) < 0.01
    free = free_donors(own, (world.dense(frame) > 0) | masked, frame)
    area, _ = attacked(free, free.any(axis=1))
    assert area > 0.6  # each whatever fits it: why marks are exchanged
    area, _ = attacked(world.marks_at_random(own, silent), np.ones(len(own), bool))
    assert area > 0.7


def free_donors(own, closed, frame):
    """Wrong marks as if every context took the first pattern that fits it, whoever else wears it."""
    worn = np.zeros_like(own)
    keys = frame.select("latent", "decile").rows()
    members = {key: [j for j, other in enumerate(keys) if other == key] for key in set(keys)}
    for i, key in enumerate(keys):
        fitting = [j for j in members[key] if j != i and not (own[j] & closed[i]).any()]
        worn[i] = own[fitting[i % len(fitting)]] if fitting else worn[i]
    return worn


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny.computed_workspace(tmp_path_factory.mktemp("fuzzed"))


@pytest.fixture(scope="module")
def asked(finished):
    """(explanations of one block, what is asked of it)."""
    current = {name: finished.store.current(name, tiny.SPARSIFY) for name in list(tiny.RUNNERS)[1:-1]}
    corpus = finished.corpus(current["resolved_saes"])
    sampled = fuzzing.few(current["sampled_contexts"].read(schema.CONTEXTS, BLOCK), schema.SPLITS)
    masked = masked_tokens(current["activation_cache"], corpus, 16)[sampled["context"].to_numpy()]
    found = fuzzing.versions(sampled, masked, 0)
    tokens = corpus.contexts(found.rows["context"].to_numpy(), 16)
    references = fuzzing.references(sampled, corpus, 16)
    explained = current["explanations"].read(schema.EXPLANATIONS, f"{BLOCK}-pattern")
    return explained, Asked(found.rows, tokens, found.marks, found.masked, references)


class Scripted:
    name, embedder, decides = "scripted", "", False

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def judge(self, questions):
        for question in questions:
            self.asked.append(question)
            yield Answer(np.asarray(self.answer(question), dtype=np.float32), None, None, None)


def judged(asked, judge):
    explained, what = asked
    return score_explanations(SCORERS["fuzzing"], explained, what, ["donor"], [judge])


def test_an_attacker_that_sees_only_marks_is_at_chance_in_the_tiny_world(asked):
    rows = asked[1].rows.with_row_index("i").filter(split="test", status="ok")
    latent = rows["latent"].to_numpy()
    at = rows["i"].to_numpy()
    area, error = attackers.attack(attackers.of_marks(asked[1].marks[at]), rows["truth"].to_numpy(), latent)
    assert abs(area - 0.5) < 0.01 and error < 0.01


def test_a_judge_that_sees_only_the_context_is_at_chance_exactly(asked):
    """Each context is asked about once in each class, so nothing in it can tell."""
    found = judged(asked, Scripted(lambda q: np.abs(np.sin(q.tokens.astype(float) * 12.9898)).sum(1)))["scores"]
    good = found.filter(status="ok")
    assert good.height > 20
    assert (good["auroc"] - 0.5).abs().max() < 1e-9


def test_questions_hold_contexts_and_marks_and_never_both_versions(asked):
    judge = Scripted(lambda q: np.zeros(len(q.tokens)))
    judged(asked, judge)
    assert judge.asked
    shares = []
    for question in judge.asked:
        assert question.task == "fuzzing"
        assert len(question.contexts) == len(question.tokens) == len(question.marks) == len(question.masked)
        assert len(set(question.contexts.tolist())) == len(question.contexts)
        assert question.marks.any(axis=1).all() and not (question.marks & question.masked).any()
        assert question.reference is not None
    truth = {
        (latent, context, marked.tobytes()): t
        for (latent, context, t), marked in zip(
            asked[1].rows.select("latent", "context", "truth").iter_rows(), asked[1].marks, strict=True
        )
    }
    for question in judge.asked:
        of = [truth[question.latent, c, m.tobytes()] for c, m in zip(question.contexts, question.marks, strict=True)]
        shares.append(np.mean(of))
    assert 0.4 < np.mean(shares) < 0.6 and np.std(shares) > 0.02  # halves, but how many is not told


def test_a_context_without_donor_is_counted_and_never_scored(asked):
    explained, what = asked
    latent = explained.filter(status="ok")["latent"][0]
    some = what.rows.filter(latent=latent, split="test", status="ok")["context"].unique().sort()[:4]
    gone = (pl.col("latent") == latent) & pl.col("context").is_in(some.implode())
    rows = what.rows.with_columns(
        status=pl.when(gone).then(pl.lit("no_donor")).otherwise("status"),
        reason=pl.when(gone).then(pl.lit(fuzzing.NO_DONOR)).otherwise("reason"),
    )
    less = Asked(rows, what.tokens, what.marks, what.masked, what.references)
    judge = Scripted(lambda q: q.marks.argmax(axis=1))
    found, before = judged((explained, less), judge), judged(asked, judge)
    mine = found["judgements"].filter(latent=latent, split="test")
    without = mine.filter(status="no_donor")
    n = 2 * len(some)
    assert without.height >= n and (without["reason"] != "").all()
    for column in ("evidence", "prediction", "probability"):
        assert without[column].null_count() == without.height
    assert mine.filter(context=some[0])["stratum"].sort().to_list() == ["activating", "donor"]
    (row,), (other,) = (f["scores"].filter(latent=latent).iter_rows(named=True) for f in (found, before))
    assert row["n"] == other["n"] - n == mine.height - without.height
    assert row["coverage"] == pytest.approx(row["n"] / mine.height)
    asked_of = {c for q in judge.asked[: len(judge.asked) // 2] if q.latent == latent for c in q.contexts.tolist()}
    assert not asked_of & set(some.to_list())


def test_a_latent_without_any_donor_is_unscored_with_a_reason(asked):
    explained, what = asked
    rows = what.rows.with_columns(status=pl.lit("no_donor"), reason=pl.lit(fuzzing.NO_DONOR))
    nothing = Asked(rows, what.tokens, what.marks, what.masked, what.references)
    found = judged((explained, nothing), Scripted(lambda q: np.zeros(len(q.tokens))))
    good = found["scores"].filter(pl.col("status").is_in(["ok", "unscored"]))
    assert good.height and (good["status"] == "unscored").all() and (good["reason"] != "").all()
    assert good["score"].null_count() == good.height and (good["n"] == 0).all()


# The executed judge -----------------------------------------------------------------------------------------


def executed(marks, masked=None, reference=True, tokens=None):
    """The judge's answer on windows of eight tokens, of a pattern that fires on `b`."""
    vocabulary = Vocabulary([" a", " b", " c"])
    program = Pattern(0, (Rule("fires", 6, (Item("token", 1),)),), vocabulary).to_json()
    tokens = np.array([[0, 1, 0, 2, 1, 0, 0, 2]] * len(marks) if tokens is None else tokens, dtype=np.uint32)
    explain = np.array([[0, 0, 1, 2, 0, 0, 0, 0]], dtype=np.uint32) if reference else None
    question = Question(
        "fuzzing",
        0,
        "",
        program,
        tokens,
        np.array(marks, bool),
        np.arange(len(marks), dtype=np.uint32),
        None if masked is None else np.array(masked, bool),
        explain,
    )
    (answer,) = judge_named("executed", vocabulary).judge([question])
    return answer


def test_executed_contrast_is_the_mean_share_of_the_marked_minus_that_of_the_others():
    right, wrong = [0, 1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 0]
    found = executed([right, wrong]).evidence
    # Of eight tokens of explain, seven are no stronger than what does not fire here, and all no stronger than `b`.
    assert found.tolist() == pytest.approx([1 - 7 / 8, 7 / 8 - (2 * 1 + 4 * 7 / 8) / 6])


def test_masked_tokens_are_in_neither_mean():
    mark = [0, 1, 0, 0, 0, 0, 0, 0]
    with_b, without_b = executed([mark]).evidence[0], executed([mark], [[0, 0, 0, 0, 1, 0, 0, 0]]).evidence[0]
    assert without_b > with_b  # the other `b` no longer counts against the marks


def test_without_a_reference_or_with_everything_marked_there_is_no_evidence():
    answer = executed([[0, 1, 0, 0, 0, 0, 0, 0]], reference=False)
    assert answer.status == ["unsupported"] and answer.reason != [""]
    assert np.isnan(executed([[1] * 8]).evidence).all()


def test_an_answer_does_not_depend_on_what_else_is_asked(asked):
    explained, what = asked
    good = explained.filter(status="ok")
    latent = good["latent"][3]
    text = dict(zip(good["latent"], map(Texts._make, good.select(Texts._fields).iter_rows()), strict=True))
    (first, *others) = what.of(pl.Series([latent])).questions("fuzzing", text)
    vocabulary = Vocabulary([*"abc", *(f" {w}" for words in tiny.words() for w in words)])
    judge = judge_named("executed", vocabulary)
    together = next(iter(judge.judge([first, *others])))
    alone = [
        next(
            iter(
                judge.judge(
                    [
                        Question(
                            "fuzzing",
                            latent,
                            "",
                            first.program,
                            first.tokens[i : i + 1],
                            first.marks[i : i + 1],
                            None,
                            first.masked[i : i + 1],
                            first.reference,
                        )
                    ]
                )
            )
        ).evidence[0]
        for i in range(len(first.tokens))
    ]
    assert together.evidence.tolist() == alone


def test_the_stage_scores_patterns_far_above_their_null(finished):
    version = finished.store.current("fuzzing_scores", tiny.SPARSIFY)
    table = version.read(schema.SCORES)
    assert set(table["scorer"]) == {"fuzzing"} and set(table["negatives"]) == {"donor"}
    assert table.height == table.select("latent", "explainer").n_unique()
    good = table.filter(status="ok")
    median = dict(good.group_by("explainer").agg(pl.col("auroc").median()).iter_rows())
    assert median["pattern"] > 0.9 > 0.6 > median["null:pattern"]
    assert good.filter(explainer="pattern")["specificity"].median() > 0.2
    assert (good["threshold"].is_not_null()).all()
    judgements = version.read(schema.JUDGEMENTS)
    assert judgements.select(schema.JUDGEMENTS.key).is_unique().all()
    test = judgements.filter(split="test", explainer="pattern")
    counted = test.filter(pl.col("prediction").is_not_null()).group_by("latent").len()
    joined = good.filter(explainer="pattern").join(counted, on="latent")
    assert (joined["n"] == joined["len"]).all()


def test_marks_moved_by_one_token_make_fuzzing_fall(finished, asked):
    explained, what = asked
    judge = judge_named("executed", finished.vocabulary(tiny.MODEL))
    moved = np.roll(what.marks, 1, axis=1) & ~what.masked
    right = judged(asked, judge)["scores"]["auroc"].median()
    wrong = judged((explained, Asked(what.rows, what.tokens, moved, what.masked, what.references)), judge)["scores"]
    assert right > 0.9 and abs(wrong["auroc"].median() - 0.5) < 0.15


def test_true_marks_are_one_rule():
    activations = np.array([[0, 1, 0.31, 0.3, 2]], np.float32)
    assert marks(activations, np.array([[0, 0, 0, 0, 1]], bool)).tolist() == [[False, True, True, False, False]]
