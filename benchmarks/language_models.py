"""Measures what our client adds to the cost of a language model, compared with bare HTTP.

    python benchmarks/language_models.py client       a minute
    python benchmarks/language_models.py throughput   six minutes; needs `.bench/vllm-venv` (make test-vllm makes it)

- **client**: CPU time of this process per request. The server runs in another process and answers at once; prompts are
  as long as a judge's. It is compared with bare HTTP (`httpx2`, JSON written and read, equally many requests at once).
  The CPU time of a reply from the cache is measured, too.
- **throughput**: requests per second to a real vLLM with SmolLM2 on the CPU. Requests are those of `detection` about
  the demo's latents, explained by `pattern`. Our client (with ledger and an empty reply cache) is compared with bare
  HTTP that sends the same bodies, 32 requests at once. The server's prefix cache is emptied before each run. Pairs of
  runs are interleaved in alternating order.

`prompt_tokens.py` measures what prompts cost the server.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import judge_prompts  # puts this checkout and its tests on the path; the fake server belongs to the tests
import world
from environments import VLLM

from latentgloss.llm.client import Client
from latentgloss.llm.database import Database
from latentgloss.llm.engines.openai_compatible import OpenAICompatible
from latentgloss.llm.ledger import Ledger
from latentgloss.llm.reply_cache import ReplyCache
from latentgloss.protocols import Message, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from vllm_server import VllmServer

    from latentgloss.config.entries import LanguageModelSpec

IN_FLIGHT = 32


# -- client ------------------------------------------------------------------------------------------------------------


def _fake_server(port: Connection) -> None:
    from llm_server import Server

    with Server(lambda body: "[1, 0, 1, 0, 0]") as server:
        port.send(server.base_url)
        port.recv()


def client_cost(n: int, in_flight: int) -> dict[str, Any]:
    """Milliseconds of CPU time per request: our client, bare HTTP, and replies from the cache."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_fake_server, args=(theirs,), daemon=True)
    process.start()
    url = ours.recv()
    spec = judge_prompts.spec(url, in_flight)
    requests = [Request((Message("user", f"{i} " + "words " * 600),), 20) for i in range(n)]
    pairs, cached = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            _ask(spec, requests, Path(folder))
            asked = time.process_time()
            _ask(spec, requests, Path(folder))
            cached.append((time.process_time() - asked) / n * 1000)
        bodies = judge_prompts.bodies(spec, requests)
        again = time.process_time()
        asyncio.run(judge_prompts.bare(url, bodies, in_flight))
        pairs.append(((asked - began) / n * 1000, (time.process_time() - again) / n * 1000))
    ours.send("done")
    process.join(10)
    return {
        "requests": n,
        "in_flight": in_flight,
        "client_cpu_ms_per_request": round(statistics.median(o for o, _ in pairs), 3),
        "bare_http_cpu_ms_per_request": round(statistics.median(b for _, b in pairs), 3),
        "cached_reply_cpu_ms": round(statistics.median(cached), 3),
    }


def _ask(spec: LanguageModelSpec, requests: Sequence[Request], store: Path) -> list[Reply]:
    """Sends requests through our client, with the reply cache and ledger of this store."""
    database = Database(store)
    client = Client(spec, lambda: OpenAICompatible(spec), ReplyCache(database), Ledger(database))
    try:
        return list(client.complete(requests))
    finally:
        client.close()
        database.close()


# -- throughput --------------------------------------------------------------------------------------------------------


def throughput(server: VllmServer, requests: Sequence[Request], pairs: int) -> dict[str, Any]:
    """Requests per second of our client and of bare HTTP, and the ratio of the two."""
    spec = judge_prompts.spec(server.base_url, IN_FLIGHT)
    bodies = judge_prompts.bodies(spec, requests)

    def bare() -> float:
        began = time.perf_counter()
        asyncio.run(judge_prompts.bare(server.base_url, bodies, IN_FLIGHT))
        return time.perf_counter() - began

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            replies = _ask(spec, requests, Path(folder))
            seconds = time.perf_counter() - began
        assert all(reply.status == "ok" and not reply.from_cache for reply in replies)
        return seconds

    bare()  # warm-up of both
    ours()
    took = []
    for number in range(pairs):
        pair = {}
        for name, side in [("ours", ours), ("bare", bare)][:: 1 if number % 2 else -1]:
            server.forget()
            pair[name] = side()
        took.append(pair)
    ratios = [p["bare"] / p["ours"] for p in took]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ours_requests_per_s": round(len(requests) / statistics.median(p["ours"] for p in took), 2),
        "bare_requests_per_s": round(len(requests) / statistics.median(p["bare"] for p in took), 2),
        "requests": len(requests),
        "in_flight": IN_FLIGHT,
    }


def against_vllm(pairs: int, most: int) -> dict[str, Any]:
    """`throughput` against a vLLM server, with at most `most` requests of a judge, and the load of the machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = judge_prompts.asked(folder, ("detection",))
        requests = [request for one in asked for request in one.requests][:most]
        with judge_prompts.server(folder / "server.log") as running:
            load = os.getloadavg()[0]
            found = throughput(running, requests, pairs)
    return {**found, "load_before": load, "load_after": os.getloadavg()[0], "vllm": list(VLLM.packages[:2])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("client", "throughput"))
    parser.add_argument("--requests", type=int, help="2000 of the client, 64 of vLLM")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what in (None, "client"):
        world.record("llm-client", client_cost(arguments.requests or 2000, 64))
    if arguments.what in (None, "throughput"):
        world.record("llm-throughput", against_vllm(arguments.pairs, arguments.requests or 64))
