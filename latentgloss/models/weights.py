"""Weights: whether a model's files hold every weight that decides its output.

What belongs here: loading with `from_pretrained`, and refusing what it only logs: it fills weights that the files lack
with random numbers, and leaves out weights that the model's class does not know. Reads a model's files; writes nothing.

1. Weights of another shape than the configuration says are refused.
2. A tensor that the files hold for a module that runs without it (a bias, a scale) is refused.
3. The weights that are missing are drawn twice, and the model runs on a few tokens with each. If its output differs,
   they are used, and the model is refused. Otherwise nothing that is asked for depends on them, as on the pooler of an
   encoder or on the image part of a multimodal model. They become NaN, so that no random number is taken for a weight.

A head that is tied to the embedding is not missing, and neither are tables that the class computes, such as `inv_freq`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentgloss.errors import LatentglossError, SubjectError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from latentgloss.config.entries import ModelSpec


NAMED = 4
"""Weights that an error names, at most."""
_LEARNED_BUFFERS = ("correction_bias", "running_mean", "running_var")
"""Ends of the names of buffers that are learned in training, so that the files must hold them."""


def load_causal(spec: ModelSpec, folder: Path, *, head: bool, **options: Any) -> PreTrainedModel:
    """The causal language model in a folder, on the CPU, in the dtype of its entry.

    `head`: whether its logits are needed. If not, the weights of the LM head may be missing; they are NaN then.
    `options`: more for `from_pretrained`. Raises SubjectError if the files do not hold every weight that is used, and
    whatever loading raises.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from latentgloss.models.causality import probe

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, spec.dtype),
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    model: PreTrainedModel = loaded[0]
    ran: Any = model if head else model.base_model

    def output() -> Tensor:
        found: Tensor = ran(input_ids=probe(model)[0], use_cache=False)[0]
        return found

    check_whole(model.eval(), loaded[1], spec.name, SubjectError, output)
    return model


def check_whole(
    model: nn.Module, info: dict[str, Any], name: str, error: type[LatentglossError], output: Callable[[], Tensor]
) -> None:
    """Raises `error` unless the files hold every weight on which `output` depends, in the right shape.

    `info`: the loading info of `from_pretrained`, with mismatched sizes ignored. `output` runs the model. Weights that
    are missing and that it does not depend on are NaN afterwards.
    """
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        key, found, expected = wrong[0]
        raise error(
            f"{name}: weights have other shapes than config.json says: {_listed([key for key, *_ in wrong])}; the "
            f"first has shape {list(found)}",
            expected=f"{list(expected)} for {key}",
            todo="use the config.json that belongs to these weights, or download the model again",
        )
    left_out = _left_out(model, info["unexpected_keys"])
    if left_out:
        raise error(
            f"{name}: the files hold weights that the model would run without: {_listed(left_out)}",
            expected="only weights that config.json declares",
            todo="use the config.json that belongs to these weights (for a bias, options such as `attention_bias`)",
        )
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= {key: buffer for key, buffer in model.named_buffers() if key.endswith(_LEARNED_BUFFERS)}
    missing = sorted(key for key in info["missing_keys"] if key in tensors and tensors[key].is_floating_point())
    if missing and _depends([tensors[key] for key in missing], output):
        raise error(
            f"{name}: the files lack {len(missing)} of the model's weights: {_listed(missing)}. Loading would fill "
            "them with random numbers",
            expected="files with every weight that the model uses, under the names of its class",
            todo="download the model again, use the config.json that belongs to these weights, or save the model with "
            "`save_pretrained` of its class",
        )


def _depends(missing: list[Tensor], output: Callable[[], Tensor]) -> bool:
    """Whether the output depends on these tensors, or cannot be made. Sets them to NaN.

    NaN itself would not show it, because some kernels for attention drop it.
    """
    import torch

    found = []
    with torch.inference_mode():
        for seed in (0, 1):
            draw = torch.Generator().manual_seed(seed)
            for tensor in missing:
                tensor.copy_(torch.randn(tensor.shape, generator=draw))
            try:
                found.append(output())
            except Exception:  # of any type, because the code of a model's class raised it
                return True
        for tensor in missing:
            tensor.fill_(float("nan"))
    return not torch.equal(*found)


def _left_out(model: nn.Module, unexpected: set[str]) -> list[str]:
    """The unexpected tensors that belong to a module of the model which has a weight of its own, sorted.

    Others belong to modules that the model does not have: later layers, heads of another task, tables of old releases.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    owners = {
        name for name, module in model.named_modules() if "weight" in dict(module.named_parameters(recurse=False))
    }
    owners |= {name.removeprefix(prefix) for name in owners}
    return sorted(key for key in unexpected if key.rpartition(".")[0] in owners)


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
