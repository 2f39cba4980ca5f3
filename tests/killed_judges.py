"""kill -9, again and again, while a language model explains and judges; what was paid twice is counted by the server.

    repeatedly_killed(folder, kills, seed, judged)

What belongs here: the whole experiment, for the test and for the benchmark. The world is `tiny.py`, the stages are the
real ones, in a process that is killed and started again until they are done; the server is `llm_server.py`, answered by
`scripted_model.reader`. A kill comes after a random number of requests and a random part of a reply's time.

How replies are told apart: a reply's `prompt_tokens` are the beginning of the hash of what was asked. So the reply
cache says itself which requests it has an answer to, and the server knows whether one of them was asked again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny
from llm_server import Server, completion
from scripted_model import reader

from latentgloss.llm.database import Database
from latentgloss.llm.ledger import Ledger
from latentgloss.llm.reply_cache import decoded
from latentgloss.protocols import Message, Request
from latentgloss.scoring import together
from latentgloss.stages import STAGES
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SCORERS = ("detection_scores", "fuzzing_scores")
"""Side by side, as the assets run them."""
STAGES_THAT_ASK = ("explanations", *SCORERS)
BEFORE = ("tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives")
IN_FLIGHT = 8
DELAY_S = 0.02
"""Of a reply: slow enough that a kill finds requests under way."""
UNREADABLE = 16
"""One first reply of so many cannot be read and is asked for again."""

SETTINGS = """
[explanations]
explainers = ["llm", "null:llm"]
model = "judge"
llm.contexts = 12

[detection]
judges = ["llm:judge"]
sample = {judged}

[fuzzing]
judges = ["llm:judge"]
sample = {judged}

[budget]
usd = 1000
"""
ENTRY = """name = "judge"
engine = "openai_compatible"
model = "judge"
base_url = "{url}"
in_flight = {in_flight}
paid = true
prices = {{ prompt = 0, completion = 1 }}
"""

_FORK = multiprocessing.get_context("forkserver")
# All that a run imports, so that starting it again costs a fork.
_FORK.set_forkserver_preload(
    ["latentgloss.explanations", "latentgloss.scores", "latentgloss.llm.models", "latentgloss.llm.openai_compatible",
     "latentgloss.subject_files", "openai.resources.chat.completions", "httpx2", "polars",
     "transformers.models.auto.tokenization_auto", "transformers.models.llama.configuration_llama",
     "transformers.tokenization_python", "killed_judges"]
)  # fmt: skip


class Counting:
    """Answers as `reader` does, and counts requests by the number that their replies have as `prompt_tokens`."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.total = 0
        self.more = threading.Condition()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        number = int(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8], 16) >> 1
        with self.more:
            self.asked[number] += 1
            self.total += 1
            self.more.notify_all()
        request = Request(tuple(Message(m["role"], m["content"]) for m in body["messages"]), body["max_tokens"])
        repair = request.messages[-1].content.startswith("That could not be read")
        text = "what?" if number % UNREADABLE == 0 and not repair else reader(request)
        return completion(text, prompt=number)

    def wait_for(self, total: int, process: BaseProcess) -> None:
        """Until so many requests came in all, or the process ended."""
        with self.more:
            while self.total < total and process.is_alive():
                self.more.wait(0.05)


def run(config: Path) -> None:
    """Explains and judges, in this process; exit code 3 if a stage failed."""
    workspace = Workspace.open(config)
    partitions = workspace.partitions(STAGES["explanations"])
    for stages in (("explanations",), SCORERS):
        outcomes = list(together(workspace, {stage: tiny.runner(stage) for stage in stages}, partitions))
        if any(outcome.error for outcome in outcomes):
            print(*(outcome.error for outcome in outcomes if outcome.error))
            os._exit(3)
    os._exit(0)


def started(folder: Path) -> BaseProcess:
    child = _FORK.Process(target=run, args=(folder / "latentgloss.toml",))
    child.start()
    return child


