"""delphi's side of `prompt_tokens.py`, which runs in delphi's own environment, without any of our packages.

Prompts are made by delphi's code: `examples_to_samples` makes the text of a context, and `_build_prompt` of its scorer
makes the messages. The caller gives the explanation, and the contexts with their marks, order and distribution over
prompts.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from worker import serve

_FOUND = find_spec("delphi")
assert _FOUND
assert _FOUND.submodule_search_locations
for _name in ("clients", "scorers"):
    # The `__init__` of these packages imports every client and scorer, and with them vLLM, httpx and tiktoken. An empty
    # package with the same folder replaces each.
    _package = ModuleType(f"delphi.{_name}")
    _package.__path__ = [f"{folder}/{_name}" for folder in _FOUND.submodule_search_locations]
    sys.modules[_package.__name__] = _package

import torch  # noqa: E402
from delphi.latents import ActivatingExample  # noqa: E402
from delphi.scorers.classifier.detection import DetectionScorer  # noqa: E402
from delphi.scorers.classifier.fuzz import FuzzingScorer  # noqa: E402
from delphi.scorers.classifier.sample import examples_to_samples  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

_SCORERS = {"detection": DetectionScorer, "fuzzing": FuzzingScorer}


def prompts(model: str, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """The messages of each prompt, and the texts of its contexts.

    An entry of `asked` has the keys task, explanation, tokens and marks (None for detection).
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    made = []
    for one in asked:
        tokens = torch.tensor(one["tokens"])
        marks = torch.zeros(tokens.shape) if one["marks"] is None else torch.tensor(one["marks"]).float()
        examples = [
            ActivatingExample(tokens=row, activations=on, str_tokens=tokenizer.batch_decode(row))
            for row, on in zip(tokens, marks, strict=True)
        ]
        samples = examples_to_samples(examples, highlighted=one["marks"] is not None)
        scorer = _SCORERS[one["task"]](client=None, n_examples_shown=len(samples))
        messages = scorer._build_prompt(one["explanation"], samples)
        made.append({"messages": messages, "contexts": [sample.text for sample in samples]})
    return {"prompts": made}


if __name__ == "__main__":
    serve({"prompts": prompts})
