"""Models of every architecture, tiny and randomly initialised, and what happens when latentgloss loads them.

What belongs here: their configurations, the same models run by transformers alone, and `outcome`, which compares the
two. `test_architectures.py` asserts what is found, and `docs/compatibility.py` writes it into docs/compatibility.md.

Right values are those of the plain model of transformers with its own attention, run once through with plain hooks:

- float32: the same bits.
- bfloat16: the same bits if the model keeps transformers' attention; with ours (`cpu_attention.py`), each position's
  activation within `ROUNDING` of the largest norm at that hookpoint.
- Every hookpoint (output and input of every module) has the same bits alone as together with all others. In bfloat16,
  every fourth is tried alone, which saves a third of the time.
- With other tokens from `CUT` on, nothing before `CUT` changes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from latentgloss.config.entries import ModelSpec
from latentgloss.errors import SubjectError
from latentgloss.models.cpu_attention import NAME
from latentgloss.models.subject import INPUT, load_subject

if TYPE_CHECKING:
    from torch import Tensor

    from latentgloss.models.subject import Subject

VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 97, 32, 2, 4, 128
SEQUENCES, LENGTH, CUT = 2, 24, 13
WINDOW = 16
"""Sliding windows are shorter than the sequences."""
ROUNDING = 0.05
"""Largest difference in bfloat16 with our attention. transformers' own differs from its float32 by up to .06 here."""
DTYPES = ("float32", "bfloat16")