def written(folder: Path) -> Counter[int]:
    """Numbers of the requests whose replies are in the store."""
    with closing(Database(folder / "data")) as database:
        return Counter(decoded(body).prompt_tokens for (body,) in database.rows("SELECT body FROM reply"))


def contents(folder: Path) -> dict[str, str]:
    """What the stages made, by hashes of the tables."""
    workspace = Workspace.open(folder / "latentgloss.toml")
    return {
        f"{stage} of {partition}": version.manifest.data_version
        for stage in STAGES_THAT_ASK
        for partition in workspace.partitions(STAGES[stage])
        if (version := workspace.store.current(stage, partition)) is not None
    }


def repeatedly_killed(folder: Path, kills: int, seed: int, judged: int) -> dict[str, Any]:
    """Kills a run `kills` times and compares what it ends with to an undisturbed one.

    `judged`: latents of each SAE that are judged. Raises AssertionError if a process ends by itself and not well.
    """
    made = folder / "made"
    workspace = tiny.tiny_workspace(made, settings=tiny.SETTINGS + SETTINGS.format(judged=judged))
    for outcome in tiny.run_all(workspace, BEFORE):
        if outcome.error:
            raise outcome.error
    calm, killed = folder / "calm", folder / "killed"
    for copy in (calm, killed):
        shutil.copytree(made, copy)
    undisturbed = Counting()
    with Server(undisturbed) as server:
        _register(calm, server)
        _end(started(calm))
    answer, draw = Counting(), random.Random(seed)
    most_lost = again = 0
    began = time.monotonic()
    with Server(answer, delay_s=DELAY_S) as server:
        _register(killed, server)
        for left in range(kills, 0, -1):
            there = written(killed)
            before = Counter(answer.asked)
            remaining = len(undisturbed.asked) - len(there)
            child = started(killed)
            answer.wait_for(answer.total + draw.randint(1, max(1, int(1.6 * remaining / (left + 1)))), child)
            time.sleep(draw.random() * 2 * DELAY_S)
            assert child.pid is not None and child.is_alive(), "it was done before it was to be killed"
            os.kill(child.pid, signal.SIGKILL)
            child.join(60)
            time.sleep(2 * DELAY_S)  # what the dead process sent last has arrived by now
            asked = answer.asked - before
            again += sum(n for number, n in asked.items() if number in there)
            most_lost = max(most_lost, len(asked.keys() - written(killed).keys()))
        there, before = written(killed), Counter(answer.asked)
        _end(started(killed))
        again += sum(n for number, n in (answer.asked - before).items() if number in there)
        seconds = time.monotonic() - began
    with closing(Database(killed / "data")) as database:
        totals = Ledger(database).totals()
    replies = written(killed)
    return {
        "kills": kills,
        "seed": seed,
        "latents_judged_per_sae": judged,
        "requests": len(undisturbed.asked),
        "same_requests": undisturbed.asked.keys() == answer.asked.keys(),
        "same_tables": contents(killed) == contents(calm),
        "tables": len(contents(calm)),
        "each_reply_kept_once": set(replies.values()) == {1} and replies.keys() == answer.asked.keys(),
        "written_and_paid_again": again,
        "unwritten_and_paid_again": answer.total - len(answer.asked),
        "most_lost_in_a_kill": most_lost,
        "in_flight": IN_FLIGHT,
        "ledger_answered": sum(total["answered"] for total in totals),
        "ledger_unanswered": sum(total["unanswered"] for total in totals),
        "seconds": round(seconds, 1),
    }


def _register(folder: Path, server: Server) -> None:
    path = folder / "registry" / "language_models" / "judge.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ENTRY.format(url=server.base_url, in_flight=IN_FLIGHT))


def _end(child: BaseProcess) -> None:
    child.join(300)
    assert child.exitcode == 0, f"it ended with {child.exitcode}"
