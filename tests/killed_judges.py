"""kill -9, again and again, while a language model explains and judges; what was paid twice is counted by the server.

    repeatedly_killed(folder, kills, seed, judged)

What belongs here: the whole experiment, for the test and for the benchmark. The world is `judged_world.py`; its stages
run in a process that is killed and started again until they are done. A kill comes after a random number of requests
and a random part of a reply's time.
"""

from __future__ import annotations

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

import judged_world
import tiny
from judged_world import written
from llm_server import Server

from latentgloss.llm.database import Database
from latentgloss.llm.ledger import Ledger
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SCORERS = ("detection_scores", "fuzzing_scores")
STAGES_THAT_ASK = ("explanations", *SCORERS)
IN_FLIGHT = 8
DELAY_S = 0.02
"""Of a reply: slow enough that a kill finds requests under way."""

_FORK = multiprocessing.get_context("forkserver")
# All that a run imports, so that starting it again costs a fork.
_FORK.set_forkserver_preload(
    [
        "latentgloss.explanations.stages",
        "latentgloss.scores.stages",
        "latentgloss.llm.opening",
        "latentgloss.llm.engines.openai_compatible",
        "latentgloss.models.files",
        "openai.resources.chat.completions",
        "httpx2",
        "polars",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.configuration_llama",
        "transformers.tokenization_python",
        "killed_judges",
    ]
)


class Counting(judged_world.Counting):
    """Tells how many requests there were, to who is about to kill."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.more = threading.Condition()

    def __call__(self, body: dict[str, Any]) -> Any:
        with self.more:
            self.total += 1
            self.more.notify_all()
        return super().__call__(body)

    def wait_for(self, total: int, process: BaseProcess) -> None:
        """Until so many requests came in all, or the process ended."""
        with self.more:
            while self.total < total and process.is_alive():
                self.more.wait(0.05)


def run(config: Path) -> None:
    """Explains and judges, in this process; exit code 3 if a stage failed."""
    errors = judged_world.explain_and_judge(Workspace.open(config), SCORERS)
    print(*errors, flush=True)
    os._exit(3 if errors else 0)


def started(folder: Path) -> BaseProcess:
    child = _FORK.Process(target=run, args=(folder / "latentgloss.toml",))
    child.start()
    return child


def contents(folder: Path) -> dict[str, str]:
    return judged_world.contents(folder, STAGES_THAT_ASK)


def repeatedly_killed(folder: Path, kills: int, seed: int, judged: int) -> dict[str, Any]:
    """Kills a run `kills` times and compares what it ends with to an undisturbed one.

    `judged`: latents of each SAE that are judged. Raises AssertionError if a process ends by itself and not well.
    """
    made = folder / "made"
    judged_world.computed(made, tiny.SETTINGS + judged_world.SETTINGS.format(judged=judged, nulls=5))
    calm, killed = folder / "calm", folder / "killed"
    for copy in (calm, killed):
        shutil.copytree(made, copy)
    undisturbed = Counting()
    with Server(undisturbed) as server:
        judged_world.register(calm, server, in_flight=IN_FLIGHT)
        _end(started(calm))
    answer, draw = Counting(), random.Random(seed)
    most_lost = again = 0
    began = time.monotonic()
    with Server(answer, delay_s=DELAY_S) as server:
        judged_world.register(killed, server, in_flight=IN_FLIGHT)
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


def _end(child: BaseProcess) -> None:
    child.join(300)
    assert child.exitcode == 0, f"it ended with {child.exitcode}"
