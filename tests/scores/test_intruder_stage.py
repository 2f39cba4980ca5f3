"""Intruder detection: what may be shown together, what can be told without reading, and what becomes of answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import fuzzing_world as made_up
import numpy as np
import polars as pl
import pytest
import tiny
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scripted_model import Scripted, asked_of, is_repair, odd_one_out, passages_of

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.contexts.latent_sample import latents_in_turn
from latentgloss.contexts.marks import masked_tokens
from latentgloss.embeddings.search_writer import explanation_rows
from latentgloss.lineage.judgement_checks import trial_checks
from latentgloss.lineage.score_checks import accuracy_checks
from latentgloss.lineage.trace import trace
from latentgloss.models.vocabulary import Vocabulary
from latentgloss.planted import attackers, judges, rules, words, world
from latentgloss.preview import estimate
from latentgloss.preview.one_latent import as_it_stands
from latentgloss.protocols import Message, Question, Reply, TokenLogprobs
from latentgloss.scores import intruder_stage
from latentgloss.scores.judges.intruder import IntruderJudge, MarkedTokens, named, read_choice
from latentgloss.scores.scorers.base import COLUMNS, Asked
from latentgloss.scores.scorers.intruder import Trials
from latentgloss.scores.scorers.marked import Marked, cells_of
from latentgloss.scores.scorers.trials import PASSAGES, PER_DECILE, SHOWN, TRIALS, draw
from latentgloss.statistics import intervals
from latentgloss.statistics.rates import overlapping_share
from latentgloss.workspace import Workspace

LENGTH = made_up.LENGTH


# Trials -----------------------------------------------------------------------------------------------------


def pool_of(seed, latents, n, together=0.1):
    """Made-up contexts; beside its own, a latent also fires in some windows of the others. (contexts, mask, pairs)"""
    frame, masks = made_up.contexts(seed, latents, n)
    masked = np.zeros((int(frame["context"].max()) + 1, LENGTH), bool)
    masked[frame["context"].to_numpy()] = masks
    frame = frame.with_columns(document=pl.col("context") // 2)  # of two windows each
    own = frame.select("latent", position=pl.col("context") * LENGTH + pl.col("offsets").list.first())
    rng = np.random.default_rng(seed)
    more = [
        pl.DataFrame(
            {"latent": latent, "position": frame["context"].filter(rng.random(frame.height) < together) * LENGTH}
        )
        for latent in latents
    ]
    pairs = pl.concat([own, *more], how="vertical_relaxed").unique()
    return frame, masked, pairs.cast({"latent": pl.UInt32, "position": pl.UInt32})


def marked(frame, masked, pairs, latents):
    latents = np.array(latents, np.uint32)
    return Marked.of(latents, frame, masked, cells_of([pairs], latents, LENGTH))


def trials_of(frame, masked, pairs, judged, seed, in_turn=None):
    """Of some latents; asked for in ascending order if not told."""
    in_turn = sorted(frame["latent"].unique()) if in_turn is None else in_turn
    own, pool = (marked(frame, masked, pairs, latents) for latents in (judged, in_turn))
    return draw(own, pool, {latent: in_turn.index(latent) for latent in judged}, seed)


def shape(marks):
    return int(marks[0]) + int((marks[1:] & ~marks[:-1]).sum()), int(marks.sum())


seeds, sizes = st.integers(0, 10_000), st.sampled_from([9, 30, 50, 100])


@settings(max_examples=40)
@given(seeds, sizes)
def test_four_windows_of_a_decile_and_one_of_another_latent_that_is_alone_in_its_window(seed, n):
    frame, masked, pairs = pool_of(seed, [1, 2, 3, 4], n)
    drawn = trials_of(frame, masked, pairs, [1, 2, 3, 4], seed, [2, 4, 1, 3])
    everyone = marked(frame, masked, pairs, range(1, 5))
    fires = {(latent, position // LENGTH) for latent, position in pairs.iter_rows()}
    of = {(r["latent"], r["context"]): r for r in frame.iter_rows(named=True)}
    rows = zip(everyone.row, everyone.context, everyone.marks, strict=True)
    marks = {(int(everyone.latents[r]), int(c)): m for r, c, m in rows}
    assert drawn.table.group_by("latent").len()["len"].to_list() == [TRIALS] * 4
    rows = drawn.rows.with_row_index("i")
    for trial in drawn.table.iter_rows(named=True):
        mine = rows.filter(latent=trial["latent"], part=trial["trial"])
        assert trial["decile"] == trial["trial"] // PER_DECILE + 1
        if trial["status"] != "ok":
            assert trial["status"] in ("too_few", "no_intruder") and trial["reason"]
            assert mine.is_empty() and trial["contexts"] == [] and trial["place"] is None
            continue
        assert mine["context"].to_list() == trial["contexts"] and mine["document"].n_unique() == PASSAGES
        assert mine["truth"].to_list() == [i + 1 != trial["place"] for i in range(PASSAGES)]
        (stranger,) = mine.filter(~pl.col("truth")).iter_rows(named=True)
        ours = mine.filter("truth")
        latent, other = trial["latent"], trial["intruder_latent"]
        assert other != latent and (other, stranger["context"]) in of and (latent, stranger["context"]) not in fires
        assert {of[latent, c]["decile"] for c in ours["context"]} == {trial["decile"]}
        assert not any((other, c) in fires for c in ours["context"])
        assert stranger["stratum"] == "intruder" and stranger["decile"] == 0
        like = {
            shape(marks[key])
            for key, r in of.items()
            if key[0] == latent
            and r["decile"] == trial["decile"]
            and r["context"] not in ours["context"]
            and r["document"] not in ours["document"]
        }
        assert shape(marks[other, stranger["context"]]) in like
        for i, context, truth in mine.select("i", "context", "truth").iter_rows():
            assert (drawn.marks[i] == marks[latent if truth else other, context]).all()
    judged = drawn.rows.select("latent", "context")
    assert judged.n_unique() == judged.height  # no window of a latent is in two trials, as what it is or as an intruder
    if n == 9:
        assert set(drawn.table["status"]) == {"too_few"}  # no deciles


@settings(max_examples=20)
@given(seeds, st.integers(0, 5))
def test_trials_depend_neither_on_the_order_of_rows_nor_on_who_else_is_judged(seed, salt):
    frame, masked, pairs = pool_of(seed, [3, 5, 9], 100)
    everyone = trials_of(frame, masked, pairs, [3, 5, 9], salt, [3, 9, 5])
    order = np.random.default_rng(salt).permutation(frame.height)
    shuffled = frame[order], masked, pairs.sample(fraction=1, shuffle=True, seed=salt), [5]
    alone = trials_of(*shuffled, salt, [3, 9, 5])
    mine = (everyone.rows["latent"] == 5).to_numpy()
    assert alone.rows.equals(everyone.rows.filter(mine)) and alone.table.equals(everyone.table.filter(latent=5))
    assert (alone.marks == everyone.marks[mine]).all()
    if not alone.rows.is_empty():
        assert not trials_of(*shuffled, salt + 1, [3, 9, 5]).table.equals(alone.table)


@settings(max_examples=20)
@given(seeds)
def test_a_newcomer_changes_no_trial(seed):
    """Whatever its number and its marks: it intrudes on nobody who was asked for before it."""
    new = 1 + seed % 5
    frame, masked, pairs = pool_of(seed, [1, 2, 3, 4, 5], 60)
    old = [latent for latent in (4, 1, 3, 5, 2) if latent != new]
    without = frame.filter(pl.col("latent").is_in(old))
    before = trials_of(without, masked, pairs, sorted(old), 0, old)
    after = trials_of(frame, masked, pairs, sorted(old), 0, [*old, new])
    assert before.table.equals(after.table)
    assert set(before.table.filter(latent=old[0])["status"]) == {"too_few"}, "there was nobody"
    seniors = {latent: set(old[:i]) for i, latent in enumerate(old)}
    made = before.table.filter(status="ok")
    assert all(who in seniors[latent] for latent, who in made.select("latent", "intruder_latent").iter_rows())


def test_the_latent_that_was_asked_for_first_has_no_trials_and_says_so():
    frame, masked, pairs = pool_of(0, [7], 100)
    drawn = trials_of(frame, masked, pairs, [7], 0)
    assert set(drawn.table["status"]) == {"too_few"} and drawn.rows.is_empty() and drawn.rows.columns == list(COLUMNS)
    found = scored(frame, drawn, [First()])
    (row,) = found["scores"].iter_rows(named=True)
    assert row["status"] == "unscored" and row["reason"] and row["score"] is None and row["coverage"] == 0


def test_a_block_without_eligible_latents_is_scored_as_nothing():
    frame, masked, pairs = pool_of(0, [7], 20)
    drawn = trials_of(frame.clear(), masked, pairs, [], 0)
    found = intruder_stage.score_trials(eligibility([7], "dead"), drawn.table, asked_of_drawn(drawn), [First()])
    assert found["judgements"].is_empty() and found["scores"]["status"].to_list() == ["dead"]


# From answers to scores -------------------------------------------------------------------------------------


class First:
    name, embedder, decides = "first", "", True

    def __init__(self, place=lambda question: 0):
        self.place = place

    def judge(self, questions):
        return (named(self.place(question), PASSAGES) for question in questions)


def eligibility(latents, status="eligible"):
    zeros = {c.name: 0 for c in schema.ELIGIBILITY.columns}
    return schema.ELIGIBILITY.frame({**zeros, "latent": i, "status": status, "reason": ""} for i in latents)


def asked_of_drawn(drawn):
    tokens = np.zeros(drawn.marks.shape, np.uint32)
    return Asked(drawn.rows, tokens, drawn.marks, np.zeros(drawn.marks.shape, bool))


def scored(frame, drawn, judges):
    latents = frame["latent"].unique().sort().to_list()
    return intruder_stage.score_trials(eligibility(latents), drawn.table, asked_of_drawn(drawn), judges)


class Yes:
    """Says of every window that it is the intruder, or that none is: names nobody."""

    embedder, decides = "", True

    def __init__(self, said):
        self.said, self.name = said, str(said)

    def judge(self, questions):
        for question in questions:
            answer = named(0, len(question.tokens))
            yield type(answer)(answer.evidence, np.full(PASSAGES, self.said), None, None)


@pytest.mark.parametrize("said", [True, False])
def test_who_names_all_or_none_has_found_nobody(said):
    frame, masked, pairs = pool_of(3, [1, 2, 3, 4], 100)
    found = scored(frame, trials_of(frame, masked, pairs, [1, 2, 3, 4], 0), [Yes(said)])
    assert set(found["scores"].filter(status="ok")["score"]) == {0.0}


def test_failures_cost_coverage_and_too_many_of_them_the_score():
    frame, masked, pairs = pool_of(3, list(range(1, 13)), 100, together=0.02)
    drawn = trials_of(frame, masked, pairs, list(range(1, 7)), 0, [*range(7, 13), *range(1, 7)])
    made = drawn.table.filter(status="ok").group_by("latent").len().sort("latent")
    place = {tuple(r["contexts"]): r["place"] - 1 for r in drawn.table.filter(status="ok").iter_rows(named=True)}

    class Failing(First):
        def judge(self, questions):
            for i, question in enumerate(questions):
                answer = named(place[tuple(question.contexts.tolist())], PASSAGES)
                if question.latent == 6 or (question.latent == 1 and i < 2):
                    answer = type(answer)(answer.evidence, answer.prediction, None, None, ["refused"] * 5, ["no"] * 5)
                yield answer

    found = scored(frame, drawn, [Failing()])
    rows = {r["latent"]: r for r in found["scores"].iter_rows(named=True)}
    n = dict(made.iter_rows())
    assert min(n.values()) >= 12
    assert rows[1]["n"] == n[1] - 2 and rows[1]["coverage"] == pytest.approx((n[1] - 2) / TRIALS)
    assert rows[6]["status"] == "unscored" and rows[6]["score"] is None and "trials" in rows[6]["reason"]
    assert all(rows[i]["score"] == rows[i]["corrected"] == 1 and rows[i]["ci_high"] == 1 for i in range(1, 6))
    refused = found["judgements"].filter(status="refused")
    assert refused.height == 5 * (n[6] + 2)
    assert refused["prediction"].null_count() == refused["evidence"].null_count() == refused.height


def test_an_interval_knows_that_trials_share_documents():
    """Documents make their trials easy or hard; each is in two trials of twenty, as where windows come in pairs."""
    rng = np.random.default_rng(0)
    n, trials, per = 4000, 20, 50
    members = np.argsort(rng.random((n, trials * PASSAGES)), axis=1).reshape(n, trials, PASSAGES) % per
    easy = rng.normal(size=(n, per))
    sway = np.take_along_axis(easy, members.reshape(n, -1), 1).reshape(members.shape).mean(axis=2) * np.sqrt(PASSAGES)
    for share, weight in ((0.3, 0.0), (0.6, 0.7), (0.85, 0.7), (0.85, 0.0)):
        hidden = weight * sway + np.sqrt(1 - weight**2) * rng.normal(size=(n, trials))
        found = hidden < stats.norm.ppf(share)
        value = overlapping_share(found, np.ones_like(found), members)
        covers = ((value.low <= share) & (share <= value.high)).mean()
        print(f"share {share}, weight of documents {weight}: covers {covers:.3f}")
        assert 0.93 < covers < 0.985
    apart = np.arange(trials * PASSAGES).reshape(1, trials, PASSAGES)
    plain = intervals.wilson(np.array([0.5]), np.array([20]))
    half = np.arange(trials)[None] < 10
    assert overlapping_share(half, np.ones_like(half), apart).low == pytest.approx(plain.low)
    nothing = overlapping_share(half, np.zeros_like(half), apart)
    assert np.isnan([*nothing]).all()


# Planted truth ----------------------------------------------------------------------------------------------

PLANTED = '[explanations]\nexplainers = ["truth"]\n\n[intruder]\njudges = ["perfect", "first", "coin", "tokens"]\n\n'
STAGES = [*list(tiny.RUNNERS)[:4], "intruder_scores"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    workspace = world.planted_workspace(tmp_path_factory.mktemp("planted"), PLANTED)
    with judges.installed():
        assert not [o.error for o in tiny.run_all(workspace, STAGES) if o.error]
    return workspace


def version_of(workspace, partition=world.SAE):
    return workspace.store.current("intruder_scores", partition)


def scores_of(workspace, judge):
    return version_of(workspace).read(schema.SCORES).filter(judge=judge, status="ok")


def test_who_knows_the_rules_finds_every_intruder(planted):
    found = scores_of(planted, "perfect")
    assert found.height > 50 and found["score"].min() >= 0.98 and (found["n"] >= 18).mean() > 0.9
    eligible = planted.store.current("sampled_contexts", world.SAE).read(schema.ELIGIBILITY).filter(status="eligible")
    # One latent is alone with marks like its own; nobody was asked for before the first one.
    assert found.height >= eligible.height - 5
    assert (found["explainer"] == "none").all() and (found["ci_low"] > 0.6).all()


@pytest.mark.parametrize("judge", ["first", "coin"])
def test_who_knows_nothing_finds_one_in_five(planted, judge):
    found = scores_of(planted, judge)
    n, share = found["n"].sum(), (found["score"] * found["n"]).sum() / found["n"].sum()
    assert abs(share - 0.2) < 2.5 * np.sqrt(0.16 / n)
    inside = ((found["ci_low"] <= 0.2) & (found["ci_high"] >= 0.2)).mean()
    assert inside > 0.95 - 2.5 * np.sqrt(0.05 * 0.95 / found.height)
    assert abs(found["corrected"].mean()) < 2.5 * found["corrected"].std() / np.sqrt(found.height)


def test_comparing_marked_tokens_finds_what_fires_on_a_word_and_not_what_fires_on_a_place(planted):
    kind = {rule.latent: rule.kind for rule in rules.rules()}
    found = scores_of(planted, "tokens").with_columns(kind=pl.col("latent").replace_strict(kind))
    mean = dict(found.group_by("kind").agg(pl.col("score").mean()).iter_rows())
    assert mean["token"] > 0.98 and mean["bigram"] > 0.98
    assert mean["list"] < 0.35 and mean["quotes"] < 0.4


# Attackers: what each window looks like to one who does not read.


def of_trial(values):
    """Features of one number per window, beside the others of its trial; rows of a trial stand together."""
    x = np.asarray(values, dtype=float).reshape(-1, PASSAGES)
    equal = (x[:, :, None] == x[:, None]).sum(axis=2)
    rank = (x[:, :, None] > x[:, None]).sum(axis=2)
    alone = np.abs(x - np.median(x, axis=1, keepdims=True))
    return np.column_stack([f.ravel() for f in (x, x - x.mean(axis=1, keepdims=True), alone, equal, rank)])


def characters_of(trial):
    """Of each token."""
    return np.array([len(w) for w in rules.vocabulary()])[trial["tokens"]]


ATTACKS = {
    "number of runs": lambda t: of_trial([shape(m)[0] for m in t["marks"]]),
    "number of marked tokens": lambda t: of_trial(t["marks"].sum(axis=1)),
    "place in the trial": lambda t: np.eye(PASSAGES)[np.arange(len(t["context"])) % PASSAGES],
    "place in the sequence": lambda t: attackers.of_place(t["context"], 8),
    "number of the window": lambda t: of_trial(t["context"]),
    "length in characters": lambda t: of_trial(characters_of(t).sum(axis=1)),
    "characters that are marked": lambda t: of_trial((characters_of(t) * t["marks"]).sum(axis=1)),
    "document": lambda t: of_trial(t["document"]),
    "boundaries": lambda t: attackers.of_boundaries(t["tokens"], words.SPECIAL.index("</s>")),
}


VISIBLE = {rule.latent for rule in rules.rules() if rule.kind in ("distant", "quotes", "list")}
"""Rules that show in where a window lies (`distant`) or how long its text is: whoever sees that sees what they mean."""
SEEN_OF_MARKS = ("number of runs", "number of marked tokens", "characters that are marked", "place in the trial")


@pytest.fixture(scope="module")
def everyone(planted):
    """The corpus, and all latents in turn: the pool is larger than they are many."""
    run = as_it_stands(planted, "intruder_scores", world.SAE)
    corpus = planted.corpus(run.input("resolved_saes"))
    latents = Trials(run, corpus).intruders
    contexts, cache = run.input("sampled_contexts").read(schema.CONTEXTS), run.input("activation_cache")
    cells = cells_of([cache.read(schema.ACTIVATIONS).select("latent", "position")], latents, 32)
    return corpus, Marked.of(latents, contexts, masked_tokens(cache, corpus, 32), cells)


def drawn_windows(corpus, everyone, seed):
    """Windows of all trials, trial by trial, in the order they are shown; `plain`: where no visible rule takes part."""
    drawn = draw(everyone, everyone, {latent: i for i, latent in enumerate(everyone.latents.tolist())}, seed)
    rows, made = drawn.rows, drawn.table.filter(status="ok").sort("latent", "trial")
    plain = ~made.select(pl.col("latent", "intruder_latent").is_in(VISIBLE)).to_numpy().any(axis=1).repeat(PASSAGES)
    found = {name: rows[name].to_numpy().astype(np.int64) for name in ("latent", "context", "document")}
    found |= {"truth": rows["truth"].to_numpy(), "marks": drawn.marks, "plain": plain}
    return {**found, "tokens": corpus.contexts(found["context"], 32)}


SEEDS = range(12)
INSTANCE = {rule.latent: rule.instance for rule in rules.rules()}


@pytest.fixture(scope="module")
def shown(everyone):
    return [drawn_windows(*everyone, seed) for seed in SEEDS]


def attacked(windows, attacker):
    if attacker not in SEEN_OF_MARKS:
        windows = {name: values[windows["plain"]] for name, values in windows.items()}
    fold = np.array([INSTANCE[i] for i in windows["latent"].tolist()])
    return attackers.attack(ATTACKS[attacker](windows), ~windows["truth"], windows["latent"], fold)[0]


@pytest.mark.parametrize("attacker", ATTACKS)
def test_attackers_are_at_chance(shown, attacker):
    areas = np.array([attacked(windows, attacker) for windows in shown])
    error = areas.std(ddof=1) / np.sqrt(len(areas))
    print(f"{attacker}: {areas.mean():.4f} ± {error:.4f}")
    assert abs(areas.mean() - 0.5) < max(2.5 * error, 0.003) and error < 0.01


def test_who_counts_marks_would_win_if_intruders_were_not_of_like_shape(everyone):
    corpus, of = everyone
    anything = replace(of, shape=np.zeros_like(of.shape))
    windows = [drawn_windows(corpus, anything, seed) for seed in range(3)]
    assert np.mean([attacked(w, "number of marked tokens") for w in windows]) > 0.53


def test_the_place_of_the_intruder_is_any(planted):
    place = version_of(planted).read(schema.TRIALS).filter(status="ok")["place"].value_counts()
    expected = place["count"].sum() / PASSAGES
    assert place.height == PASSAGES and (((place["count"] - expected) ** 2).sum() / expected) < 13.3  # p = .01


@pytest.fixture(scope="module")
def asked_for(planted):
    """All latents of the planted SAE, those first that were asked for first."""
    n = planted.store.current("resolved_saes", world.SAE).json("resolved.json")["n_latents"]
    known = {rule.latent for rule in rules.rules()}
    return [int(i) for i in latents_in_turn(planted.registry.sae(world.SAE), n) if int(i) in known]


def computed(planted, latents, text=PLANTED):
    """Everything about these latents alone; outcomes of the last stage, and its tables."""
    folder = planted.settings.folder
    (folder / "other.toml").write_text(text + world.MACHINE)
    world.declare(folder, world.SAE, extra=f"latents = {latents}\n")
    try:
        workspace = Workspace.open(folder / "other.toml")
        with judges.installed():
            outcomes = tiny.run_all(workspace, STAGES)
        assert not [o.error for o in outcomes if o.error]
        return outcomes[-1], tables_of(workspace)
    finally:
        world.declare(folder, world.SAE)
        with judges.installed():
            tiny.run_all(planted, STAGES)


def test_fewer_judges_and_fewer_latents_change_nothing(planted, asked_for):
    """Who was asked for first has the trials it has beside everybody who came later, in whichever block."""
    first = asked_for[:30]
    assert {latent // schema.BLOCK for latent in first} == {latent // schema.BLOCK for latent in asked_for} == {0, 1}
    before = tables_of(planted)
    _, after = computed(planted, first, PLANTED.replace('"first", "coin", ', ""))
    for name, rows in after.items():
        old = before[name].filter(pl.col("latent").is_in(first))
        if "judge" in old.columns:
            old = old.filter(pl.col("judge").is_in(["perfect", "tokens"]))
        assert 100 < old.height < before[name].height or name == "scores", name
        assert rows.equals(old), name


def test_a_block_is_judged_again_only_if_its_own_trials_may_be_others(planted, asked_for):
    """Latents that come later leave blocks alone; another order of asking does not."""
    of_block = [[latent for latent in asked_for if latent // schema.BLOCK == block] for block in (0, 1)]
    computed(planted, of_block[0])
    more, _ = computed(planted, [*of_block[0], *of_block[1]])
    assert (more.blocks_reused, more.blocks_computed) == (1, 1)
    fewer, _ = computed(planted, [*of_block[0], *of_block[1][:3]])
    assert (fewer.blocks_reused, fewer.blocks_computed) == (1, 1)
    turned, _ = computed(planted, [*of_block[1], *of_block[0]])
    assert (turned.blocks_reused, turned.blocks_computed) == (0, 2)


def test_two_latents_of_each_of_many_blocks_have_trials_as_latents_of_one_block_have(planted, tmp_path, monkeypatch):
    """A thin sample of a wide SAE: the planted latents, every fifth, in blocks of ten instead of 256."""
    monkeypatch.setattr(schema, "BLOCK", 10)
    workspace = world.planted_workspace(tmp_path, PLANTED)
    with judges.installed():
        assert not [o.error for o in tiny.run_all(workspace, STAGES) if o.error]
    blocks = version_of(workspace).manifest.blocks
    assert len(blocks) > 25 and len(version_of(planted).manifest.blocks) == 2
    found = tables_of(workspace)
    assert all(found[name].equals(rows) for name, rows in tables_of(planted).items())
    made = found["trials"].group_by("latent").agg(n=(pl.col("status") == "ok").sum())
    print(f"{made.height} latents in {len(blocks)} blocks: {made['n'].sort().to_list()}")
    assert (made["n"] >= 18).sum() >= made.height - 4 and made["n"].mean() > 18


def tables_of(workspace):
    version = version_of(workspace)
    return {t.name: version.read(t).sort(t.key) for t in (schema.TRIALS, schema.JUDGEMENTS, schema.SCORES)}


def test_a_score_can_be_traced_and_verified(planted):
    latent = scores_of(planted, "perfect")["latent"][0]
    root = trace(planted, world.SAE, latent, scorer="intruder", verify=True)
    assert root.broken() == []
    said = {check.what for node in root.walk() for check in node.checks}
    assert {
        "score of coin from its trials",
        "windows judged are those of the trials",
        "no activation in the non-activating contexts",
    } <= said
    assert "explanation" not in {node.kind for node in root.walk()}


def test_what_was_changed_afterwards_does_not_verify(planted):
    latent = scores_of(planted, "perfect")["latent"][0]
    version = version_of(planted)
    trials, judged, scores = (
        version.read(t).filter(latent=latent) for t in (schema.TRIALS, schema.JUDGEMENTS, schema.SCORES)
    )
    contexts = planted.store.current("sampled_contexts", world.SAE).read(schema.CONTEXTS)

    def failed(trials=trials, judged=judged, scores=scores):
        found = trial_checks(trials, judged, [contexts]) + accuracy_checks(scores, judged, trials)
        return [check.what for check in found if not check.ok]

    assert failed() == []
    one = (pl.col("context") == judged["context"][0]) & (pl.col("judge") == "perfect")
    turned = pl.when(one).then(~pl.col("prediction")).otherwise("prediction").alias("prediction")
    assert failed(judged=judged.with_columns(turned)) == ["score of perfect from its trials"]
    assert failed(trials=trials.with_columns(pl.col("intruder_latent") + 1)) == [
        "intruders are sampled windows of their latents"
    ]
    assert "windows judged are those of the trials" in failed(
        trials=trials.with_columns(pl.col("place") % PASSAGES + 1)
    )
    narrow = scores.with_columns(pl.col("ci_low") + 0.01)
    assert len(failed(scores=narrow)) == narrow.height


# A language model -------------------------------------------------------------------------------------------

TINY = (
    tiny.SETTINGS.replace("test = 30\nmin_explain", "test = 100\nmin_explain")
    + '\n[intruder]\njudges = ["llm:scripted", "tokens"]\n'
)


def answer(request):
    """The passage whose marked words are not those of another; some trials fail, some only at first."""
    kind = sum(asked_of(request).encode()) % 20
    if kind == 0:
        return Reply("refused", "content filter")
    if kind == 1 or (kind == 2 and not is_repair(request)):
        return "Passage 3, I think."
    return odd_one_out(passages_of(asked_of(request)))


@pytest.fixture(scope="module")
def model():
    return Scripted(answer)


@pytest.fixture(scope="module")
def asked(tmp_path_factory, model):
    workspace = tiny.tiny_workspace(tmp_path_factory.mktemp("asked"), n_documents=1200, settings=TINY)
    workspace._language_models["scripted"] = model
    assert not [o.error for o in tiny.run_all(workspace, list(tiny.RUNNERS)[:6]) if o.error]
    workspace.estimated = list(estimate.estimate(workspace, [tiny.SPARSIFY], most=10**9))
    assert not [o.error for o in tiny.run_all(workspace, ["intruder_scores"]) if o.error]
    return workspace


def test_what_is_estimated_is_what_is_asked(asked, model):
    (row,) = [r for r in asked.estimated if r.stage == "intruder_scores"]
    assert row.exact and row.model == "scripted"
    made = version_of(asked, tiny.SPARSIFY).read(schema.TRIALS).filter(status="ok").height
    assert row.requests == made > 200
    seen = [r for r in model.seen if not is_repair(r)]
    spent = version_of(asked, tiny.SPARSIFY).manifest.facts["spent"]["scripted"]
    assert row.prompt_tokens <= spent["prompt_tokens"] <= row.prompt_tokens + row.repair_tokens_most
    assert spent["prompt_tokens"] > row.prompt_tokens  # some were asked again
    assert all(len(passages_of(asked_of(r))) == PASSAGES for r in seen)


def test_a_reader_finds_words_and_its_failures_are_rows(asked):
    version = version_of(asked, tiny.SPARSIFY)
    told = version.read(schema.JUDGEMENTS).filter(judge="scripted")
    assert {"ok", "refused", "parse_failed"} == set(told["status"])
    assert told.filter(pl.col("status") != "ok")["prediction"].drop_nulls().is_empty()
    of_prompt = told.group_by("latent", "prompt").agg(pl.len(), pl.col("status").n_unique(), t=pl.col("truth").sum())
    assert set(of_prompt["len"]) == {PASSAGES} and set(of_prompt["t"]) == {SHOWN}
    found = version.read(schema.SCORES).filter(judge="scripted", status="ok")
    assert found.height > 20 and found["score"].median() > 0.9 and found["coverage"].max() <= 1
    everyone = asked.store.current("sampled_contexts", tiny.SPARSIFY).read(schema.ELIGIBILITY)
    assert set(version.read(schema.SCORES).filter(judge="scripted")["latent"]) == set(everyone["latent"])
    assert set(version.read(schema.SCORES)["judge"]) == {"scripted", "tokens"}


def test_nothing_is_asked_again_and_nothing_depends_on_how_much_is_in_flight(asked, model, tmp_path):
    before = len(model.seen)
    assert {o.status for o in tiny.run_all(asked, ["intruder_scores"])} == {"reused"} and len(model.seen) == before
    workspace = tiny.tiny_workspace(tmp_path, n_documents=1200, settings=TINY)
    workspace._language_models["scripted"] = Scripted(answer, ahead=100)
    assert not [o.error for o in tiny.run_all(workspace, STAGES) if o.error]
    one, two = (version_of(w, tiny.SPARSIFY).manifest.data_version for w in (asked, workspace))
    assert one == two


def test_report_index_and_commands_show_it(asked):
    assert not [o.error for o in tiny.run_all(asked, list(tiny.RUNNERS)[6:]) if o.error]
    report = asked.store.current("score_report", "tiny").read(schema.REPORT)
    rows = report.filter(scorer="intruder", judge="scripted", partition=tiny.SPARSIFY)
    assert rows["metric"].to_list() == ["accuracy"]
    (row,) = rows.iter_rows(named=True)
    assert row["median"] > 0.9 and row["n_scored"] > 20 and row["n_asked"] == row["n_eligible"]
    assert row["corrected"] == pytest.approx((row["median"] - 0.2) / 0.8) and row["explainer"] == "none"
    arguments = ["--config", str(asked.settings.folder / "latentgloss.toml")]
    result = CliRunner().invoke(cli, [*arguments, "scores", tiny.SPARSIFY, "--scorer", "intruder", "--json"])
    found = json.loads(result.output)
    assert {(r["negatives"], r["explainer"]) for r in found} == {("intruder", "none")}
    for explainer, scorers in (("none", {"intruder"}), ("pattern", {"detection", "fuzzing", "embedding"})):
        result = CliRunner().invoke(cli, [*arguments, "scores", tiny.SPARSIFY, "--explainer", explainer, "--json"])
        assert {r["scorer"] for r in json.loads(result.output)} == scorers
    lowest: dict[int, float] = {}
    for r in found:
        if r["score"] is not None:
            lowest[r["latent"]] = min(r["score"], lowest.get(r["latent"], 1.0))
    inputs = {s: asked.store.current(s, tiny.SPARSIFY) for s in ("explanations", "activation_cache", "intruder_scores")}
    indexed = explanation_rows(tiny.SPARSIFY, inputs).filter(explainer="pattern").drop_nulls("intruder")
    assert indexed.height > 20
    assert all(value == lowest[latent] for latent, value in indexed.select("latent", "intruder").iter_rows())


def test_a_trial_is_tried_as_the_stage_asked_it(asked, model, monkeypatch):
    version, latents = version_of(asked, tiny.SPARSIFY), latents_in_turn(asked.registry.sae(tiny.SPARSIFY), 256)
    trials = version.read(schema.TRIALS).filter(status="ok")
    latent = next(int(i) for i in latents[::-1] if trials.filter(latent=int(i)).height > 10)
    mine = trials.filter(latent=latent).sort("trial")
    of_stage = {r.messages for r in model.seen if not is_repair(r)}
    other = Scripted(lambda request: "3")
    monkeypatch.setattr(Workspace, "language_model", lambda self, name: other)

    def tried(*more):
        arguments = ["--config", str(asked.settings.folder / "latentgloss.toml"), "try", tiny.SPARSIFY, str(latent)]
        return CliRunner().invoke(cli, [*arguments, "--judge", "scripted", "--scorer", "intruder", *map(str, more)])

    for number in (0, 7):
        row = mine.row(number, named=True)
        found = json.loads(tried("--number", number, "--dry", "--json").stdout)
        assert not other.seen and found["status"] == "" and found["value"] is None
        assert found["truth"] == row["place"] and found["trial"] == row["trial"] and found["prompts"] == mine.height
        assert found["intruder_latent"] == row["intruder_latent"]
        assert tuple(Message(**message) for message in found["messages"]) in of_stage
    found = json.loads(tried("--json").stdout)
    assert (found["value"], found["truth"], found["cost_usd"]) == (3, mine["place"][0], 0.001)
    assert f"=== read\n3 (the intruder is {mine['place'][7]})" in tried("--number", 7).stdout
    too_many = tried("--prompt", 20, "--dry")
    assert too_many.exit_code == 1 and f"Expected: 0 to {mine.height - 1}" in too_many.stderr
    other._answer = lambda request: "the third, I think"
    unread = tried()
    assert unread.exit_code == 1 and "parse_failed" in unread.stderr and "second reply" in unread.stdout


def test_without_judges_nothing_is_read_and_nothing_is_asked(asked):
    path = asked.settings.folder / "none.toml"
    path.write_text(TINY.replace('["llm:scripted", "tokens"]', "[]"))
    workspace = Workspace.open(path)
    (one, two) = tiny.run_all(workspace, ["intruder_scores"])
    assert one.status == two.status == "computed" and not one.version.manifest.files
    assert not [r for r in estimate.estimate(workspace) if r.stage == "intruder_scores"]
    assert one.version.read(schema.SCORES).is_empty()


@pytest.mark.parametrize(
    ("name", "message"),
    [("executed", "one of tokens, or llm:NAME"), ("llm:absent", "'absent'"), ("llm:tokens", "name of another judge")],
)
def test_a_judge_there_is_none_of_is_said(tmp_path, name, message):
    workspace = tiny.tiny_workspace(tmp_path, settings=tiny.SETTINGS + f'[intruder]\njudges = ["{name}"]\n')
    with pytest.raises(Exception, match=re.escape(message)):
        workspace.external(tiny.STAGES["intruder_scores"], tiny.SPARSIFY)


# Replies ----------------------------------------------------------------------------------------------------

WORDS = Vocabulary([" a", " b", "A", " c"])


def question(marked=((0,), (0,), (2,), (0,), (1,))):
    tokens = np.array([[*of, *[3] * (3 - len(of))] for of in marked], np.uint32)
    marks = np.array([[i < len(of) for i in range(3)] for of in marked])
    return Question("intruder", 0, "", None, tokens, marks, np.arange(PASSAGES, dtype=np.uint32))


def test_probabilities_are_those_of_the_digits():
    certain = TokenLogprobs("2", np.log(0.6), (("2", np.log(0.6)), ("5", np.log(0.2)), ("x", np.log(0.2))))
    reply = Reply("ok", text="2", logprobs=(certain, TokenLogprobs("</s>", 0.0)))
    choice = read_choice(reply)
    assert choice.place == 1 and choice.probability == pytest.approx((0, 0.75, 0, 0, 0.25))
    twice = Reply("ok", text="<think>2</think>2", logprobs=(certain, certain))
    assert read_choice(twice).probability is None
    judge = IntruderJudge(Scripted(lambda r: reply, capabilities=("logprobs", "choice")), lambda: WORDS)
    (answer,) = judge.judge([question()])
    assert answer.prediction.tolist() == [True, False, True, True, True]
    assert answer.evidence.tolist() == answer.probability.tolist() == pytest.approx([1, 0.25, 1, 1, 0.75])


def test_marked_tokens_are_compared_whatever_their_case_and_spacing():
    (answer,) = MarkedTokens(WORDS).judge([question()])
    assert answer.prediction.tolist() == [True, True, True, True, False]
    (answer,) = MarkedTokens(WORDS).judge([question(((0,), (0, 1), (1,), (0, 1), (0,)))])
    assert answer.prediction.tolist() == [True, True, False, True, True]
