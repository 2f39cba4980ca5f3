"""Measures how busy a server is kept when only a few latents of each block are sampled (three minutes).

    python benchmarks/saturation.py [--blocks 64] [--sample 128] [--in-flight 64] [--delay .5]

An SAE has many blocks of 256 latents. A sample of its latents is explained and then judged by `detection` and `fuzzing`
together, as the assets do it (`workspace/materialise.py`). The server is a separate process that answers every request
after `--delay` seconds. **Mean in flight** is the average number of requests at the server between the first request of
a stage and its last; `--in-flight` is the maximum. For comparison, the result has the time that a stage would take if
the maximum were always in flight.

The world is `tests/tiny.py` with a wide SAE; the stages and the client are the real ones. Preparation is not measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout instead of an installed package, and its test world

import tiny  # noqa: E402
import world  # noqa: E402

from latentgloss.workspace import Workspace  # noqa: E402

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SAE = "tiny/layers.0/wide"
BEFORE = ("tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives")
SCORERS = ("detection_scores", "fuzzing_scores")
ENTRY = """name = "judge"
engine = "openai_compatible"
model = "judge"
base_url = "{url}"
in_flight = {in_flight}
"""


def _serve(port: Connection, delay: float) -> None:
    """Answers requests until a false message arrives.

    After each true message, it reports the requests since the last one, the seconds that they spent at the server in
    total, and the times of the first and the last.
    """
    from llm_server import Server
    from scripted_model import reader

    from latentgloss.protocols import Message, Request

    def answer(body: dict[str, Any]) -> str:
        messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        return str(reader(Request(messages, body["max_tokens"])))

    with Server(answer, delay_s=delay) as server:
        port.send(server.base_url)
        while port.recv():
            port.send((sum(server.requests.values()), server.request_seconds, server.first, server.last))
            server.request_seconds, server.first = 0.0, 0.0
            server.requests.clear()


def measure(blocks: int, sample: int, in_flight: int, delay: float) -> dict[str, Any]:
    """Requests, their mean number in flight, and seconds: of explaining, and of both scorers together."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, delay), daemon=True)
    process.start()
    url = ours.recv()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.write_sparse(folder, SAE, 256 * blocks, sample)
        (folder / "registry" / "language_models").mkdir()
        entry = ENTRY.format(url=url, in_flight=in_flight)
        (folder / "registry" / "language_models" / "judge.toml").write_text(entry)
        workspace = Workspace.open(folder / "latentgloss.toml")
        tiny.run_all(workspace, BEFORE)
        found: dict[str, Any] = {}
        for stages in (("explanations",), SCORERS):
            began = time.monotonic()
            _run(workspace, stages)
            took = time.monotonic() - began
            ours.send(True)
            requests, busy, first, last = ours.recv()
            found[" and ".join(stages)] = {
                "requests": requests,
                "mean_in_flight": round(busy / (last - first), 1),
                "seconds": round(took, 2),
                "seconds_if_always_saturated": round(requests * delay / in_flight, 2),
            }
        workspace.language_model("judge").close()  # type: ignore[attr-defined]
    ours.send(False)
    process.join(10)
    return found


def _run(workspace: Workspace, stages: tuple[str, ...]) -> None:
    outcomes = workspace.materialise_together({name: tiny.runner(name) for name in stages}, [SAE])
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--sample", type=int, default=128)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--delay", type=float, default=0.5)
    parser.add_argument("--print", action="store_true", help="record nothing")
    given = parser.parse_args()
    result = measure(given.blocks, given.sample, given.in_flight, given.delay)
    about = {"blocks": given.blocks, "sample": given.sample, "in_flight": given.in_flight, "delay_s": given.delay}
    print({**about, "stages": result}) if given.print else world.record("saturation", {**about, "stages": result})