_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, **_ENDS}
_PLAIN: dict[str, Any] = {
    **_IDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_DIMS = _GROUPED | {"head_dim": 8}
_SLIDING = {"sliding_window": WINDOW}
_GEMMA = _DIMS | _SLIDING | {"query_pre_attn_scalar": 8}
_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": POSITIONS,
    **_ENDS,
}
_STATE: dict[str, Any] = {**_IDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4}
_ROUTED = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}
_LOCAL = {"num_experts_per_tok": 2, "num_local_experts": 4}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_neo": {
        **_IDS,
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "window_size": WINDOW,
        "attention_types": [[["global", "local"], 1]],
    },
    "gptj": _GPT | {"rotary_dim": 4},
    "gpt_neox": _PLAIN,
    "gpt_bigcode": _GPT,
    "gpt_oss": _DIMS | _SLIDING | _LOCAL,
    "openai-gpt": _GPT,
    "llama": _GROUPED,
    "llama4_text": _DIMS | _LOCAL | {"intermediate_size_mlp": 48, "moe_layers": [1], "attention_chunk_size": WINDOW},
    "mistral": _GROUPED | _SLIDING,
    "mixtral": _GROUPED | _LOCAL,
    "qwen2": _GROUPED,
    "qwen2_moe": _GROUPED | _ROUTED | {"shared_expert_intermediate_size": 24},
    "qwen3": _DIMS,
    "qwen3_moe": _DIMS | _ROUTED,
    "qwen3_next": _DIMS | _ROUTED | _LINEAR | {"shared_expert_intermediate_size": 24},
    "gemma": _DIMS,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": {
        "text_config": _GEMMA,
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 90,
        "boi_token_index": 91,
        "eoi_token_index": 92,
    },
    "phi": _PLAIN,
    "phi3": _GROUPED,
    "phimoe": _GROUPED | _LOCAL,
    "opt": {
        **_IDS,
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "ffn_dim": 48,
        "max_position_embeddings": POSITIONS,
    },
    "cohere": _GROUPED,
    "cohere2": _GROUPED | _SLIDING,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED | _SLIDING,
    "olmoe": _GROUPED | _ROUTED,
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED | _SLIDING,
    "smollm3": _GROUPED,
    "granite": _GROUPED,
    "granitemoe": _GROUPED | _LOCAL,
    "falcon": {
        **_ENDS,
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "bloom": {**_IDS, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "mpt": {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "expansion_ratio": 2},
    "codegen": _GPT | {"rotary_dim": 4, "n_ctx": POSITIONS},
    "nemotron": _DIMS,
    "glm": _DIMS,
    "glm4": _DIMS,
    "helium": _DIMS,
    "persimmon": _PLAIN,
    "deepseek_v3": _PLAIN
    | _LATENT
    | {
        "num_key_value_heads": HEADS,
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "mamba": _STATE,
    "falcon_mamba": _STATE,
    "mamba2": _STATE | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "jamba": _GROUPED
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": _GROUPED
    | {
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "mamba_chunk_size": 16,
    },
    "recurrent_gemma": _DIMS
    | {"lru_width": WIDTH, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention"]},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "context_length": POSITIONS},
    "lfm2": _GROUPED | {"full_attn_idxs": [1]},
    "bert": _PLAIN,
    "xlm": {"vocab_size": VOCABULARY, "emb_dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS},
}
"""Arguments of the configuration, by transformers' `model_type`."""

REFUSED = {"bert": "it reads later tokens", "xlm": "it reads later tokens"}
"""Architectures that must not load, and the reason in the table. Their configurations here are those of encoders."""


@dataclass(frozen=True)
class Outcome:
    """What was found for one architecture. `refused` holds an error's text, and is empty if the model loads."""

    model_type: str
    model_class: str
    own_attention: bool
    refused: dict[str, str]
    faults: tuple[str, ...]
    """What is wrong, by dtype and hookpoint; empty if every right value was found."""
    runs_again: tuple[str, ...]
    """Modules that a forward pass runs several times, without the number of the layer."""


@cache
def outcome(model_type: str) -> Outcome:
    """Builds, saves, loads and compares one architecture. Kept for the process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **CONFIGS[model_type]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)  # initial weights are so small that attention hardly matters
        model.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        refused: dict[str, str] = {}
        faults: list[str] = []
        again: list[str] = []
        own = False
        for dtype in DTYPES:
            try:
                spec = ModelSpec(name=model_type, source=f"path:{folder}", dtype=dtype)
                subject = load_subject(spec, folder / "cache", device="cpu")
            except SubjectError as e:
                refused[dtype] = str(e)
                continue
            uses = subject._model.config.get_text_config()._attn_implementation == NAME
            own |= uses
            plain, again = plain_values(folder, dtype)
            alone = 1 if dtype == "float32" else 4
            faults += [f"{dtype} {fault}" for fault in _compare(subject, plain, ROUNDING if uses else 0.0, alone)]
    runs_again = tuple(dict.fromkeys(".".join("*" if p.isdigit() else p for p in path.split(".")) for path in again))
    return Outcome(model_type, type(model).__name__, own, refused, tuple(faults), runs_again)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), bos_token="w1", eos_token="w2", unk_token="w0"
    )


def _tokens(changed: bool = False) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(3, 90, (SEQUENCES, LENGTH))
    if changed:
        tokens[:, CUT:] = np.random.default_rng(1).integers(3, 90, (SEQUENCES, LENGTH - CUT))
    return tokens


def plain_values(folder: Path, dtype: str) -> tuple[dict[str, Tensor], list[str]]:
    """Copies of what every module of the plain model takes and returns, and the modules that run several times.

    Of a module that runs several times, the first run counts.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    # PyTorch multiplies a transposed input in another way if the weight has a gradient, with other last digits.
    base: nn.Module = model.requires_grad_(False).base_model
    found: dict[str, Tensor] = {}
    runs: dict[str, int] = {}

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) and value else value
        float_ = isinstance(value, torch.Tensor) and value.is_floating_point()
        if name not in found and float_ and value.ndim == 3 and value.shape[:2] == (SEQUENCES, LENGTH):
            found[name] = value.clone()
            runs[name] = 0
        if name in runs:
            runs[name] += 1

    def hook(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(
            lambda _m, args, kwargs: keep(name + INPUT, args[0] if args else kwargs.get("hidden_states")),
            with_kwargs=True,
        )
        module.register_forward_hook(lambda _m, _args, value: keep(name, value))

    for name, module in base.named_modules():
        if name:
            hook(name, module)
    with torch.inference_mode():
        base(input_ids=torch.from_numpy(_tokens()), use_cache=False)
    return found, [name for name, n in runs.items() if n > 1 and not name.endswith(INPUT)]


def _compare(subject: Subject, plain: dict[str, Tensor], rounding: float, alone: int) -> list[str]:
    """What differs from the right values. Every `alone`th hookpoint is tried alone."""
    subject.hookpoints()
    names = list(subject._widths)
    together = subject.activations(_tokens(), names)
    later = subject.activations(_tokens(changed=True), names)
    faults = [f"{name}: transformers has no activations there" for name in names if name not in plain]
    if not hasattr(subject._model.get_output_embeddings(), "weight"):
        faults.append("the LM head has no weight, which the logit lens needs")
    faults += [f"{name}: not offered" for name in plain if name not in names and not name.endswith(INPUT)]
    for i, name in enumerate(names):
        if i % alone == 0 and not torch.equal(subject.activations(_tokens(), [name])[name], together[name]):
            faults.append(f"{name}: other values alone than together")
        if _change(later[name][:, :CUT], together[name][:, :CUT]) > 1e-5:
            faults.append(f"{name}: depends on later tokens")
        if name in plain:
            change = _change(together[name], plain[name])
            same = torch.equal(together[name], plain[name])
            if change > rounding or not (same or rounding):
                faults.append(f"{name}: differs from transformers by {change:.2g}")
    return faults


def _change(found: Tensor, expected: Tensor) -> float:
    """The largest norm of a position's difference, relative to the largest norm of a position."""
    difference = (found.float() - expected.float()).norm(dim=-1).max()
    return float(difference / expected.float().norm(dim=-1).max().clamp(min=1e-30))
