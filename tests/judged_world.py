"""The tiny world, explained and judged by a scripted language model behind a real HTTP server.

What belongs here: what experiments with such a server share, whatever they do to it. The world is `tiny.py`, the stages
are the real ones, the server is `llm_server.py`, answered by `scripted_model.reader`.

How replies are told apart: a reply's `prompt_tokens` are the beginning of the hash of what was asked. So the reply
cache says itself which requests it has an answer to, and the server knows whether one of them was asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import tiny
from llm_server import completion
from scripted_model import is_repair, reader

from latentgloss.llm.database import Database
from latentgloss.llm.reply_cache import decoded
from latentgloss.pipeline.graph import STAGES
from latentgloss.protocols import Message, Request
from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from llm_server import Server

BEFORE = ("tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives")
UNREADABLE = 16
"""One first reply of so many cannot be read and is asked for again."""

SETTINGS = """
[explanations]
explainers = ["llm", "null:llm"]
nulls = {nulls}
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


def number_of(body: dict[str, Any]) -> int:
    """Of a request: the beginning of its hash."""
    return int(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8], 16) >> 1


def request_of(body: dict[str, Any]) -> Request:
    return Request(tuple(Message(m["role"], m["content"]) for m in body["messages"]), body["max_tokens"])


class Counting:
    """Answers as `reader` does, and counts requests by the number that their replies have as `prompt_tokens`."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.spoilt: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any]) -> Any:
        """What is said, which follows from the request."""
        request, number = request_of(body), number_of(body)
        self.asked[number] += 1
        text, ended = reader(request), "stop"
        if number % UNREADABLE == 0 and not is_repair(request):
            ways = unreadable(text)
            way = list(ways)[number // UNREADABLE % len(ways)]
            self.spoilt[way] += 1
            text, ended = ways[way]
        return completion(text, ended=ended, prompt=number)


def unreadable(text: str) -> dict[str, tuple[str, str]]:
    """A reply spoilt in the ways in which it cannot be read, each with what ended it."""
    twice = {"twice": (f"{text}\n{text}", "stop")}
    return {
        **({"wrong count": (text.replace("]", ", 1]"), "stop")} if text.startswith("[") else twice),
        "prose around it": (f"I would say: {text} That is all.", "stop"),
        "empty": ("", "stop"),
        "cut off": (text[:-1], "length"),
    }


def computed(folder: Path, settings: str) -> None:
    """Writes a world and computes all that needs no language model."""
    workspace = tiny.tiny_workspace(folder, settings=settings)
    for outcome in tiny.run_all(workspace, BEFORE):
        if outcome.error:
            raise outcome.error


def register(folder: Path, server: Server, *, in_flight: int, more: str = "") -> None:
    """Declares the server's model; `more`: what else is said of it."""
    path = folder / "registry" / "language_models" / "judge.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ENTRY.format(url=server.base_url, in_flight=in_flight) + more)


def explain_and_judge(workspace: Workspace, scorers: Sequence[str]) -> list[Exception]:
    """Runs the stages that ask, the scorers side by side as the assets run them. What failed."""
    partitions = workspace.partitions(STAGES["explanations"])
    for stages in (("explanations",), scorers):
        outcomes = list(workspace.materialise_together({stage: tiny.runner(stage) for stage in stages}, partitions))
        if errors := [outcome.error for outcome in outcomes if outcome.error]:
            return errors
    return []


def written(folder: Path) -> Counter[int]:
    """Numbers of the requests whose replies are in the store."""
    with closing(Database(folder / "data")) as database:
        return Counter(decoded(body).prompt_tokens for (body,) in database.rows("SELECT body FROM reply"))


def contents(folder: Path, stages: Iterable[str]) -> dict[str, str]:
    """What the stages made, by hashes of the tables."""
    workspace = Workspace.open(folder / "latentgloss.toml")
    return {
        f"{stage} of {partition}": version.manifest.data_version
        for stage in stages
        for partition in workspace.partitions(STAGES[stage])
        if (version := workspace.store.current(stage, partition)) is not None
    }
