"""The estimate against what the real SmolLM2 then takes: its template, its tokenizer, its replies."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
import tiny
from repository import REGISTRY, model_cache

from latentgloss import schema
from latentgloss.llm.engines.transformers import TransformersEngine
from latentgloss.pipeline.graph import STAGES
from latentgloss.preview import estimate as core
from latentgloss.workspace import Workspace

pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]
SAE = "smollm2/layers.0/random"
CONTEXTS = ["tokenized_corpus", "resolved_saes", "activation_cache", "sampled_contexts", "sampled_negatives"]
SETTINGS = """
[contexts]
test = 10
min_test = 10
min_explain = 10

[negatives]
test = 20

[explanations]
explainers = ["llm"]
model = "smollm2-instruct"
llm.sample = 4
llm.contexts = 5
llm.max_tokens = 80

[detection]
judges = ["llm:smollm2-instruct"]
sample = 1
"""


def test_prompt_tokens_are_those_the_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the demo's settings, to the token: replies that are held to a line or a list need no second request."""
    for kind, name in (("models", "smollm2"), ("language_models", "smollm2-instruct")):
        text = re.sub(r"(?m)^tokens = .*$", "tokens = 40_000", (REGISTRY / kind / f"{name}.toml").read_text())
        (tmp_path / "registry" / kind).mkdir(parents=True)
        (tmp_path / "registry" / kind / f"{name}.toml").write_text(text)
    (tmp_path / "registry" / "saes").mkdir()
    (tmp_path / "registry" / "saes" / "random.toml").write_text(
        'model = "smollm2"\nhookpoint = "layers.0"\nname = "random"\nformat = "random_topk"\n'
        "d_in = 576\nn_latents = 64\nk = 4\nseed = 0\ncontrol = true\n"
    )
    (tmp_path / "latentgloss.toml").write_text(f'{SETTINGS}\n[machine]\nmodel_cache = "{model_cache()}"\n')
    workspace = Workspace.open(tmp_path / "latentgloss.toml")
    assert not workspace.registry.problems
    assert not [o.error for o in tiny.run_all(workspace, CONTEXTS) if o.error]

    def estimated(stage: str) -> core.Estimate:
        with monkeypatch.context() as patched:  # a tokenizer is all it may read
            patched.setattr(TransformersEngine, "_model", property(lambda self: pytest.fail("weights were loaded")))
            (row,) = [row for row in core.estimate(workspace) if row.stage == stage]
        assert row.exact and not row.problem and not row.paid
        return row

    for stage, n_latents in (("explanations", 4), ("detection_scores", 1)):
        row = estimated(stage)
        assert row.latents == n_latents and row.requests > 0 and row.cached == 0
        (outcome,) = workspace.materialise(stage, workspace.partitions(STAGES[stage]), tiny.runner(stage))
        assert outcome.error is None
        (taken,) = [t for t in workspace.ledger.totals() if t["stage"] == stage and t["partition"] == SAE]
        print(f"{stage}: {row.requests} requests of {row.prompt_tokens} tokens estimated; taken: {taken}")
        assert taken["answered"] == row.requests  # nothing was asked again
        assert abs(taken["prompt_tokens"] - row.prompt_tokens) <= 0.05 * row.prompt_tokens  # what docs promise
        assert taken["prompt_tokens"] == row.prompt_tokens
        assert taken["completion_tokens"] <= row.completion_tokens_most
        if stage == "explanations":
            rows = outcome.version.read(schema.EXPLANATIONS).filter(explainer="llm")  # type: ignore[union-attr]
            assert rows.filter(status="not_sampled").height > 0
            assert rows.filter(pl.col("prompt_tokens") > 0)["status"].to_list() == ["ok"] * n_latents
            assert rows["prompt_tokens"].sum() == taken["prompt_tokens"]
            for text in rows.filter(status="ok")["explanation"]:
                print(f"  {text}")
