"""`latentgloss estimate`: what is counted is what will be asked; what is not known is an upper bound that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import Scripted

from latentgloss import schema
from latentgloss.cli import cli
from latentgloss.llm.ledger import Cost
from latentgloss.preview import counts, estimate
from latentgloss.preview.one_latent import as_it_stands
from latentgloss.preview.planned import planned_queries
from latentgloss.protocols import Reply
from latentgloss.workspace import Workspace

P = tiny.SPARSIFY
FEW = tiny.SETTINGS.replace("test = 30", "test = 15")
CONTEXTS = ["tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives"]
ASKING = """
[explanations]
explainers = ["pattern", "llm", "null:llm"]
nulls = 1
model = "scripted"
llm.contexts = 12

[detection]
judges = ["executed", "llm:scripted"]

[fuzzing]
judges = ["llm:scripted"]
"""
VENDOR = """name = "vendor"
engine = "openai_compatible"
model = "small-2026-05-01"
base_url = "http://127.0.0.1:9/v1"
paid = true
prices = { prompt = 2.0, completion = 10.0 }
tokens_per_second = 1000
"""
ASKING_VENDOR = """
[explanations]
explainers = ["llm"]
model = "vendor"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Contexts are sampled, nothing is explained."""
    root = tmp_path_factory.mktemp("estimate")
    workspace = tiny.computed_workspace(root, FEW + ASKING, stages=CONTEXTS)
    assert not [outcome.error for outcome in tiny.run_all(workspace, CONTEXTS) if outcome.error]
    (root / "registry" / "language_models").mkdir()
    (root / "registry" / "language_models" / "vendor.toml").write_text(VENDOR)
    return root


def opened(root, settings):
    path = root / "other.toml"
    path.write_text(FEW + settings)
    workspace = Workspace.open(path)
    workspace._language_models["scripted"] = Scripted()
    return workspace


def copied(root, tmp_path):
    return Path(shutil.copytree(root, tmp_path / "copy"))


def rows_of(workspace, stage, **options):
    return [row for row in estimate.estimate(workspace, [P], **options) if row.stage == stage]


@pytest.fixture(scope="module")
def vendor(root):
    return opened(root, ASKING_VENDOR)


def test_what_is_estimated_is_what_is_asked(root):
    workspace = opened(root, ASKING)
    model = workspace._language_models["scripted"]
    for stage in ("explanations", "detection_scores", "fuzzing_scores"):
        (row,) = rows_of(workspace, stage, most=10**9)
        assert row.exact and row.counted == row.latents == 48 and not row.paid and row.usd_most == 0
        before = len(model.seen)
        (outcome,) = workspace.materialise(stage, [P], tiny.runner(stage))
        spent = outcome.version.manifest.facts["spent"]
        assert row.requests == len(model.seen) - before > 0
        assert row.prompt_tokens == spent.get("scripted", spent)["prompt_tokens"]
        assert row.completion_tokens_most >= spent.get("scripted", spent)["completion_tokens"]
        assert not rows_of(workspace, stage)  # what is fresh costs nothing


def test_explanations_that_do_not_exist_yet_are_bounded_from_above(root):
    """And where they are to come from is said."""
    workspace = opened(root, ASKING)
    rows = [row for row in estimate.estimate(workspace, [tiny.SAELENS]) if row.stage == "detection_scores"]
    before = rows[0]
    assert (
        not before.exact and "as long as possible, in tokens: pattern 1,000, llm 160, null:llm 160" in before.notes[0]
    )
    assert not [o.error for o in tiny.run_all(workspace, ["explanations"]) if o.error]
    (after,) = [row for row in estimate.estimate(workspace, [tiny.SAELENS]) if row.stage == "detection_scores"]
    assert (
        after.exact
        and 0.95 * before.requests < after.requests <= before.requests
        and after.prompt_tokens < before.prompt_tokens
    )


@pytest.mark.parametrize("most", [5, 20, 47])
def test_a_sample_of_latents_says_what_it_is_and_holds_the_truth(root, vendor, most):
    (whole,) = rows_of(vendor, "explanations", most=10**9)
    (few,) = rows_of(vendor, "explanations", most=most)
    assert few.latents == 48 and few.counted == most and whole.prompt_tokens_low == whole.prompt_tokens_high
    assert any(f"extrapolated from {most} of 48" in note for note in few.notes) and not few.exact
    assert few.prompt_tokens_low <= whole.prompt_tokens <= few.prompt_tokens_high
    assert few.requests == whole.requests == 48


@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(1, 30))
def test_extrapolation_is_exact_where_all_were_counted_and_unbiased_in_scale(seed, n, k):
    each = np.random.default_rng(seed).random((n, 5)) * 1000
    block = np.arange(n) // k
    sums, half = counts.extrapolated(each, block, n, whole_blocks=True)
    assert half == 0 and np.allclose(sums, each.sum(0))
    for whole in (True, False):
        twice, half = counts.extrapolated(each, block, 2 * n, whole_blocks=whole)
        assert np.allclose(twice, 2 * each.sum(0)) and 0 <= half <= twice[counts.PROMPT]


@pytest.mark.parametrize("whole", [True, False])
def test_the_interval_covers_at_about_its_level(whole):
    """Latents of a block are alike: where blocks are sampled, the interval must know."""
    rng = np.random.default_rng(0)
    blocks, size = (8, 64) if whole else (200, 64)
    values = 1000 + 50 * rng.standard_normal((blocks, 1)) + 50 * rng.standard_normal((blocks, size))
    covered = 0
    for _ in range(400):
        chosen = np.arange(blocks) if whole else rng.choice(blocks, 16, replace=False)
        flat = [(b, j) for b in chosen for j in range(size)]
        few = [flat[i] for i in rng.choice(len(flat), 128, replace=False)]
        each = np.zeros((128, 5))
        each[:, counts.PROMPT] = [values[b, j] for b, j in few]
        sums, half = counts.extrapolated(each, np.array([b for b, _ in few]), values.size, whole_blocks=whole)
        covered += abs(sums[counts.PROMPT] - values.sum()) <= half
    assert 0.92 <= covered / 400 <= 0.985


def test_latents_are_sampled_from_few_blocks_in_a_wide_sae():
    latents = np.arange(0, 2**20, 3, dtype=np.uint32)
    few, blocks = counts.sample_of(latents, 256)
    assert len(few) == 256 and blocks == counts.BLOCKS >= len(np.unique(few // schema.BLOCK)) > 12
    assert (np.diff(few.astype(int)) > 0).all() and np.isin(few, latents).all()
    assert counts.sample_of(latents[:100], 256)[0].tolist() == latents[:100].tolist()


def planned(workspace):
    source = planned_queries(as_it_stands(workspace, "explanations", P), [])
    blocks = sorted({int(latent) // schema.BLOCK for latent in source.latents})
    return [
        one
        for block in blocks
        for _, several in source.planned(f"{block:06d}", [int(i) for i in source.latents if i // schema.BLOCK == block])
        for one in several
    ]


def test_what_was_answered_is_free_and_what_could_not_be_read_is_asked_again(root, tmp_path):
    workspace = opened(copied(root, tmp_path), ASKING_VENDOR)
    (before,) = rows_of(workspace, "explanations")
    counter, queries = counts.Counter(workspace), planned(workspace)
    assert len(queries) == before.requests == 48
    replies = [Reply("ok", text="EXPLANATION: months"), Reply("refused"), Reply("ok", text="months, I think")]
    with workspace.replies.database.transaction() as transaction:
        for one, reply in zip(queries, replies, strict=False):
            workspace.replies.put(transaction, counter._key(one.model, one.query.request), reply)
    (row,) = rows_of(workspace, "explanations")
    assert (row.requests, row.cached) == (48, 2)  # the third is still to be repaired, which takes a longer prompt
    sums = [counter.count([one])["vendor"] for one in queries[:3]]
    assert [int(s[counts.CACHED]) for s in sums] == [1, 1, 0]
    fresh = counts.Counter(workspace)._tokens(queries[2].model, [queries[2].query.request])[0]
    assert sums[2][counts.PROMPT] > fresh


def test_thinking_and_a_template_without_a_system_role_are_counted(root, tmp_path):
    folder = copied(root, tmp_path)
    tiny.write_model(folder / "chat")
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (folder / "chat" / "chat_template.jinja").write_text(refuses + "{% for m in messages %}{{ m.content }}{% endfor %}")
    entry = folder / "registry" / "language_models" / "vendor.toml"

    def row(more):
        entry.write_text(VENDOR + f'tokenizer = "path:{folder / "chat"}"\n' + more)
        (found,) = rows_of(opened(folder, ASKING_VENDOR), "explanations", most=4)
        return found

    assert "system_role = false" in row("").problem and "System role not supported" in row("").problem
    plain, thinking = row("system_role = false\n"), row("system_role = false\nreasoning_tokens = 1000\n")
    assert not plain.problem and plain.prompt_tokens > 0
    assert thinking.prompt_tokens == plain.prompt_tokens
    assert thinking.completion_tokens_most == plain.completion_tokens_most + 1000 * plain.requests


def test_a_paid_model_is_priced_and_refuses_without_a_budget(root, vendor):
    rows = rows_of(vendor, "explanations")
    (row,) = rows
    assert row.paid and row.usd_expected is None
    assert row.usd_most == pytest.approx((2.0 * row.prompt_tokens + 10.0 * 160 * row.requests) / 1e6)
    assert row.usd_most < row.usd_most_repaired < 3 * row.usd_most
    assert row.hours == pytest.approx((row.prompt_tokens + row.completion_tokens_most) / 1000 / 3600)
    assert any("no `tokenizer`" in note for note in row.notes)
    (warning,) = estimate.warnings(vendor, rows)
    assert (
        "vendor is paid for and there is no budget, so runs will refuse to start" in warning
        and "[budget] usd" in warning
    )
    small = opened(root, ASKING_VENDOR + "\n[budget]\nusd = 0.01\n")
    (warning,) = estimate.warnings(small, rows)
    assert "a run may end before it is done" in warning
    large = opened(root, ASKING_VENDOR + f"\n[budget]\nusd = {estimate._rounded_up(row.usd_most_repaired)}\n")
    assert estimate.warnings(large, rows) == []


def test_no_reply_costs_more_than_the_client_enters_in_the_ledger_for_it(vendor):
    """The sum of what is reserved for each request is what the estimate calls the most."""
    (row,) = rows_of(vendor, "explanations")
    client = vendor.language_model("vendor")
    assert row.usd_most == pytest.approx(
        sum(client._payments.most(one.query.request).usd for one in planned(vendor)), rel=1e-6
    )


def test_replies_so_far_say_what_to_expect(root, tmp_path):
    vendor = opened(copied(root, tmp_path), ASKING_VENDOR)
    with vendor.replies.database.transaction() as transaction:
        for n in (20, 40):
            vendor.ledger.answered(transaction, None, "vendor", ("explanations", P), Cost(100, 0, n, 0.0))
    (row,) = rows_of(vendor, "explanations", tokens_per_second=500.0)
    assert row.completion_tokens_expected == 30 * row.requests and row.usd_expected < row.usd_most
    assert row.hours == pytest.approx((row.prompt_tokens + 30 * row.requests) / 500 / 3600)


# The command ----------------------------------------------------------------------------------------------------


def run(root, settings, *args):
    path = root / "cli.toml"
    path.write_text(FEW + settings)
    return CliRunner().invoke(cli, ["--config", str(path), "estimate", *args])


def test_the_table_and_the_json_say_the_same(root):
    table, found = run(root, ASKING_VENDOR, P), json.loads(run(root, ASKING_VENDOR, P, "--json").stdout)
    assert table.exit_code == 0, table.output
    (row,) = found["rows"]
    assert set(row) == {*estimate.Estimate.__dataclass_fields__, "exact"}
    assert f"{row['prompt_tokens']:,}" in table.stdout and "runs will refuse to start" in table.stdout
    assert found["total"]["requests"] == row["requests"] == 48 and found["warnings"][0] in table.stdout
    assert "If every request had to be sent twice" in table.stdout


def test_nothing_to_ask_and_nobody_to_ask(root):
    assert "Nothing that is stale or missing asks" in run(root, "").stdout
    wrong = run(root, ASKING_VENDOR, "nowhere/*")
    assert wrong.exit_code == 1 and "is unknown" in wrong.output
    absent = run(root, ASKING_VENDOR.replace('"vendor"', '"absent"'), P)
    assert (
        absent.exit_code == 0
        and absent.stdout.startswith("Not counted (1 of 1):")
        and "'absent' is not in the registry" in absent.stdout
    )


def test_what_cannot_be_counted_is_a_row_with_a_reason(tmp_path):
    workspace = tiny.tiny_workspace(tmp_path, settings=FEW + ASKING)
    workspace._language_models["scripted"] = Scripted()
    rows = list(estimate.estimate(workspace))
    assert len(rows) == 6 and all("has not been materialised" in row.problem for row in rows)
    assert estimate.total(rows)["not_counted"] == 6 and not list((tmp_path / "data").rglob("*.sqlite"))


# A sample of latents for explainers that ask ----------------------------------------------------------------------


def test_latents_outside_the_sample_are_rows_with_a_reason(root):
    settings = ASKING.replace('"null:llm"]', '"null:llm", "best_of_k"]').replace(
        "[detection]", "[detection]\nsample = 4"
    )
    few, more = (opened(root, settings.replace("llm.contexts", f"llm.sample = {n}\nllm.contexts")) for n in (6, 9))
    shown = {}
    for workspace, n in ((few, 6), (more, 9)):
        (row,) = rows_of(workspace, "explanations")
        assert row.latents == n and row.exact
        (outcome,) = workspace.materialise("explanations", [P], tiny.runner("explanations"))
        frame = outcome.version.read(schema.EXPLANATIONS)
        eligible = frame.filter(explainer="pattern")["latent"].n_unique()
        asked = frame.filter(explainer="llm").filter(pl.col("prompt_sha256").is_not_null())
        shown[n] = set(asked["latent"])
        assert len(shown[n]) == n
        for name in ("llm", "best_of_k", "null:llm"):
            mine = frame.filter(explainer=name)
            left = mine.filter(status="not_sampled")
            assert mine.height == eligible and left.height == 48 - n
            assert (left["reason"] != "").all() and (left["explanation"] == "").all()
        assert "not_sampled" not in set(frame.filter(explainer="pattern")["status"])
    assert shown[6] < shown[9]
    (outcome,) = few.materialise("explanations", [P], tiny.runner("explanations"))
    (row,) = rows_of(few, "detection_scores")
    assert row.latents == 4 and row.exact
    (outcome,) = few.materialise("detection_scores", [P], tiny.runner("detection_scores"))
    scores = outcome.version.read(schema.SCORES).filter(explainer="llm", judge="scripted", negatives="random")
    scored = scores.filter(status="ok")
    assert set(scored["latent"]) < shown[6] and scored.height == 4  # what is judged has been explained
    assert set(scores["status"]) <= {"ok", "not_sampled", "rare", "dead", "dense", "one_document"}


def test_language_models_judge_their_sample_and_other_judges_all(root):
    ok = {}
    for n in (3, 5):
        workspace = opened(root, ASKING.replace("[detection]", f"[detection]\nllm.sample = {n}"))
        assert not [o.error for o in tiny.run_all(workspace, ["explanations"]) if o.error]
        (row,) = rows_of(workspace, "detection_scores")
        assert row.latents == n
        (outcome,) = workspace.materialise("detection_scores", [P], tiny.runner("detection_scores"))
        scores = outcome.version.read(schema.SCORES).filter(explainer="pattern", negatives="random")
        of_model, executed = scores.filter(judge="scripted"), scores.filter(judge="executed")
        ok[n] = set(of_model.filter(status="ok")["latent"])
        assert len(ok[n]) == n and "not_sampled" not in set(executed["status"])
        assert of_model.filter(status="not_sampled").height == executed.filter(status="ok").height - n
    assert ok[3] < ok[5]


def test_an_estimate_is_of_the_sample_alone(root, vendor):
    (row,) = rows_of(vendor, "explanations")
    few = opened(root, ASKING_VENDOR + "llm.sample = 5\n")
    (less,) = rows_of(few, "explanations")
    assert less.latents == less.requests == 5 and less.exact == row.exact
    assert less.prompt_tokens < row.prompt_tokens / 8
