"""Causality: proof by trial that a loaded model's activations depend on no later token.

What belongs here: one forward pass at loading that refuses a model that reads the future. Nothing is read or written.

1. Three sequences are equal up to a cut, and differ from it on. Two cuts are tried in the same pass.
2. Whenever a module has run, its output before the cut is compared between the sequences. If it differs by more than
   rounding, the model is refused, and the module is named.
3. Then the output before the cut is made equal. The next module thus gets the same past and another future. Rounding
   cannot add up from layer to layer, which matters for routed experts: a last digit can send a token to another expert.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentgloss.errors import SubjectError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Int
    from transformers import PreTrainedModel


LENGTH = 128
"""Tokens per sequence, if the model takes as many: two blocks of `cpu_attention`, and whole chunks of models that
compute in chunks."""

CUTS = (0.4, 0.75)
"""Where the second and the third sequence begin to differ from the first, as shares of the length."""

ROUNDING = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.01}
"""The largest change of a position's output, relative to the largest norm of a position, that is taken for rounding. On
a CPU, every causal model that was tried showed no change at all. A position that attends to one token too many among 50
changes by several percent."""


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Raises SubjectError if the base model reads later tokens, or cannot run on token ids alone. One forward pass."""
    base: nn.Module = model.base_model
    try:
        tokens, cuts = probe(model)
        with torch.inference_mode(), _compared(base, name, tokens.shape[1], cuts):
            base(input_ids=tokens, use_cache=False)
    except (SubjectError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as e:  # of any type, because the code of a model's class raised it
        reason = next(iter(str(e).splitlines()), "")
        raise SubjectError(
            f"{name}: {type(model).__name__} in {str(model.dtype).removeprefix('torch.')} does not run on token ids "
            f"({type(e).__name__}: {reason})",
            expected="a causal language model whose base model runs on token ids alone",
            todo="use another `dtype` in the registry, another version of transformers, or another model",
        ) from e


def probe(model: PreTrainedModel) -> tuple[Int[Tensor, "3 seq"], list[int]]:
    """Three sequences that a model can read, and the cuts from which the second and the third differ from the first.

    Tokens are spread over the vocabulary and leave out those that the configuration names, such as padding or images.
    """
    text: Any = model.config.get_text_config()
    entries = [*model.config.to_dict().items(), *text.to_dict().items()]
    named = {value for key, value in entries if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)}
    embedding: Any = model.get_input_embeddings()
    size = int(embedding.weight.shape[0])
    usable = [token for token in dict.fromkeys(i * size // 997 for i in range(997)) if token not in named]
    usable = usable or list(range(size))
    most = getattr(text, "max_position_embeddings", None)
    # -1 and None mean that there is no limit. Two fewer than the limit, because RoBERTa counts positions from 2.
    length = min(LENGTH, max(2, most - 2)) if most and most > 0 else LENGTH
    cuts = [max(1, int(length * share)) for share in CUTS]
    rows = [[usable[i % len(usable)] for i in range(length)] for _ in range(3)]
    for row, cut in zip(rows[1:], cuts, strict=True):
        row[cut:] = [usable[(i * 3 + 1 + length) % len(usable)] for i in range(cut, length)]
    return torch.tensor(rows, device=model.device), cuts


@contextlib.contextmanager
def _compared(base: nn.Module, name: str, length: int, cuts: list[int]) -> Iterator[None]:
    """Within the block, compares every module's output before the cuts, and makes it equal."""

    def after(path: str, value: Any) -> Any:
        tensor = value[0] if isinstance(value, tuple) and value else getattr(value, "last_hidden_state", value)
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim >= 3):
            return None
        shape = tensor.shape
        if shape[:2] != (1 + len(cuts), length) or length in shape[2:-1]:  # [batch, heads, seq, d] of as many heads
            return None
        equal = tensor.clone()
        for row, cut in enumerate(cuts, start=1):
            change = _change(tensor[row, :cut], tensor[0, :cut])
            if change > ROUNDING.get(tensor.dtype, 0.01):
                raise _reads_the_future(name, path, cut, change)
            equal[row, :cut] = equal[0, :cut]
        return (equal, *value[1:]) if type(value) is tuple else equal if value is tensor else None

    with contextlib.ExitStack() as stack:
        for path, module in base.named_modules():
            hook = module.register_forward_hook(lambda _m, _args, value, path=path: after(path, value))
            stack.callback(hook.remove)
        yield


def _change(found: Float[Tensor, "seq ..."], expected: Float[Tensor, "seq ..."]) -> float:
    """The largest norm of a position's difference, relative to the largest norm of a position."""
    a, b = (x.flatten(1).float().nan_to_num() for x in (found, expected))
    largest = b.norm(dim=1).amax()
    return float((a - b).norm(dim=1).amax() / largest) if largest > 0 else float((a - b).abs().amax())


def _reads_the_future(name: str, path: str, cut: int, change: float) -> SubjectError:
    return SubjectError(
        f"{name}: the model reads the future. With other tokens from position {cut} on, the output of "
        f"{path or 'the base model'!r} before position {cut} changes by up to {change:.0%}",
        expected="a causal language model, in which a position depends on itself and on earlier ones only",
        todo="choose a causal model (for an encoder such as BERT, set `is_decoder` in its config.json); if this one is "
        'causal elsewhere, set dtype = "float32" in the registry, or use another version of transformers',
    )
