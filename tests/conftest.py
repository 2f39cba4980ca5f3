"""What every test can use: shape checks on the core, a tiny real model, a workspace built on it.

The model is a Llama of two layers with random weights and a byte-pair tokenizer trained on the workspace's own
text: every code path is the real one, only the sizes are small. No network, no GPU.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(_variable, "2")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DAGSTER_DISABLE_TELEMETRY="1")

from jaxtyping import install_import_hook

install_import_hook("latentgloss", "shapes.arrays")  # before anything imports the core

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from real_parts import (  # noqa: F401  (hooks are found by their names)
    pytest_collectreport,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

if TYPE_CHECKING:
    from latentgloss.workspace import Workspace

hypothesis.settings.register_profile("dev", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

D, LATENTS, K, LAYERS = 16, 96, 6, 2
_TOPICS = {
    "harbour": "boat anchor tide sail rope harbour pilot gull wave mast".split(),
    "kitchen": "onion knife stove butter pepper kettle spoon flour oven salt".split(),
    "forest": "oak moss deer trail fern bark owl root branch shade".split(),
    "workshop": "hammer nail saw plank glue clamp chisel sand drill vise".split(),
}
_FILLER = "the a of and then near with under while they we saw took kept left found two old small".split()


def _document(rng: random.Random) -> str:
    """Some sentences on one topic; words recur, so that latents have something to fire on."""
    topic = _TOPICS[rng.choice(sorted(_TOPICS))]
    words = [rng.choice(topic if rng.random() < 0.4 else _FILLER) for _ in range(rng.randint(40, 90))]
    return " ".join(word + ("." if i % 11 == 10 else "") for i, word in enumerate(words))


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """400 documents of 40 to 90 words, no two alike; the same in every run."""
    rng = random.Random(0)
    return [_document(rng) for _ in range(400)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_texts: list[str]) -> Path:
    """Folder of a causal language model in Hugging Face's layout: two layers, d_model 16, random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(tiny_texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=D, intermediate_size=2 * D, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one sparsify folder per hookpoint of the tiny model: TopK 6 of 96 latents, random directions."""
    import torch
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("tiny-saes")
    for layer in range(LAYERS):
        generator = torch.Generator().manual_seed(layer)
        directions = torch.nn.functional.normalize(torch.randn(LATENTS, D, generator=generator), dim=1)
        folder = root / f"layers.{layer}"
        folder.mkdir()
        tensors = {
            "encoder.weight": directions.clone(),
            "encoder.bias": torch.zeros(LATENTS),
            "W_dec": directions.clone(),
            "b_dec": torch.zeros(D),
        }
        save_file(tensors, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": K, "num_latents": LATENTS, "d_in": D}))
    return root


@pytest.fixture
def tiny_workspace(tmp_path: Path, tiny_model: Path, tiny_saes: Path, tiny_texts: list[str]) -> Workspace:
    """An open workspace: model `tiny`, SAEs `tiny/layers.0/topk` and `tiny/layers.1/topk`, nothing computed yet.

    Everything is under `tmp_path`, written as a user would write it; change a file and open it again to see the
    effect. Thresholds are low enough that most latents are eligible.
    """
    from latentgloss.workspace import Workspace

    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts))
    models, saes = tmp_path / "registry" / "models", tmp_path / "registry" / "saes"
    models.mkdir(parents=True)
    saes.mkdir()
    (models / "tiny.toml").write_text(
        f'name = "tiny"\nsource = "path:{tiny_model}"\ndtype = "float32"\n'
        f'[corpus]\nsource = "path:../../texts.jsonl"\nsequence_length = 64\n'
    )
    for layer in range(LAYERS):
        (saes / f"layers.{layer}.toml").write_text(
            f'model = "tiny"\nhookpoint = "layers.{layer}"\nname = "topk"\nformat = "sparsify"\n'
            f'source = "path:{tiny_saes}/layers.{layer}"\n'
        )
    (tmp_path / "latentgloss.toml").write_text(
        "[contexts]\nexplain = 40\nselect = 20\ntest = 20\nmin_explain = 8\nmin_test = 6\nmin_test_documents = 3\n"
        "[negatives]\nexplain = 40\nselect = 20\ntest = 20\n"
        '[machine]\nmodel_cache = "cache"\nthreads = 2\n'
    )
    return Workspace.open(tmp_path / "latentgloss.toml")
