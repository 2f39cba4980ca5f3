"""The logit lens: which output tokens a latent's decoder direction promotes.

What belongs here: the projection of directions of the residual stream onto the vocabulary, and what it needs to know of
a model: its last steps. Nothing is read or written.

Between the last layer and the logits, a model applies a norm (or none), sometimes a linear map, and the unembedding.
Their names and places differ between models, so they are found in one pass over a few tokens (`lens_of`): a step is the
module whose output is the input of the step after it. What a norm does is measured and compared with what it did in the
pass. A model whose last steps are of another kind has no lens.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentgloss.errors import SubjectError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


_TOKENS = 6
"""Tokens of the pass in which a model's last steps are found."""
_SAME = 0.998
"""Cosine from which two activations count as equal up to a factor; rounding to bfloat16 leaves it above .9999."""


class LogitLens:
    """Finds the tokens whose logits a direction of the residual stream raises most. `lens_of` makes one.

    logits = (d ∘ g) W_Uᵀ, where d is the direction and g the final norm's gain. The norm's scale is taken as 1. If the
    norm is a LayerNorm (`centred`), the mean of d is subtracted first. Biases are left out, because they do not depend
    on d.
    """

    def __init__(self, unembedding: Float[Tensor, "vocabulary d"], gain: Float[Tensor, " d"], centred: bool) -> None:
        self._unembedding, self._gain, self._centred = unembedding, gain, centred

    def top(
        self, directions: Float[Tensor, "n d"], k: int, *, block: int = 1024
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """The k tokens that each direction raises most, and their logits.

        Returns token ids (int64) and logits (float32), highest first; if the vocabulary has fewer than k tokens, all of
        them. Never holds more than block × vocabulary logits. Raises SubjectError if the directions do not have the
        residual stream's width.
        """
        vocabulary, width = self._unembedding.shape
        if directions.shape[1] != width:
            raise SubjectError(
                f"the directions have width {directions.shape[1]}",
                expected=f"the residual stream's width {width}",
                todo="use the logit lens only at hookpoints that write to the residual stream",
            )
        ids, logits = [], []
        with torch.inference_mode():
            for part in torch.split(directions.to(self._unembedding), block):
                part = part - part.mean(1, keepdim=True) if self._centred else part
                top = ((part * self._gain) @ self._unembedding.T).topk(min(k, vocabulary), dim=1)
                ids.append(top.indices.cpu())
                logits.append(top.values.cpu())
        return torch.cat(ids).numpy(), torch.cat(logits).numpy()


def lens_of(model: PreTrainedModel) -> LogitLens:
    """The lens of a causal language model, from one pass over a few tokens.

    It holds the unembedding in float32 (vocabulary × d_model × 4 bytes). Raises SubjectError if the model has no LM
    head or its files lack it, or if its last steps are not a norm, a linear map and the unembedding, of which the first
    two may be missing.
    """
    head: Any = model.get_output_embeddings()
    if head is None:
        raise SubjectError("the model has no LM head", expected="a causal language model")
    if head.weight.isnan().any():
        raise SubjectError(
            "the weights of the LM head are not in the model's files, or are NaN",
            expected="the LM head with which the model was trained",
            todo="use files that were saved with the LM head",
        )
    with torch.inference_mode():
        unembedding = head.weight.float()
        steps = _last_steps(model, head, head.weight)
        if steps and not _is_scale_free(steps[-1]):
            unembedding = unembedding @ _matrix(steps.pop())
        if not steps:
            return LogitLens(unembedding, torch.ones(unembedding.shape[1], device=unembedding.device), False)
        if len(steps) > 1:
            raise _unknown([step.name for step in steps])
        return LogitLens(unembedding, *_norm(steps[0]))


@dataclass(frozen=True)
class _Step:
    """A module that ran in the pass, with its input and output as rows."""

    name: str
    module: nn.Module
    given: Float[Tensor, "rows_in d"]
    made: Float[Tensor, "rows d_out"]


def _last_steps(model: PreTrainedModel, head: nn.Module, weight: Tensor) -> list[_Step]:
    """The modules between the output of the last layer and the head, in order. Raises SubjectError if they are not all.

    Steps may also scale by a positive number, which changes no order of tokens.
    """
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    in_layer: list[Tensor] = []
    after: list[_Step] = []
    final: list[Tensor] = []

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        made = output[0] if isinstance(output, tuple | list) else output
        if module is head:
            final.append(_rows(args[0]))
        elif name.rpartition(".")[0] in layers:
            if isinstance(made, Tensor):
                in_layer[:], after[:] = [_rows(made)], []
        elif args and isinstance(args[0], Tensor) and isinstance(made, Tensor) and made.is_floating_point():
            after.append(_Step(name, module, _rows(args[0]), _rows(made)))

    # Modules within layers are no last step, and containers return what their last module returned.
    inside = tuple(f"{name}." for name in layers)
    watched = {
        name: module
        for name, module in model.named_modules()
        if module is head
        or name.rpartition(".")[0] in layers
        or (not any(module.children()) and not name.startswith(inside))
    }
    with _watched(watched, keep):
        tokens = torch.arange(_TOKENS, device=weight.device)[None] % weight.shape[0]
        model(input_ids=tokens, use_cache=False)
    if not final or not in_layer:
        raise _unknown([])
    steps: list[_Step] = []
    target = final[-1]
    for step in reversed(after):
        if _same(step.made, target) and not _same(step.made, step.given):
            steps.insert(0, step)
        if _same(step.made, target):
            target = step.given
    if not _same(in_layer[0], target):
        raise _unknown([step.name for step in steps])
    return steps


@contextlib.contextmanager
def _watched(modules: dict[str, nn.Module], keep: Any) -> Iterator[None]:
    """Within the block, calls `keep(name, module, args, output)` after each module."""
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():

            def after(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                keep(name, module, args or tuple(kwargs.values()), output)

            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


def _rows(x: Tensor) -> Float[Tensor, "rows d"]:
    return x.reshape(-1, x.shape[-1]).float() if x.ndim else x.reshape(1, 1).float()


def _same(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"]) -> bool:
    """Whether each row of one is a positive multiple of the row of the other; rows of zeros are equal."""
    if a.shape != b.shape:
        return False
    zero = ~a.any(dim=1) & ~b.any(dim=1)  # the embedding of a padding token
    return bool(((torch.cosine_similarity(a, b, dim=1) > _SAME) | zero).all())


def _is_scale_free(step: _Step) -> bool:
    """Whether the module is a norm: what it makes does not change with the scale of its input."""
    x = step.given.to(_dtype(step.module, step.given))
    one, two, zero = (step.module(y[None])[0].float() for y in (x, 2 * x, 0 * x))
    return bool((two - one).norm() < 0.1 * (one - zero).norm())


def _matrix(step: _Step) -> Float[Tensor, "d_out d"]:
    """The matrix of a linear map, measured with unit vectors. Raises SubjectError if the module is not linear."""
    width = step.given.shape[1]
    unit = torch.eye(width, device=step.given.device, dtype=_dtype(step.module, step.given))
    constant = step.module(torch.zeros_like(unit[:1])[None])[0].float()
    matrix: Tensor = (step.module(unit[None])[0].float() - constant).T
    if not _same(step.made - constant, step.given @ matrix.T):
        raise _unknown([step.name])
    return matrix


def _norm(step: _Step) -> tuple[Float[Tensor, " d"], bool]:
    """A norm's gain, and whether the norm subtracts the mean. Raises SubjectError if it does not explain the pass.

    The gain is measured with a vector of ±1 (mean 0, root mean square 1). RMSNorm, LayerNorm and norms that store
    gain − 1 then all give the gain that they apply. A norm that subtracts the mean gives its bias for a vector of ones.
    """
    width = step.given.shape[1]
    signs = torch.ones(width, device=step.given.device, dtype=_dtype(step.module, step.given))
    signs[1::2] = -1
    if width % 2:
        signs[-2:] = signs.new_tensor([1, -2])  # the mean is 0 for an odd width too
    zero = step.module(torch.zeros_like(signs)[None])[0]
    gain = ((step.module(signs[None])[0] - zero) / signs).float() * signs.float().square().mean().sqrt()
    centred = bool((step.module(torch.ones_like(signs)[None])[0] - zero).float().norm() < 0.5 * gain.norm())
    given = step.given - step.given.mean(1, keepdim=True) if centred else step.given
    if not _same(given * gain, step.made - zero.float()):
        raise _unknown([step.name])
    return gain, centred


def _dtype(module: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype of a module's weights; that of `x` for a module without any."""
    return next((parameter.dtype for parameter in module.parameters()), x.dtype)


def _unknown(names: list[str]) -> SubjectError:
    """The error for a model whose last steps cannot be written as a lens. `names`: the steps that were found."""
    return SubjectError(
        f"the steps between the last layer and the logits are of an unknown kind ({', '.join(names) or 'none found'})",
        expected="at most a norm and a linear map before the LM head",
        todo="nothing: `top_outputs` stays empty, and everything else is computed",
    )
