"""The subject model: the language model whose activations the SAEs read.

What belongs here: loading the model, and a forward pass that returns activations at hookpoints and stops after the last
of them. Weights and tokenizer come from `files.py` and `tokenizer.py`. Reads the model's files; writes nothing except
the conversion that `files.py` makes at the first load.

A **hookpoint** is the path of a module in the Hugging Face *base* model (the model without its LM head): `layers.9` is
the output of that layer (the residual stream after it), `layers.9.mlp` is the output of its MLP. With `@input`
appended, it is the module's input. If the model runs a module several times in a forward pass, as Phi runs its
`resid_dropout`, the hookpoint is its first run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from latentgloss.config.entries import INPUT, ModelSpec
from latentgloss.errors import SubjectError
from latentgloss.machine.memory import keep_freed_memory
from latentgloss.models.causality import check_causal
from latentgloss.models.cpu_attention import use_causal_attention
from latentgloss.models.cpu_linear import order_weights
from latentgloss.models.devices import chosen_device
from latentgloss.models.files import loading, quiet, ready_folder
from latentgloss.models.identity import subject_identity, tokenizer_identity
from latentgloss.models.logit_lens import LogitLens, lens_of
from latentgloss.models.sites import Places
from latentgloss.models.tokenizer import load_tokenizer, tokenizer_in
from latentgloss.models.weights import load_causal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


__all__ = ["INPUT", "LogitLens", "Subject", "load_subject", "load_tokenizer", "tokenizer_identity"]


class _Stop(Exception):
    """Ends a forward pass after the last hookpoint."""


class Subject:
    """A loaded subject model. `load_subject` makes one."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        identity: dict[str, Any],
        device: str = "cpu",
    ) -> None:
        self.tokenizer = tokenizer
        self.identity = identity
        """Everything that decides the activations, without paths; part of recipes (`identity.subject_identity`)."""
        self.device = torch.device(device)
        model.eval()
        model.requires_grad_(False).to(device)  # type: ignore[arg-type]
        self._model = model
        self._base: nn.Module = model.base_model
        self._modules: dict[str, nn.Module] = {name: module for name, module in self._base.named_modules() if name}
        self._widths: dict[str, int] = {}

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self._model.config.get_text_config().hidden_size)

    def hookpoints(self) -> list[str]:
        """Every module whose output is one activation vector per token, in the order in which the model runs them."""
        self._measure_widths()
        return [name for name in self._widths if not name.endswith(INPUT)]

    def width_at(self, hookpoint: str) -> int:
        """Width d of the activations at a hookpoint. Raises SubjectError if there are none."""
        self._module(hookpoint)
        self._measure_widths()
        if hookpoint not in self._widths:
            raise self._unknown(hookpoint, "yields no activation of shape [batch, seq, d]")
        return self._widths[hookpoint]

    def activations(
        self, tokens: Integer[np.ndarray, "batch seq"], hookpoints: Sequence[str]
    ) -> dict[str, Float[Tensor, "batch seq d"]]:
        """Activations at the hookpoints, in the model's dtype and on its device. Attention is causal.

        Makes one forward pass of the base model without a KV cache. The pass ends after the last of the hookpoints:
        later layers, the final norm and the LM head do not run. What is returned for a hookpoint does not depend on the
        others. Raises SubjectError for an unknown hookpoint.
        """
        wanted = {name: self._module(name) for name in dict.fromkeys(hookpoints)}
        caught: dict[str, Tensor] = {}
        if not wanted:
            return caught

        def keep(name: str, value: Any) -> None:
            if name in caught:  # a module that runs again
                return
            # A copy, because later code of the model may add to the tensor in place, as Falcon's layers do.
            found = self._one_per_token(name, value, tokens.shape)
            caught[name] = found.clone(memory_format=torch.contiguous_format)
            if len(caught) == len(wanted):
                raise _Stop

        with torch.inference_mode(), _hooked(wanted, keep), contextlib.suppress(_Stop):
            self._base(input_ids=self._tensor(tokens), use_cache=False)
        missing = sorted(wanted.keys() - caught.keys())
        if missing:
            raise self._unknown(missing[0], "is a module that the forward pass never runs")
        return {name: caught[name] for name in wanted}

    def lens(self) -> LogitLens:
        """The logit lens: the output tokens that a direction of the residual stream promotes. Raises as `lens_of`."""
        return lens_of(self._model)

    def _tensor(self, tokens: Integer[np.ndarray, "batch seq"]) -> Int[Tensor, "batch seq"]:
        return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(self.device)

    def _module(self, hookpoint: str) -> nn.Module:
        path = hookpoint.removesuffix(INPUT)
        if path not in self._modules:
            raise self._unknown(hookpoint, "is not a module of the base model")
        return self._modules[path]

    @cached_property
    def places(self) -> Places:
        """The model's places by the names that other tools use for them."""
        return Places(self._modules)

    @property
    def model_types(self) -> frozenset[str]:
        """`model_type` of the model's configuration and of the text model in it."""
        config: Any = self._model.config
        return frozenset({str(config.model_type), str(config.get_text_config().model_type)})

    @property
    def has_layer_norm(self) -> bool:
        """Whether any norm of the model subtracts a mean."""
        names = {type(module).__name__ for module in self._modules.values()}
        return any("LayerNorm" in name and "RMS" not in name for name in names)

    def _unknown(self, hookpoint: str, what: str) -> SubjectError:
        near = self.places.suggestions(hookpoint)
        return SubjectError(
            f"hookpoint {hookpoint!r} {what}",
            expected="a module path such as " + ", ".join(map(repr, near)),
            todo="correct `hookpoint` in the registry",
        )

    def _one_per_token(self, name: str, value: Any, shape: tuple[int, ...]) -> Float[Tensor, "batch seq d"]:
        tensor = _per_token(value, shape)
        if tensor is None:
            value = value[0] if isinstance(value, tuple) else value
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise self._unknown(name, f"yields {found}, not activations of shape {[*shape, 'd']},")
        return tensor

    def _measure_widths(self) -> None:
        """Fills `_widths` by running a few tokens once through the whole base model."""
        if self._widths:
            return
        tokens = torch.zeros(_WIDTHS_SHAPE, dtype=torch.int64, device=self.device)

        def keep(name: str, value: Any) -> None:
            tensor = _per_token(value, _WIDTHS_SHAPE)
            if tensor is not None:
                self._widths.setdefault(name, int(tensor.shape[2]))

        both = {name + suffix: m for name, m in self._modules.items() for suffix in ("", INPUT)}
        with torch.inference_mode(), _hooked(both, keep):
            self._base(input_ids=tokens, use_cache=False)


