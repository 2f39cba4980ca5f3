"""Measures the memory of explaining and judging with a language model, from 100 to 100,000 latents (15 minutes).

    python benchmarks/asking_memory.py [--latents 100 1000 10000 100000]

Measured is the peak resident memory (VmHWM) of a fresh process that runs the real stage `explanations` or
`detection_scores` of one SAE. The stage reads evidence and contexts block by block from the store, makes prompts, sends
them through `llm/asking.py` and the real client with reply cache and ledger, parses the replies, and writes its tables.
The explainer `llm` sends one request per latent, the judge sends two. Instead of a server, an engine in the process
answers at once. This gives the highest rate of replies and leaves out the HTTP client, whose memory
tests/llm/test_client.py measures.

The world is `tests/tiny.py` with a wide SAE, in which each latent represents one word and has its own samples.
Preparation (corpus to contexts) runs in a separate process and is not measured.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout instead of an installed package, and its test world

import tiny  # noqa: E402
import world  # noqa: E402

from latentgloss.protocols import Reply, Request  # noqa: E402

if TYPE_CHECKING:
    from latentgloss.workspace import Workspace

BEFORE = ("tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives")
ASKING = ("explanations", "detection_scores")
SAE = "tiny/layers.0/wide"
IN_FLIGHT = 64
SETTINGS = """store = "data"
[contexts]
length = 16
explain = 40
select = 0
test = 10
min_explain = 5
min_test = 5
min_test_documents = 2
[negatives]
strata = ["random"]
explain = 5
select = 0
test = 10
[explanations]
explainers = ["llm"]
model = "instant"
llm.contexts = 5
llm.sample = "all"
[detection]
judges = ["llm:instant"]
llm.per_prompt = 10
llm.sample = "all"
[machine]
device = "cpu"
threads = 1
workers = 1
"""
_PASSAGE = re.compile(r"^\d+\. ", re.MULTILINE)


class Instant:
    """An engine that answers at once, with different replies to different requests."""

    async def answer(self, request: Request) -> Reply:
        """A list of verdicts to a judge's prompt, a sentence to an explainer's."""
        text = request.messages[-1].content
        if text.startswith("Description"):
            said = str([hash((i, text)) & 1 for i in range(len(_PASSAGE.findall(text)))])
        else:
            said = f"EXPLANATION: Number {hash(text) & 0xFFFFF}."
        return Reply("ok", text=said, prompt_tokens=len(text) // 4, completion_tokens=16)

    async def close(self) -> None:
        """Nothing to release."""


def prepare(folder: Path, latents: int) -> None:
    """Writes a world and runs its stages up to `sampled_negatives`."""
    workspace = tiny.tiny_workspace(folder, settings=SETTINGS)
    for path in (folder / "registry" / "saes").glob("*.toml"):
        path.unlink()
    tiny.write_wide(folder, SAE, latents)
    _materialise(type(workspace).open(folder / "latentgloss.toml"), BEFORE)


def ask(folder: Path, stage: str) -> dict[str, Any]:
    """Runs one stage with the real client over the instant engine. Returns peak memory, requests and seconds."""
    from latentgloss.config.entries import LanguageModelSpec
    from latentgloss.llm.client import Client
    from latentgloss.workspace import Workspace

    workspace = Workspace.open(folder / "latentgloss.toml")
    spec = LanguageModelSpec.model_validate(
        {
            "name": "instant",
            "engine": "openai_compatible",
            "model": "instant",
            "base_url": "http://127.0.0.1:9/v1",
            "in_flight": IN_FLIGHT,
        }
    )
    client = Client(spec, Instant, workspace.replies, workspace.ledger)
    workspace._language_models["instant"] = client
    began = time.monotonic()
    _materialise(workspace, (stage,))
    seconds = time.monotonic() - began
    client.close()
    (total,) = (t for t in workspace.ledger.totals() if t["stage"] == stage)
    return {"peak_rss_mib": round(_peak_kib() / 1024), "requests": total["answered"], "seconds": round(seconds, 1)}


def _materialise(workspace: Workspace, stages: tuple[str, ...]) -> None:
    for outcome in tiny.run_all(workspace, stages):
        if outcome.error:
            raise outcome.error


def _peak_kib() -> int:
    """Peak memory of this process since it began its program. `ru_maxrss` would include the process that forked it."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1])


def _in_a_process(what: str, folder: Path, latents: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--run", what, "--folder", str(folder), "--latents", str(latents)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(sizes: list[int]) -> dict[str, Any]:
    """Peak memory of both stages for each number of latents, each in a fresh process."""
    peaks: dict[str, dict[str, Any]] = {stage: {} for stage in ASKING}
    for latents in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _in_a_process("prepare", folder, latents)
            for stage in ASKING:
                peaks[stage][str(latents)] = found = _in_a_process(stage, folder, latents)
                print(f"{stage} of {latents:,} latents: {found}", file=sys.stderr, flush=True)
    first, last = (str(size) for size in (sizes[0], sizes[-1]))
    ratios = {s: round(of[last]["peak_rss_mib"] / of[first]["peak_rss_mib"], 3) for s, of in peaks.items()}
    return {"in_flight": IN_FLIGHT, "peaks": peaks, "ratio_of_most_to_fewest": ratios}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--latents", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--run", choices=("prepare", *ASKING), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run == "prepare":
        prepare(arguments.folder, *arguments.latents)
        print("{}")
    elif arguments.run:
        print(json.dumps(ask(arguments.folder, arguments.run)))
    else:
        world.record("asking-memory", measure(arguments.latents))
