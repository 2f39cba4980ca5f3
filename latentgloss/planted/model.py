"""The subject model whose activations are planted, and the SAE that reads them back exactly.

What belongs here: a transformers model of three layers, loaded like any other after `register` was called, and the
SAE's files, intact or damaged (`MUTATIONS`). The model computes the activation a_r of every rule r from the tokens, and
layer 1 adds it along the rule's own direction d_r. The residual stream also contains an offset, a small vector for
every token, and a huge one on `SINK`.

    layers.0   offset + token          layers.1   layers.0 + Σ a_r d_r          layers.2   (layers.1) M, M random

The token vectors are orthogonal to all d_r, so W_enc = pinv(D) gives the activations back, even though the directions
of rules that are easily confused are not orthogonal (cosine .4).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from latentgloss.planted.rules import STEP, activations, ids, n_latents, rules, vocabulary
from latentgloss.planted.words import SINK, SPECIAL

D_MODEL, TOKEN_NORM, OFFSET_NORM, SINK_NORM, NEAR = 128, 0.4, 6.0, 400.0, 0.4
"""Width of the residual stream, norms of its parts, and the cosine between directions of easily confused rules."""
THRESHOLD = 0.2
"""JumpReLU threshold of the SAE's latents: far above rounding errors, far below any activation."""
RULES_VERSION = 1
"""Part of the model's configuration and thus of its identity; raise it when the rules change."""


class PlantedConfig(PreTrainedConfig):
    """Configuration of the planted model."""

    model_type = "planted"

    def __init__(
        self, vocab_size: int = 8, hidden_size: int = D_MODEL, rules_version: int = RULES_VERSION, **more: Any
    ):
        super().__init__(**more)
        self.vocab_size, self.hidden_size, self.rules_version = vocab_size, hidden_size, rules_version


class _Write(nn.Module):
    """Layer 1: adds every rule's activation along its direction."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.zeros(n, d))

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        return h + features @ self.directions


class _Offset(nn.Module):
    """Layer 0: adds the offset."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(d))

    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        return h + self.offset


class _Mix(nn.Module):
    """Layer 2: multiplies by a random matrix."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d, d))

    def forward(self, h: Tensor, _: Tensor) -> Tensor:
        return h @ self.weight


class _Base(nn.Module):
    def __init__(self, config: PlantedConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, d)
        self.layers = nn.ModuleList([_Offset(d), _Write(d, len(rules())), _Mix(d)])

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        features = torch.from_numpy(activations(input_ids.cpu().numpy())).to(self.embed_tokens.weight)
        h = self.embed_tokens(input_ids)
        for layer in self.layers:
            h = layer(h, features)
        return BaseModelOutput(last_hidden_state=h)


class PlantedModel(PreTrainedModel):
    """The planted model with its language-model head."""

    config_class = PlantedConfig
    base_model_prefix = "model"

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.model = _Base(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises nothing, because all weights are in the file."""

    def get_output_embeddings(self) -> nn.Module:
        """The language-model head."""
        head: nn.Module = self.lm_head
        return head

    def forward(self, input_ids: Tensor, **more: Any) -> CausalLMOutput:
        """Logits [batch, length, vocabulary] of token ids [batch, length]."""
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids, **more).last_hidden_state))


def register() -> None:
    """Registers the model with transformers, so that folders written by `write_model` can be loaded."""
    AutoConfig.register(PlantedConfig.model_type, PlantedConfig, exist_ok=True)
    AutoModelForCausalLM.register(PlantedConfig, PlantedModel, exist_ok=True)


