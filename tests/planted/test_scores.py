"""Proofs on planted truth, through the real stages: what judges of known skill get for explanations of known truth.

Method: docs/methods.md, Planted truth. What no latent of the corpus can avoid (windows that cut off a cause) is in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import tiny

from latentgloss import schema
from latentgloss.contexts.marks import dense_activations, masked_tokens
from latentgloss.contexts.windows import Windows
from latentgloss.planted import attackers, judges, rules, world
from latentgloss.planted.kinds import INSTANCES
from latentgloss.planted.meaning import strength
from latentgloss.planted.rules import rule_of
from latentgloss.planted.words import SPECIAL
from latentgloss.store import Version
from latentgloss.workspace import Workspace

SETTINGS = """\
[negatives]
strata = ["neighbour", "same_document", "random"]

[explanations]
explainers = ["truth", "general", "specific", "anything", "memoriser", "null:truth"]
nulls = 3

[detection]
judges = ["perfect"]

[fuzzing]
judges = ["perfect"]

"""
STAGES = [*list(tiny.RUNNERS)[:6], "detection_scores", "fuzzing_scores"]
SCORES = ("detection_scores", "fuzzing_scores")
RULES = {rule.latent: rule for rule in rules.rules()}
CERTAIN = [rule.latent for rule in rules.rules() if rule.kind != "distant"]
"""A judge of windows cannot see a cause that lies before them."""
TRUTH, ARMS = "truth", ("detection random", "detection same_document", "fuzzing donor")
UNSEEN = {
    # Of too general labels: in the arm the judge has no reason to say no where it should, or hardly ever one.
    "general": {
        "detection random": {"list", "unless", "distant"},
        "detection same_document": {"unless", "distant"},
        "fuzzing donor": {rule.kind for rule in rules.rules()} - {"common", "list"},
    },
    "specific": {},
}


@dataclass(frozen=True)
class Proven:
    workspace: Workspace
    versions: dict[str, Version]
    """Those that were current when all was done: other judges come later."""

    @property
    def corpus(self):
        return self.workspace.corpus(self.versions["resolved_saes"])

    def judgements(self, stage: str) -> pl.DataFrame:
        return self.versions[stage].read(schema.JUDGEMENTS).filter(split="test")

    @property
    def scores(self) -> pl.DataFrame:
        """By rule and arm; of eligible latents alone."""
        found = pl.concat([self.versions[stage].read(schema.SCORES) for stage in SCORES if stage in self.versions])
        return found.filter(~pl.col("status").is_in(["dead", "rare", "dense", "one_document"])).with_columns(
            arm=pl.format("{} {}", "scorer", "negatives"),
            kind=pl.col("latent").replace_strict({latent: rule.kind for latent, rule in RULES.items()}),
        )


def run(workspace: Workspace, stages=STAGES) -> Proven:
    assert not [o.error for o in tiny.run_all(workspace, stages) if o.error]
    found = {stage: workspace.store.current(stage, world.SAE) for stage in STAGES}
    return Proven(workspace, {stage: version for stage, version in found.items() if version is not None})


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    workspace = world.planted_workspace(tmp_path_factory.mktemp("planted"), SETTINGS)
    with judges.installed():
        return run(workspace)


@pytest.fixture(scope="module")
def scores(proven):
    return proven.scores


def again(proven: Proven, explainers: list[str], names: list[str], *more: type) -> Proven:
    """The same contexts, judged by others."""
    path = proven.workspace.settings.folder / "latentgloss.toml"
    settings = path.read_text()
    changed = settings.replace('judges = ["perfect"]', f"judges = {json.dumps(names)}")
    start = changed.index("explainers")
    changed = changed[:start] + f"explainers = {json.dumps(explainers)}" + changed[changed.index("\n", start) :]
    try:
        path.write_text(changed)
        with judges.installed(*more):
            return run(Workspace.open(path), ["explanations", *SCORES])
    finally:
        path.write_text(settings)


def mean(frame: pl.DataFrame, column: str = "score") -> dict[str, float]:
    return dict(frame.group_by("kind").agg(pl.col(column).mean()).iter_rows())


# True explanations ------------------------------------------------------------------------------------------


def test_a_perfect_judge_of_true_explanations_gets_everything(scores):
    found = scores.filter(explainer=TRUTH, judge="perfect").filter(pl.col("latent").is_in(CERTAIN))
    for (arm,), rows in found.group_by("arm"):
        good = rows.filter(status="ok")
        assert arm.endswith("neighbour") or good.height == rows.height == len(set(rows["latent"]))
        for kind, value in mean(good).items():
            assert value >= 0.98, (arm, kind, value)
        assert good["auroc"].median() >= 0.99
        assert (good["ci_high"] >= 0.98).all()


def test_true_explanations_predict_activations(proven):
    """Pearson over the tokens of activating and random test windows, as planted simulation will measure it."""
    r = {
        latent: simulated(proven, latent, RULES[latent].true)
        for latent in CERTAIN
        if RULES[latent].status == "eligible"
    }
    assert len(r) > 50
    kinds = {RULES[latent].kind for latent in r}
    for kind in kinds:
        assert np.mean([value for latent, value in r.items() if RULES[latent].kind == kind]) >= 0.98, kind
    for instance in range(INSTANCES):  # one support, two strengths: what detection and fuzzing cannot tell
        even, graded = (rule_of(f"strengths: {s}", instance) for s in ("even", "graded"))
        assert (
            simulated(proven, graded.latent, even.true) < 0.92 < 0.98 <= simulated(proven, graded.latent, graded.true)
        )
        items = rule_of("list", instance)
        assert simulated(proven, items.latent, items.general) < 0.6


def simulated(proven: Proven, latent: int, label) -> float:
    block = f"{latent // schema.BLOCK:06d}"
    here = pl.col("latent") == latent, pl.col("split") == "test"
    positive = proven.versions["sampled_contexts"].read(schema.CONTEXTS, block).filter(*here)
    negative = proven.versions["sampled_negatives"].read(schema.NEGATIVES, block).filter(*here, stratum="random")
    contexts = np.concatenate([positive["context"].to_numpy(), negative["context"].to_numpy()])
    activations = np.zeros((len(contexts), 32))
    activations[: positive.height] = dense_activations(positive, 32)
    masked = masked_tokens(proven.versions["activation_cache"], proven.corpus, 32)[contexts]
    said = strength(label, proven.corpus.contexts(contexts, 32))
    return float(np.corrcoef(activations[~masked], said[~masked])[0, 1])


# Nothing known ----------------------------------------------------------------------------------------------


def inside(rows: pl.DataFrame, low: str = "ci_low", high: str = "ci_high") -> float:
    """Share of latents in whose interval chance lies."""
    return rows.select(((pl.col(low) <= 0.5) & (pl.col(high) >= 0.5)).mean()).item()


@pytest.mark.parametrize("arm", ARMS)
def test_explanations_of_other_latents_are_at_chance(scores, arm):
    rows = scores.filter(pl.col("explainer").str.starts_with("null:"), judge="perfect", arm=arm, status="ok")
    assert rows.height > 140
    # Intervals of 95 %, of which the coverage study asks 93 to 97 (docs/methods.md).
    assert inside(rows) >= 0.93 and inside(rows, "auroc_low", "auroc_high") >= 0.93
    for metric in ("score", "auroc"):
        values = rows[metric]
        assert abs(values.mean() - 0.5) < 1.96 * values.std() / np.sqrt(len(values)) + 0.002
    specificity = scores.filter(explainer=TRUTH, judge="perfect", arm=arm, status="ok")["specificity"]
    assert specificity.null_count() <= 2 and specificity.median() > 0.45


@pytest.fixture(scope="module")
def ignorant(proven):
    return again(proven, ["truth", "null:truth"], ["yes", "no", "coin"]).scores


@pytest.mark.parametrize("judge", ["yes", "no", "coin"])
def test_judges_that_know_nothing_get_nothing(ignorant, judge):
    rows = ignorant.filter(pl.col("arm").is_in(ARMS), judge=judge, status="ok")
    assert rows.height > 300
    if judge != "coin":
        assert (rows["corrected"] == 0).all() and inside(rows) == 1
    assert inside(rows) >= 0.94
    each = rows["corrected"]
    assert abs(each.mean()) <= 1.96 * each.std() / np.sqrt(len(each))


def test_any_word_says_nothing(scores):
    rows = scores.filter(explainer="anything", judge="perfect", status="ok")
    assert rows.height > 150 and (rows["corrected"] == 0).all() and (rows["auroc"] == 0.5).all()


def test_a_memoriser_gains_nothing(scores):
    rows = scores.filter(explainer="memoriser", judge="perfect", status="ok")
    assert rows.height > 150
    assert (rows["corrected"] == 0).all() and (rows["auroc"] == 0.5).all()


def test_it_would_gain_where_what_was_shown_is_scored(tmp_path):
    """The same judge under profile `paper`, which draws explain and test from one pool."""
    settings = 'profile = "paper"\n[explanations]\nexplainers = ["memoriser"]\n[detection]\njudges = ["perfect"]\n'
    workspace = world.planted_workspace(tmp_path, settings, n_documents=1000)
    with judges.installed():
        rows = run(workspace, STAGES[:-1]).scores.filter(status="ok")
    assert rows.height > 20 and rows["auroc"].median() > 0.54


# Labels that are not quite true -----------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("label", ["general", "specific"])
def test_labels_that_are_not_quite_true_score_lower_where_it_can_be_seen(scores, label, arm):
    both = scores.filter(pl.col("arm") == arm, judge="perfect", status="ok")
    true, other = (mean(both.filter(explainer=name)) for name in (TRUTH, label))
    unseen = UNSEEN[label].get(arm, set())
    for kind, value in other.items():
        if kind in unseen:
            assert true[kind] - value < 0.03, (kind, value)
        else:
            assert true[kind] - value > 0.02, (kind, value)


def test_hard_negatives_see_what_others_cannot(scores):
    """ "T" for "T unless after U": half of what the neighbour arm asks, next to nothing elsewhere."""
    rows = scores.filter(judge="perfect", status="ok", kind="unless")
    by = {(e, a): v for e, a, v in rows.group_by("explainer", "arm").agg(pl.col("score").mean()).iter_rows()}
    assert by["general", "detection random"] > 0.98 and by["general", "fuzzing donor"] > 0.98
    assert by["general", "detection neighbour"] < 0.6 < 0.97 < by[TRUTH, "detection neighbour"]


def test_what_holds_in_top_deciles_only_shows_in_recall_by_decile(scores):
    rows = scores.filter(judge="perfect", arm="detection random", kind="top deciles")
    true, top = (rows.filter(explainer=e) for e in (TRUTH, "specific"))
    assert true["recall_decile_1"].mean() == 1
    assert top["recall_decile_10"].mean() == 1 and top["recall_decile_1"].mean() < 0.1


def test_a_cause_out_of_sight_cannot_be_told_from_none(scores):
    rows = scores.filter(judge="perfect", kind="distant", status="ok")
    for arm in ARMS:
        true, general = (rows.filter(explainer=e, arm=arm)["score"].to_list() for e in (TRUTH, "general"))
        assert true == general


# Judges of given rates, and failures -------------------------------------------------------------------------


@pytest.mark.parametrize("icc", [0.0, 0.3])
def test_scores_of_a_judge_of_given_rates_are_those_rates(proven, icc):
    document = Windows.of(proven.corpus, 32).document
    judge = judges.of_rates(0.9, 0.7, icc, lambda contexts: document[contexts])
    found = again(proven, ["truth"], [judge.name], judge).scores.filter(pl.col("arm").is_in(ARMS), status="ok")
    sure = found.filter(~pl.col("kind").is_in(["distant", "topic", "bigram", "quotes", "list"]))
    assert sure.height > 80
    assert sure["tpr"].mean() == pytest.approx(0.9, abs=0.015)
    assert sure["tnr"].mean() == pytest.approx(0.7, abs=0.015)
    covers = sure.select(((pl.col("ci_low") <= 0.8) & (pl.col("ci_high") >= 0.8)).mean()).item()
    assert covers > 0.95 - 2.5 * np.sqrt(0.95 * 0.05 / sure.height)


def test_failures_that_depend_on_the_truth_cost_coverage_and_nothing_else(proven):
    failing = judges.failing(judges.Perfect, on_yes=0.5, on_no=0.1)
    found = again(proven, ["truth"], [failing.name], failing)
    rows = found.scores.filter(pl.col("arm").is_in(ARMS))
    good = rows.filter(status="ok")
    assert good.height > 150
    for kind, value in mean(good.filter(pl.col("latent").is_in(CERTAIN))).items():
        assert value >= 0.97, kind
    key = ["latent", "negatives"]
    for stage in SCORES:
        judgements = found.judgements(stage)
        refused = judgements.filter(status="refused")
        assert refused["prediction"].null_count() == refused["evidence"].null_count() == refused.height > 1000
        # Where the window tells all, the answer is the truth.
        put = judgements.filter(pl.col("latent").is_in(CERTAIN), pl.col("status") != "no_donor")
        shares = dict(put.group_by("truth").agg((pl.col("status") == "refused").mean()).iter_rows())
        assert shares[True] == pytest.approx(0.5, abs=0.03)
        assert shares[False] == pytest.approx(0.1, abs=0.03)
        counted = judgements.group_by(key).agg(share=pl.col("prediction").is_not_null().mean())
        joined = rows.filter(scorer=stage.removesuffix("_scores")).join(counted, on=key)
        assert joined.height > 50 and (joined["coverage"] - joined["share"]).abs().max() < 1e-12


def test_a_judge_that_fails_on_all_it_would_say_yes_to_leaves_no_score(proven):
    failing = judges.failing(judges.Perfect, on_yes=1.0, on_no=0.0)
    found = again(proven, ["truth"], [failing.name], failing).scores
    rows = found.filter(pl.col("arm").is_in(ARMS), kind="token")
    assert rows.height == len(ARMS) * INSTANCES
    assert set(rows["status"]) == {"unscored"} and rows["score"].null_count() == rows.height
    assert (rows["reason"] != "").all() and (rows["coverage"] < 0.7).all()


def test_marks_shifted_by_one_token_make_fuzzing_fall_and_detection_not(proven, scores):
    shifted = judges.shifted(judges.Perfect)
    moved = again(proven, ["truth"], [shifted.name], shifted).scores.filter(status="ok")
    right = scores.filter(explainer=TRUTH, judge="perfect", status="ok")
    same = ["latent", "score", "auroc", "ci_low", "ci_high", "n"]
    for arm in ("detection random", "detection same_document"):
        assert moved.filter(arm=arm).select(same).equals(right.filter(arm=arm).select(same))
    for kind, value in mean(moved.filter(arm="fuzzing donor")).items():
        # In runs of four, three marks of a shifted pattern are still right.
        assert value < (0.97 if kind in ("quotes",) else 0.75), (kind, value)


# Attackers --------------------------------------------------------------------------------------------------

SAME_WINDOWS = {
    r.latent for r in rules.rules() if r.kind == "strengths: graded" or (r.kind == "twins" and r.near is not None)
}


def asked(proven: Proven, stage: str, arm: str) -> pl.DataFrame:
    """What is asked of the test split, in the order of the questions, of latents that fire in windows of their own."""
    left_out = [*SAME_WINDOWS, *(latent for latent in RULES if latent not in CERTAIN)]  # `distant` depends on the place
    return proven.judgements(stage).filter(
        ~pl.col("latent").is_in(left_out), explainer=TRUTH, status="ok", negatives=arm
    )


ATTACKS = {
    "window position": lambda rows, tokens: attackers.of_place(rows["context"].to_numpy().astype(np.int64), 8),
    "boundaries": lambda rows, tokens: attackers.of_boundaries(tokens, SPECIAL.index("</s>")),
    "place in the question": lambda rows, tokens: attackers.of_order(rows["latent"].to_numpy().astype(np.int64)),
    "quota of a prompt": lambda rows, tokens: attackers.of_prompt(
        rows["latent"].to_numpy().astype(np.int64), rows["truth"].to_numpy(), 5
    ),
}


def attacked(proven: Proven, rows: pl.DataFrame, attacker) -> tuple[float, float]:
    features = attacker(rows, proven.corpus.contexts(rows["context"].to_numpy(), 32))
    latent = rows["latent"].to_numpy()
    fold = np.array([RULES[i].instance for i in latent])
    return attackers.attack(features, rows["truth"].to_numpy(), latent, fold)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("attacker", ATTACKS)
def test_attackers_are_at_chance(proven, attacker, arm):
    scorer, stratum = arm.split()
    area, error = attacked(proven, asked(proven, f"{scorer}_scores", stratum), ATTACKS[attacker])
    assert abs(area - 0.5) < max(2.5 * error, 0.005)
    assert error < 0.01


def test_an_attacker_that_sees_boundaries_would_win_if_windows_of_several_documents_were_asked_about(proven):
    """Decision 0012."""
    rows = asked(proven, "detection_scores", "same_document")
    negatives = rows.filter(~pl.col("truth")).select("latent", "context", "truth")
    everywhere = proven.versions["activation_cache"].scan(schema.ACTIVATIONS)
    positives = (
        everywhere.select("latent", context=pl.col("position") // 32)
        .unique(maintain_order=True)
        .filter(pl.col("latent").is_in(negatives["latent"].unique().implode()))
        .group_by("latent", maintain_order=True)
        .head(100)
        .collect()
    )
    both = pl.concat([negatives, positives.select("latent", "context", truth=pl.lit(True))])
    area, _ = attacked(proven, both, ATTACKS["boundaries"])
    assert area > 0.55