_WIDTHS_SHAPE = (2, 3)
"""Sequences and tokens by which widths are measured."""


def _per_token(value: Any, shape: tuple[int, ...]) -> Float[Tensor, "batch seq d"] | None:
    """The activations in what a module takes or returns, if it has one vector for each of `shape` tokens."""
    tensor = value[0] if isinstance(value, tuple) and value else value
    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim == 3 and tensor.shape[:2] == shape:
        return tensor
    return None


@contextlib.contextmanager
def _hooked(modules: dict[str, nn.Module], keep: Callable[[str, Any], None]) -> Iterator[None]:
    """Within the block, calls `keep(hookpoint, value)` with each module's output, or its input for `@input`."""
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            if name.endswith(INPUT):

                def before(_m: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                    keep(name, args[0] if args else kwargs.get("hidden_states"))

                handle = module.register_forward_pre_hook(before, with_kwargs=True)
            else:

                def after(_m: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                    keep(name, output)

                handle = module.register_forward_hook(after)
            stack.callback(handle.remove)
        yield


def load_subject(spec: ModelSpec, cache_dir: Path, *, device: str | None = None) -> Subject:
    """The subject model, ready to run. The first load of a GGUF file converts it (about 25 s for 135M parameters).

    `device` defaults to CUDA if available, else the CPU. Raises SubjectError if files are missing or cannot be loaded,
    if they lack a weight that decides activations (`weights.py`), and if the model does not run on token ids alone or
    reads later tokens (`causality.py`); SettingsError for a device that this machine does not have.
    """
    folder = ready_folder(spec, cache_dir)
    device = chosen_device(device)
    with quiet(), loading(spec, folder):
        model = load_causal(spec, folder, head=False)
        tokenizer = tokenizer_in(folder)
    identity = subject_identity(spec, cache_dir)
    model.requires_grad_(False).to(device)  # type: ignore[arg-type]
    with quiet():
        if device == "cpu":
            keep_freed_memory()
            use_causal_attention(model)
            order_weights(model.base_model, lambda: _try(model, spec.name))
        check_causal(model, spec.name)
    return Subject(model, tokenizer, identity, device)


def _try(model: PreTrainedModel, name: str) -> None:
    """Uses a model in the ways in which a subject is used: a forward pass, and the logit lens, which reads a weight."""
    check_causal(model, name)
    head: Any = model.get_output_embeddings()
    getattr(head, "weight", None)
