"""Causal attention on a CPU, computed in blocks of queries to save most of the work above the diagonal.

What belongs here: one attention function for Hugging Face models in bfloat16, and the choice of the models that use it.
Scores, softmax and sums are float32 from bfloat16 inputs, as in PyTorch's own kernel, and the result equals that
kernel's up to rounding. It is meant for short sequences (256 tokens), for which PyTorch's kernel takes twice the time
(docs/log.md). Nothing is read or written.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel


NAME = "latentgloss_causal_cpu"
BLOCK = 64
"""Queries per block. Smaller blocks waste less work above the diagonal but make matrix products inefficiently small."""


def causal_attention(
    query: Float[Tensor, "batch heads seq dim"],
    key: Float[Tensor, "batch groups seq dim"],
    value: Float[Tensor, "batch groups seq dim"],
    scale: float,
) -> Float[Tensor, "batch seq heads dim"]:
    """softmax(scale Q Kᵀ) V, where each query attends to its own position and earlier ones.

    Each group of keys and values serves heads / groups heads. Returns the dtype of `query`.
    """
    batch, heads, length, dim = query.shape
    pairs, share = batch * key.shape[1], heads // key.shape[1]
    k, v = (t.reshape(pairs, length, dim).float() for t in (key, value))
    out = torch.empty(batch, length, heads, dim, dtype=query.dtype)
    with _products_of_bfloat16():
        for start in range(0, length, BLOCK):
            stop = min(start + BLOCK, length)
            n = stop - start
            q = query[:, :, start:stop].to(torch.float32, memory_format=torch.contiguous_format)
            scores = torch.bmm(q.view(pairs, share * n, dim), k[:, :stop].transpose(1, 2)).mul_(scale)
            scores = scores.view(pairs, share, n, stop)
            scores[..., start:] += torch.full((n, n), -torch.inf).triu_(1)
            weights = torch.softmax(scores, -1, out=scores)  # in place, because memory traffic dominates the cost
            found = torch.bmm(weights.view(pairs, share * n, stop), v[:, :stop])
            out[:, start:stop] = found.view(batch, heads, n, dim).transpose(1, 2)
    return out


@contextlib.contextmanager
def _products_of_bfloat16() -> Iterator[None]:
    """Within the block, products of float32 matrices round their inputs to bfloat16 and sum in float32.

    Queries, keys and values are bfloat16 already, so the softmax is the only input that is rounded.
    """
    backend: Any = torch.backends.mkldnn
    flags = backend.matmul
    before = flags.fp32_precision
    flags.fp32_precision = "bf16"
    try:
        yield
    finally:
        flags.fp32_precision = before


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls. Passes all but plain causal self-attention on to PyTorch's kernel."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    plain = attention_mask is None and causal and query.shape[2] == key.shape[2] and value.shape[-1] == query.shape[-1]
    if plain and query.dtype == torch.bfloat16 and not any(map(_asks_for_more, others, others.values())):
        return causal_attention(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **others
    )
    return result


def _asks_for_more(name: str, value: Any) -> bool:
    """Whether an argument can ask for more than `causal_attention` does; any argument that is not known can."""
    return name not in _NO_MATTER and (isinstance(value, torch.Tensor) or bool(value))


_NO_MATTER = frozenset(
    {
        "position_ids",
        "cache_position",
        "sliding_window",
        "use_cache",
        "layer_idx",
        "output_hidden_states",
        "return_dict",
    }
)
"""Arguments that do not change what attention computes without a mask. A sliding window does so through its mask."""


def use_causal_attention(model: PreTrainedModel) -> bool:
    """Has a model in bfloat16 on a CPU use `causal_attention`, if its class can; returns whether it does.

    Such a model has chosen PyTorch's kernel (`sdpa`), calls attention through transformers' interface in each of its
    parts, and has no routed experts. Experts are chosen by comparing logits, so that a rounding other than that of
    transformers would send some tokens to other experts. Any other model keeps the attention that transformers chose.
    """
    if not _able() or model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return False
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import sdpa_mask

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    chosen = {getattr(part.config, "_attn_implementation", None) for part in parts}
    if chosen != {"sdpa"} or not all(_has_interface(part) for part in parts) or _has_experts(model.config):
        return False
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def _able() -> bool:
    """Whether this processor has products of bfloat16, and this version of PyTorch lets float32 products use them."""
    return hasattr(torch.backends.mkldnn, "matmul") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has_interface(part: PreTrainedModel) -> bool:
    """Whether a model's class calls attention through transformers' interface, by transformers' own judgement."""
    can: Any = getattr(part, "_can_set_attn_implementation", None)
    return bool(can and can())


def _has_experts(config: PretrainedConfig) -> bool:
    """Whether a model routes tokens to experts. Their number has many names, all of which contain `expert`."""
    entries = config.get_text_config().to_dict().items()
    return any("expert" in name and isinstance(value, int) and value > 1 for name, value in entries)
