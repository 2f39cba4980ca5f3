"""The logit lens of many architectures, tiny and random, against their own final norm and unembedding.

Where the final norm is, and whether there is one, is written down here by hand (`NORM`); the lens finds it itself.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from latentgloss.errors import SubjectError
from latentgloss.models.logit_lens import lens_of

D, VOCABULARY = 32, 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": D, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

NORM: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "gpt2": ("GPT2", "transformer.ln_f", GPT),
    "gptj": ("GPTJ", "transformer.ln_f", GPT | {"rotary_dim": 4}),
    "codegen": ("CodeGen", "transformer.ln_f", GPT | {"rotary_dim": 4}),
    "gpt1": ("OpenAIGPT", None, GPT),
    "gpt_bigcode": ("GPTBigCode", "transformer.ln_f", GPT),
    "gpt_neo": (
        "GPTNeo",
        "transformer.ln_f",
        COMMON | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": ("GPTNeoX", "gpt_neox.final_layer_norm", COMMON),
    "bloom": ("Bloom", "transformer.ln_f", {"vocab_size": VOCABULARY, "hidden_size": D, "n_layer": 2, "n_head": 4}),
    "falcon": ("Falcon", "transformer.ln_f", COMMON),
    "mpt": ("Mpt", "transformer.norm_f", {"vocab_size": VOCABULARY, "d_model": D, "n_layers": 2, "n_heads": 4}),
    "opt": ("OPT", "model.decoder.final_layer_norm", COMMON | {"ffn_dim": 48, "word_embed_proj_dim": D}),
    "opt_projected": ("OPT", "model.decoder.final_layer_norm", COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 24}),
    "opt_post_norm": (
        "OPT",
        None,
        COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    ),
    "biogpt": ("BioGpt", "biogpt.layer_norm", COMMON),
    "xglm": (
        "XGLM",
        "model.layer_norm",
        {"vocab_size": VOCABULARY, "d_model": D, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    ),
    "llama": ("Llama", "model.norm", COMMON | GROUPED),
    "mistral": ("Mistral", "model.norm", COMMON | GROUPED),
    "qwen2": ("Qwen2", "model.norm", COMMON | GROUPED),
    "qwen3": ("Qwen3", "model.norm", COMMON | GROUPED),
    "gemma": ("Gemma", "model.norm", COMMON | GROUPED),
    "gemma2": ("Gemma2", "model.norm", COMMON | GROUPED),
    "gemma3_text": ("Gemma3", "model.norm", COMMON | GROUPED),
    "phi": ("Phi", "model.final_layernorm", COMMON),
    "phi3": ("Phi3", "model.norm", COMMON | GROUPED),
    "cohere": ("Cohere", "model.norm", COMMON | GROUPED),
    "cohere2": ("Cohere2", "model.norm", COMMON | GROUPED),
    "olmo": ("Olmo", "model.norm", COMMON | GROUPED),
    "olmo2": ("Olmo2", "model.norm", COMMON | GROUPED),
    "stablelm": ("StableLm", "model.norm", COMMON | GROUPED),
    "starcoder2": ("Starcoder2", "model.norm", COMMON | GROUPED),
    "granite": ("Granite", "model.norm", COMMON | GROUPED | {"logits_scaling": 3.0}),
    "persimmon": ("Persimmon", "model.final_layernorm", COMMON),
    "nemotron": ("Nemotron", "model.norm", COMMON | GROUPED),
    "glm": ("Glm", "model.norm", COMMON | GROUPED),
    "mixtral": ("Mixtral", "model.norm", COMMON | GROUPED | EXPERTS),
    "mamba": (
        "Mamba",
        "backbone.norm_f",
        {"vocab_size": VOCABULARY, "hidden_size": D, "num_hidden_layers": 2, "state_size": 4},
    ),
    "lfm2": ("Lfm2", "model.embedding_norm", COMMON | GROUPED),
}
"""Of each architecture: the names of its classes, the path of its final norm, and a small configuration."""


def built(name: str) -> PreTrainedModel:
    """A random model whose vectors (gains, biases) are random too, so that each of them matters."""
    family, _, options = NORM[name]
    torch.manual_seed(0)
    names = (f"{family}TextConfig", f"{family}Config")
    config = next(getattr(transformers, n) for n in names if hasattr(transformers, n))(**options)
    heads = (f"{family}ForCausalLM", f"{family}LMHeadModel")
    model = next(getattr(transformers, n) for n in heads if hasattr(transformers, n))(config)
    return spread(model)


def spread(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter += 0.7 * torch.rand(parameter.shape, generator=generator)
            elif name.endswith("embeddings.weight"):
                parameter.normal_(generator=generator)
    return model.eval().requires_grad_(False)


def own_top(model: PreTrainedModel, norm: nn.Module | None, projection: nn.Module | None, directions: Any) -> Any:
    """The ten tokens that the model's own last steps raise most over what they make of no direction."""

    def logits(x: torch.Tensor) -> torch.Tensor:
        x = x if norm is None else norm(x)
        x = x if projection is None else projection(x)
        return model.get_output_embeddings()(x)

    with torch.no_grad():
        return (logits(directions) - logits(0 * directions)).topk(10, dim=1).indices.numpy()


def agree(found: Any, expected: Any) -> float:
    return float(np.mean([len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]))


DIRECTIONS = torch.randn(40, D, generator=torch.Generator().manual_seed(2)) + 0.5


@pytest.mark.parametrize("name", sorted(NORM))
def test_the_lens_is_the_model_s_own_last_steps(name: str) -> None:
    model = built(name)
    path = NORM[name][1]
    norm = reduce(getattr, path.split("."), model) if path else None
    projection = getattr(getattr(model.base_model, "decoder", None), "project_out", None)
    expected = own_top(model, norm, projection, DIRECTIONS)
    assert agree(lens_of(model).top(DIRECTIONS, 10)[0], expected) >= 9.8
    model.to(torch.bfloat16)
    assert agree(lens_of(model).top(DIRECTIONS, 10)[0], expected) >= 9.5, "from weights rounded to bfloat16"


def test_a_nested_text_model_of_a_multimodal_one() -> None:
    text = COMMON | GROUPED
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = spread(transformers.Gemma3ForConditionalGeneration(config))
    expected = own_top(model, model.model.language_model.norm, None, DIRECTIONS)
    assert agree(lens_of(model).top(DIRECTIONS, 10)[0], expected) >= 9.8


@pytest.mark.parametrize("width", [16, 15])
def test_an_odd_width_is_measured_as_an_even_one(width: int) -> None:
    torch.manual_seed(0)
    model = spread(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT | {"n_embd": width, "n_head": 1})))
    directions = torch.randn(9, width) + 1
    expected = own_top(model, model.transformer.ln_f, None, directions)
    assert agree(lens_of(model).top(directions, 10)[0], expected) == 10


class Squared(nn.Module):
    """No norm and no linear map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.abs()


def test_last_steps_of_an_unknown_kind_have_no_lens() -> None:
    model = built("llama")
    model.model.norm = Squared()
    with pytest.raises(SubjectError, match=r"unknown kind \(model\.norm\)"):
        lens_of(model)
    model = built("llama")
    model.model.norm.register_forward_hook(lambda _m, _a, out: out.roll(1, -1))
    with pytest.raises(SubjectError, match="unknown kind"):
        lens_of(model)
