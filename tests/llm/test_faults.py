"""A server that misbehaves explains and judges: no reply lost, no latent without a row, the scores of a calm run.

The stages are the real ones, over the real client and HTTP (`judged_world.py`). Faults are drawn by seed and request,
so that a request meets the same ones whenever it is sent.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import judged_world
import polars as pl
import pytest
import tiny
from judged_world import Counting, contents, number_of, request_of, written
from llm_server import Fault, Server

from latentgloss import schema
from latentgloss.llm import opening
from latentgloss.llm.client import Client
from latentgloss.llm.health import TRIES
from latentgloss.scores.judges.language_model import prompt_number
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

SCORERS = ("detection_scores", "fuzzing_scores", "intruder_scores")
STAGES_THAT_ASK = ("explanations", *SCORERS)
JUDGED = {"detection_scores": 2, "fuzzing_scores": 2, "intruder_scores": 8}
"""Latents of each SAE that are judged."""
# Trials take more windows of a latent than what other scorers ask about.
SETTINGS = (
    tiny.SETTINGS.replace("test = 30\nmin_explain", "test = 80\nmin_explain")
    + judged_world.SETTINGS.format(judged=2, nulls=1)
    + '\n[intruder]\njudges = ["llm:judge"]\nsample = 8\n'
)
TIMEOUT_S = 3.0
STORM_S = 0.1
IN_FLIGHT = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world, before anything was asked."""
    folder = tmp_path_factory.mktemp("made") / "world"
    judged_world.computed(folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def calm(made: Path) -> tuple[Path, Counting]:
    """The world as a calm server explains and judges it, and what that was asked."""
    folder, answer = made.parent / "calm", Counting()
    shutil.copytree(made, folder)
    server = served(folder, answer)
    assert set(server.requests.values()) == {1} and server.answered == server.requests == answer.asked
    assert min(answer.spoilt[way] for way in judged_world.unreadable("[1]")) >= 3
    return folder, answer


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world, to be asked about by a client that does not wait long between attempts."""
    monkeypatch.setattr(opening, "Client", partial(Client, backoff_s=0.02))
    shutil.copytree(made, tmp_path / "world")
    return tmp_path / "world"


def served(folder: Path, answer: Counting, limits: str = "") -> Server:
    """Explains and judges; the server that was asked, which is closed."""
    with Server(answer, name=number_of) as server:
        judged_world.register(folder, server, in_flight=IN_FLIGHT, more=limits)
        workspace = Workspace.open(folder / "latentgloss.toml")
        try:
            assert judged_world.explain_and_judge(workspace, SCORERS) == []
        finally:
            model = workspace.language_model("judge")
            assert isinstance(model, Client)
            model.close()
    return server


def table(folder: Path, stage: str, of: schema.Table) -> pl.DataFrame:
    """Of all SAEs, with a column `sae`."""
    store = Workspace.open(folder / "latentgloss.toml").store
    versions = {sae: store.current(stage, sae) for sae in tiny.SAES}
    frames = [v.read(of).select(pl.lit(sae).alias("sae"), pl.all()) for sae, v in versions.items() if v is not None]
    assert len(frames) == len(tiny.SAES)
    return pl.concat(frames).sort("sae", *of.key)


class Faulty(Counting):
    """Answers as a calm server would, after up to two faults that a request meets at its first attempts.

    A storm of 429 refuses whatever comes, and is none of a request's attempts.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.met: Counter[str] = Counter()
        self.attempts: Counter[int] = Counter()
        self.storm_until = 0.0

    def __call__(self, body: dict[str, Any]) -> Any:
        answer, number = super().__call__(body), number_of(body)
        if time.monotonic() < self.storm_until:
            self.met["refused by a storm"] += 1
            return Fault(status=429, headers=(("retry-after", "0.05"),))
        faults = faults_of(answer)
        kinds = self.drawn(number, faults)
        attempt = self.attempts[number]
        self.attempts[number] += 1
        if attempt >= len(kinds):
            return answer
        kind = kinds[attempt]
        self.met[kind] += 1
        if kind == "storm":
            self.storm_until = time.monotonic() + STORM_S
        return faults[kind]

    def drawn(self, number: int, faults: dict[str, Fault]) -> list[str]:
        """At most one of those that may take as long as a time-out: of two the client gives a request up."""
        draw = random.Random(f"{self.seed} {number}")
        waiting = draw.choice(WAITING)
        kinds = [kind for kind in faults if kind not in WAITING or kind == waiting]
        return draw.sample(kinds, draw.choice((0, 0, 1, 2)))


WAITING = ("hangs", "too slow", "slow")
BILLED = ("reset", "reset in the body", "closed in the body", "truncated JSON", "empty body", "hangs", "too slow")
"""After these nobody knows whether the reply must be paid for."""


def faults_of(answer: dict[str, Any]) -> dict[str, Fault]:
    """How an answer may be kept from arriving, or late."""
    whole = json.dumps(answer).encode()
    half = len(whole) // 2
    return {
        "storm": Fault(status=429, headers=(("retry-after", "0.1"),)),
        "busy": Fault(status=429),
        "500": Fault(status=500),
        "503": Fault(status=503, headers=(("retry-after", "0.02"),)),
        "reset": Fault(reset=True),
        "reset in the body": Fault(reset=True, cut=half, answer=answer),
        "closed in the body": Fault(cut=half, answer=answer),
        "truncated JSON": Fault(raw=whole[:half]),
        "empty body": Fault(raw=b""),
        "hangs": Fault(hang=True),
        "too slow": Fault(trickle_s=10 * TIMEOUT_S / len(whole), answer=answer),
        "slow": Fault(trickle_s=TIMEOUT_S / 40, piece=len(whole) // 8, answer=answer),
    }


def test_faults_lose_no_reply_and_no_row_and_change_no_score(calm: tuple[Path, Counting], folder: Path) -> None:
    quiet, undisturbed = calm
    answer = Faulty(seed=1)
    server = served(folder, answer, f"timeout_s = {TIMEOUT_S}\n")
    assert all(answer.met[kind] >= 3 for kind in faults_of({})), answer.met
    assert answer.met["refused by a storm"] >= IN_FLIGHT
    # The ledger has an entry per reply, and one per attempt that may have been billed without one. On a busy machine
    # there are a few more of these: whatever comes later than the time-out is asked for again.
    totals = Workspace.open(folder / "latentgloss.toml").ledger.totals()
    late = sum(total["unanswered"] for total in totals) - sum(answer.met[kind] for kind in BILLED)
    assert 0 <= late <= 40  # how many depends on the load of the machine
    assert sum(total["answered"] for total in totals) == len(server.answered) >= server.answered.total() - late
    # No reply is lost: each that was sent whole is kept, once, and they are those of the calm run.
    assert answer.asked.keys() == undisturbed.asked.keys() == server.answered.keys()
    assert Counter(server.answered.keys()) == written(folder) == written(quiet)
    assert contents(folder, STAGES_THAT_ASK) == contents(quiet, STAGES_THAT_ASK)
    every_latent_has_its_rows(folder)


def every_latent_has_its_rows(folder: Path) -> None:
    """Whether it was asked about or not; and where it was, something came of it."""
    everyone = table(folder, "sampled_contexts", schema.ELIGIBILITY)
    eligible = everyone.filter(status="eligible").select("sae", "latent")
    assert set(eligible["sae"]) == set(tiny.SAES)
    for stage in STAGES_THAT_ASK:
        of = schema.EXPLANATIONS if stage == "explanations" else schema.SCORES
        rows = table(folder, stage, of).partition_by("explainer", *{"negatives"}.intersection(of.key))
        for mine in rows:
            assert mine.select("sae", "latent").equals(everyone.select("sae", "latent"))
            asked = mine.join(eligible, on=["sae", "latent"]).filter(pl.col("status") != "not_sampled")
            assert asked.height == (len(tiny.SAES) * JUDGED[stage] if stage in JUDGED else eligible.height)
            explainer = mine["explainer"][0]
            assert "ok" in set(asked["status"]), "some nulls have no partner, some latents too few windows for trials"
            assert explainer != "llm" or set(asked["status"]) == {"ok"}
        if stage != "explanations":
            assert set(table(folder, stage, schema.JUDGEMENTS)["status"]) <= {"ok", "no_donor"}


class Failing(Counting):
    """Answers as a calm server would, but for some prompts, which it never answers."""

    def __init__(self, prompts: set[int]) -> None:
        super().__init__()
        self.prompts = prompts
        self.failed: Counter[int] = Counter()

    def __call__(self, body: dict[str, Any]) -> Any:
        answer, prompt = super().__call__(body), prompt_number(request_of(body))
        if prompt not in self.prompts:
            return answer
        self.failed[prompt] += 1
        return Fault(status=500, message="it is too much")


def test_requests_that_always_fail_are_rows_that_say_so_and_change_no_other(
    calm: tuple[Path, Counting], folder: Path
) -> None:
    quiet, _ = calm
    explained = table(quiet, "explanations", schema.EXPLANATIONS)
    judged = table(quiet, "detection_scores", schema.SCORES).filter(explainer="llm", status="ok")
    # A latent that is nobody's partner, else the nulls of others change with it.
    partners = explained.select("sae", latent="source_latent")
    sae, latent = judged.join(partners, on=["sae", "latent"], how="anti").select("sae", "latent").row(0)
    of_latent = (pl.col("sae") == sae) & (pl.col("latent") == latent)
    (unexplained,) = explained.filter(of_latent, explainer="llm")["prompt_sha256"]
    prompts = {int(unexplained[:15], 16)}
    for stage in SCORERS:  # of the SAE that is judged first: while these are tried again, others are answered
        judged = table(quiet, stage, schema.JUDGEMENTS).filter(~of_latent, sae=tiny.SPARSIFY, status="ok")
        asked = judged["prompt"].unique().sort()
        prompts.update(asked.gather_every(asked.len() // 4).to_list())
    answer = Failing(prompts)
    served(folder, answer, f"patience_s = {TIMEOUT_S}\n")
    assert answer.failed.keys() == prompts and min(answer.failed.values()) >= TRIES

    before, now = (table(where, "explanations", schema.EXPLANATIONS) for where in (quiet, folder))
    assert now.filter(~of_latent).equals(before.filter(~of_latent))
    failed = now.filter(of_latent)
    assert set(failed["status"]) == {"llm_error"} and set(failed["explanation"]) == {""}
    assert failed["reason"].str.contains("HTTP 500: it is too much").all()
    for stage in SCORERS:
        gone = of_latent if stage != "intruder_scores" else pl.lit(False)
        lost = judgements_but_for(quiet, folder, stage, gone, prompts)
        scores_but_for(quiet, folder, stage, gone, lost)


def judgements_but_for(quiet: Path, folder: Path, stage: str, gone: pl.Expr, prompts: set[int]) -> pl.DataFrame:
    """Checks that those of `prompts`, and they alone, are errors, and returns them."""
    before, now = (table(where, stage, schema.JUDGEMENTS) for where in (quiet, folder))
    of_prompts = pl.col("prompt").is_in(list(prompts))
    assert now.filter(gone).is_empty()
    assert now.filter(~of_prompts).equals(before.filter(~of_prompts & ~gone))
    lost, there = now.filter(of_prompts), before.filter(of_prompts)
    key = schema.JUDGEMENTS.key
    assert lost.height >= 3 and lost.select("sae", *key).equals(there.select("sae", *key))
    assert set(lost["status"]) == {"llm_error"} and set(there["status"]) == {"ok"}
    assert lost["reason"].str.contains("HTTP 500: it is too much").all()
    for column in ("prediction", "evidence", "probability"):
        assert lost[column].is_null().all(), "nothing is counted as a number"
    return lost


def scores_but_for(quiet: Path, folder: Path, stage: str, gone: pl.Expr, lost: pl.DataFrame) -> None:
    """Checks that those with lost judgements say how many they are without, and all others are the same."""
    # Specificity is the distance from null scores, which may have lost some: it is no number of this row's judgements.
    before, now = (table(where, stage, schema.SCORES).drop("specificity") for where in (quiet, folder))
    key = ["sae", "latent", "explainer", "negatives"]
    judged_together = 5 if stage == "intruder_scores" else 1  # a trial has five windows
    less = lost.group_by(key).agg(lost=pl.len() // judged_together)
    of_all_arms = less.select(*key[:3], negatives=pl.lit(schema.POPULATION)).unique()
    touched = pl.concat([less.select(key), of_all_arms])
    before_others, others = (scores.filter(~gone).join(touched, on=key, how="anti") for scores in (before, now))
    assert others.equals(before_others) and not others.is_empty()
    with_less = now.join(less, on=key).join(before.select(*key, n_before="n", coverage_before="coverage"), on=key)
    assert with_less.height == less.height and "ok" in set(with_less["status"])
    assert (with_less["n"] == with_less["n_before"] - with_less["lost"]).all()
    assert (with_less["coverage"] < with_less["coverage_before"]).all()
    unscored = now.filter(gone)
    assert set(unscored["status"]) <= {"no_explanation"} and unscored["score"].is_null().all()
    assert unscored["reason"].str.contains("HTTP 500: it is too much").all()