def directions(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions [rules, d] of the rules, and an orthonormal basis [rest, d] of their orthogonal complement."""
    n = len(rules())
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((D_MODEL, D_MODEL)))
    found = basis[:n].copy()
    for number, rule in enumerate(rules()):
        if rule.near is not None:
            found[number] = NEAR * found[rule.near // STEP] + np.sqrt(1 - NEAR**2) * basis[number]
    return found, basis[n:]


def offset() -> np.ndarray:
    """The vector [d] that every token has in common; b_dec of the SAE."""
    found, rest = directions()
    mixed = found.sum(0) / np.linalg.norm(found.sum(0)) + rest[0]
    offset: np.ndarray = OFFSET_NORM * mixed / np.linalg.norm(mixed)
    return offset


def write_model(folder: Path, seed: int = 2) -> None:
    """Writes model and tokenizer in Hugging Face's layout. Call `register` before loading them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    rng = np.random.default_rng(seed)
    found, rest = directions()
    tokens = rng.standard_normal((len(vocabulary()), len(rest) - 1))
    embedded = TOKEN_NORM * tokens / np.linalg.norm(tokens, axis=1, keepdims=True) @ rest[1:]
    embedded[ids()[SINK]] = SINK_NORM * rest[-1]
    mix = np.eye(D_MODEL) + 0.5 * rng.standard_normal((D_MODEL, D_MODEL)) / np.sqrt(D_MODEL)
    head = rng.standard_normal((len(vocabulary()), D_MODEL)) / np.sqrt(D_MODEL)
    folder.mkdir(parents=True, exist_ok=True)
    _save(
        folder / "model.safetensors",
        {
            "model.embed_tokens.weight": embedded,
            "model.layers.0.offset": offset(),
            "model.layers.1.directions": found,
            "model.layers.2.weight": mix,
            "lm_head.weight": head,
        },
    )
    tokenizer = Tokenizer(models.WordLevel(ids(), unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    _json(
        folder / "config.json",
        {
            "architectures": ["PlantedModel"],
            "model_type": "planted",
            "vocab_size": len(vocabulary()),
            "hidden_size": D_MODEL,
            "rules_version": RULES_VERSION,
            "tie_word_embeddings": False,
            "dtype": "float32",
        },
    )


def write_sae(folder: Path) -> None:
    """Writes the SAE at `layers.1` in the SAELens layout (JumpReLU); latent `PlantedRule.latent` fires by its rule."""
    found, _ = directions()
    W_enc, W_dec = np.zeros((D_MODEL, n_latents())), np.zeros((n_latents(), D_MODEL))
    fired = [rule.latent for rule in rules()]
    W_enc[:, fired] = np.linalg.pinv(found)
    silent = np.setdiff1d(np.arange(n_latents()), fired)
    W_dec[silent] = np.random.default_rng(3).standard_normal((len(silent), D_MODEL)) / np.sqrt(D_MODEL)
    W_dec[fired] = found
    folder.mkdir(parents=True, exist_ok=True)
    _json(
        folder / "cfg.json",
        {
            "architecture": "jumprelu",
            "d_in": D_MODEL,
            "d_sae": n_latents(),
            "dtype": "float32",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
        },
    )
    threshold = np.full(n_latents(), THRESHOLD)
    _save(
        folder / "sae_weights.safetensors",
        {"W_enc": W_enc, "W_dec": W_dec, "b_enc": np.zeros(n_latents()), "b_dec": offset(), "threshold": threshold},
    )


def _scaled(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Scales the SAE as if it had been trained on activations four times as large."""
    tensors["W_enc"] = tensors["W_enc"] / 4
    for name in ("W_dec", "b_dec"):
        tensors[name] = tensors[name] * 4


def _transposed(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Reshapes W_enc as if it had been read in the wrong orientation."""
    d, n = tensors["W_enc"].shape
    tensors["W_enc"] = tensors["W_enc"].T.contiguous().reshape(d, n)


def _toggled(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Toggles whether b_dec is subtracted from the input; in the intact SAE it is."""
    config["apply_b_dec_to_input"] = not config["apply_b_dec_to_input"]


MUTATIONS: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], None]] = {
    "scale": _scaled,
    "transpose": _transposed,
    "b_dec": _toggled,
}
"""Damage to an SAE that leaves its files readable, by name. A wrong layer (`layers.0` or `layers.2`) is not among them,
because it is declared in the registry."""


def write_mutated(source: Path, folder: Path, mutation: str) -> None:
    """Writes a copy of the SAE in `source` with one of `MUTATIONS`."""
    config, tensors = json.loads((source / "cfg.json").read_text()), load_file(source / "sae_weights.safetensors")
    MUTATIONS[mutation](tensors, config)
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "cfg.json", config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    float32 = {name: torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for name, a in tensors.items()}
    save_file(float32, path, metadata={"format": "pt"})


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))
