"""Counts the prompt tokens that a server with a prefix cache computes per latent, for our prompts and for delphi's.

    python benchmarks/prompt_tokens.py      five minutes; needs `.bench/vllm-venv` (make test-vllm makes it) and, for
                                            delphi's prompts, `.bench/delphi-venv` (make bench-delphi makes it)

The server is a real vLLM with SmolLM2 on the CPU and its prefix cache enabled. Requests are those of `detection` and
`fuzzing` about the demo's latents, explained by `pattern`: one latent of a scorer after the other, 32 requests at once.
The first latent of each scorer fills the cache. The others are the steady state, and only they are counted.

- **computed**: prompt tokens minus hits of the prefix cache, per latent, from the server's own counters (`/metrics`).
  The counts in the replies must add up to the same.
- **by_blocks**: the same number for other block sizes, computed from the prompts' tokens (16 is the default on a GPU,
  128 on a CPU, where 32 is the minimum). For the server's own block size it can be compared with the measured number.
- **needed**: tokens of the contexts as quoted in these prompts, plus the explanation once per latent and scorer.
- **raw**: tokens of the same contexts in the corpus, which are the least that any form of quotation needs, plus the
  same explanation.

delphi's prompts are made by its own scorers (`delphi_prompts.py`) from the same contexts, marks and explanations, with
as many contexts per prompt and in the same order. Its `needed` refers to its own prompts. Replies are cut to one token.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import judge_prompts
import world
from environments import DELPHI, VLLM
from worker import Worker

from latentgloss.llm.engines.transformers import chat_tokens
from latentgloss.protocols import Message, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from judge_prompts import Asked
    from vllm_server import VllmServer

HERE = Path(__file__).resolve().parent
IN_FLIGHT = 32
BLOCKS = (16, 32, 128)
TASKS = ("detection", "fuzzing")


class Prompts:
    """The prompts of one latent and scorer: their messages, and the contexts and explanation in them."""

    def __init__(self, explanation: str) -> None:
        self.explanation = explanation
        self.messages: list[tuple[Message, ...]] = []
        self.contexts: list[str] = []

    def needed(self, count: Callable[[str], int]) -> int:
        """Tokens of the contexts, and of the explanation once."""
        return count(self.explanation) + sum(map(count, self.contexts))


def by_latent(asked: Sequence[Asked], task: str) -> list[list[Asked]]:
    """The questions of a scorer, grouped by latent, in their order."""
    of_task = [one for one in asked if one.question.task == task and one.requests]
    return [list(group) for _, group in groupby(of_task, key=lambda one: one.question.latent)]


def ours(questions: Sequence[Asked]) -> Prompts:
    """Our prompts for the questions about one latent."""
    made: Prompts | None = None
    for one in questions:
        for request in one.requests:
            first, _, *lines = request.messages[-1].content.splitlines()
            made = made or Prompts(first.removeprefix("Description: "))
            made.messages.append(request.messages)
            made.contexts += lines
    assert made
    return made


def delphis(latents: Sequence[Sequence[Asked]], model: Path, log: Path) -> list[Prompts]:
    """delphi's prompts for the same questions. Raises RuntimeError with delphi's log."""
    wanted = [
        [
            {
                "task": one.question.task,
                "explanation": one.question.explanation,
                "tokens": one.question.tokens[cut].tolist(),
                "marks": None if one.question.marks is None else one.question.marks[cut].tolist(),
            }
            for one in questions
            for cut in one.cuts
        ]
        for questions in latents
    ]
    asked = [one for questions in wanted for one in questions]
    with Worker([str(DELPHI.python), str(HERE / "delphi_prompts.py")], log, 1) as delphi:
        answers = iter(delphi.ask("prompts", model=str(model), asked=asked)["prompts"])
    found = []
    for questions in wanted:
        made = Prompts(questions[0]["explanation"])
        for _ in questions:
            answer = next(answers)
            made.messages.append(tuple(Message(m["role"], m["content"]) for m in answer["messages"]))
            made.contexts += answer["contexts"]
        found.append(made)
    return found


def blocks_computed(prompts: Sequence[Sequence[int]], known: set[int], size: int) -> int:
    """Tokens that a server computes for prompts that arrive one after another.

    `known` holds the blocks in its cache, each as a hash of the block and all blocks before it, and is updated. Only
    whole blocks at the beginning of a prompt are reused, and the last token of a prompt is always computed.
    """
    new = 0
    for prompt in prompts:
        beginnings = []
        before = 0
        for end in range(size, len(prompt) + 1, size):
            before = hash((before, tuple(prompt[end - size : end])))
            beginnings.append(before)
        most = (len(prompt) - 1) // size
        reused = next((i for i, block in enumerate(beginnings[:most]) if block not in known), most)
        known.update(beginnings)
        new += len(prompt) - reused * size
    return new


def measured(server: VllmServer, latents: Sequence[Prompts], tokenizer: Any) -> dict[str, Any]:
    """The steady state of one scorer: counts over all latents except the first, which is sent before."""

    def ask(prompts: Sequence[Prompts]) -> list[list[int]]:
        requests = [Request(messages, 1) for one in prompts for messages in one.messages]
        entry = judge_prompts.spec(server.base_url, IN_FLIGHT)
        answers = asyncio.run(judge_prompts.bare(server.base_url, judge_prompts.bodies(entry, requests), IN_FLIGHT))
        usage = [answer["usage"] for answer in answers]
        said.extend(((u.get("prompt_tokens_details") or {}).get("cached_tokens") or 0) for u in usage)
        tokens = [chat_tokens(tokenizer, request) for request in requests]
        assert [len(t) for t in tokens] == [u["prompt_tokens"] for u in usage], "the server tokenises otherwise"
        return tokens

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    said: list[int] = []
    server.forget()
    warm = ask(latents[:1])
    said.clear()
    before = _counters(server)
    steady = ask(latents[1:])
    total, hits = (after - b for after, b in zip(_counters(server), before, strict=True))
    assert total == sum(map(len, steady))
    assert hits == sum(said), "counters and replies disagree"
    blocks = {}
    for size in BLOCKS:
        known: set[int] = set()
        blocks_computed(warm, known, size)
        blocks[size] = blocks_computed(steady, known, size)
    return {
        "latents": len(latents) - 1,
        "prompts": len(steady),
        "contexts": sum(len(one.contexts) for one in latents[1:]),
        "prompt_tokens": total,
        "computed": total - hits,
        "by_blocks": blocks,
        "needed": sum(one.needed(count) for one in latents[1:]),
    }


def _counters(server: VllmServer) -> tuple[int, int]:
    """Prompt tokens since the server started, and how many of them its prefix cache had."""
    time.sleep(1)  # the counters lag behind the replies
    counters = server.counters()
    return round(counters["vllm:prompt_tokens_total"]), round(counters["vllm:prefix_cache_hits_total"])


def per_latent(found: dict[str, Any], raw: float) -> dict[str, Any]:
    """The counts of one scorer per latent, and the ratios of computed tokens to `needed` and `raw`."""
    n = found["latents"]
    return {
        "latents": n,
        "prompts_per_latent": round(found["prompts"] / n, 2),
        "contexts_per_latent": round(found["contexts"] / n, 2),
        "prompt_tokens": round(found["prompt_tokens"] / n),
        "computed": round(found["computed"] / n),
        "needed": round(found["needed"] / n),
        "computed_over_needed": round(found["computed"] / found["needed"], 3),
        "computed_over_raw": round(found["computed"] / raw, 3),
        "by_blocks_over_needed": {size: round(new / found["needed"], 3) for size, new in found["by_blocks"].items()},
        "by_blocks": {size: round(new / n) for size, new in found["by_blocks"].items()},
    }


def main(block_size: int) -> dict[str, Any]:
    """The counts of both scorers, for our prompts and, if delphi's environment exists, for delphi's."""
    from transformers import AutoTokenizer

    _, folder_of_model = judge_prompts.smollm2()
    tokenizer = AutoTokenizer.from_pretrained(str(folder_of_model))
    result: dict[str, Any] = {"block_size": block_size, "vllm": list(VLLM.packages[:2]), "delphi": DELPHI.alone[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = judge_prompts.asked(folder, TASKS)
        latents = {task: by_latent(asked, task) for task in TASKS}
        sides = {"ours": {task: [ours(questions) for questions in latents[task]] for task in TASKS}}
        if DELPHI.is_made():
            log = folder / "delphi.log"
            sides["delphi"] = {task: delphis(latents[task], folder_of_model, log) for task in TASKS}
        else:
            print(f"no {DELPHI.folder}: without delphi's prompts (make bench-delphi)", file=sys.stderr)
        raw = {}
        for task in TASKS:
            contexts = sum(one.question.tokens.size for questions in latents[task][1:] for one in questions)
            said = (questions[0].question.explanation for questions in latents[task][1:])
            raw[task] = contexts + sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in said)
        with judge_prompts.server(folder / "server.log", block_size) as server:
            for side, of_task in sides.items():
                found = {task: measured(server, of_task[task], tokenizer) for task in TASKS}
                result[side] = {task: per_latent(found[task], raw[task]) for task in TASKS}
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--block-size", type=int, default=32)
    world.record("llm-prompt-tokens", main(parser.parse_args().block_size))
