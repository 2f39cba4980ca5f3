"""Names of places in a model: what other tools call a place, as a hookpoint of this model.

What belongs here: translating a name to hookpoints, given the paths of a model's modules. Known are the names of
TransformerLens (`blocks.3.hook_resid_post`), of other models and of models with an LM head (`model.layers.3.mlp` for
`h.3.mlp`), and short ones (`resid_post_layer_3`). Nothing is read, written or loaded.

A place of TransformerLens is defined by what the layer adds to the residual stream. So `hook_mlp_out` of a model that
normalises the MLP's output (Gemma 2) is the output of that norm, and not that of the module `mlp`.

Source: the code of TransformerLens (github.com/TransformerLensOrg/TransformerLens), components/transformer_block.py.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import TYPE_CHECKING

from latentgloss.config.entries import INPUT

if TYPE_CHECKING:
    from collections.abc import Iterable

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d{1,9})\.((?:\w+\.)*hook_\w+)")
_SHORT = re.compile(r"(?:(resid_pre|resid_mid|resid_post|resid|mlp_out|attn_out|mlp|attn)[_.])?(?:layer[_.]?)(\d{1,9})")
_IN_LAYER = re.compile(r"(?:[A-Za-z_]\w*\.)*?(?:layers|layer|h|blocks|block)\.(\d{1,9})((?:\.\w+)*)")
_OTHER_TOWERS = ("vision", "visual", "audio", "image", "encoder", "speech")

_KINDS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "z",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_post",
}
"""What follows `blocks.N.` in names of TransformerLens."""
_SHORT_KINDS = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_NORMS_OF_OUTPUT = {
    "attn_out": ("post_self_attn_layernorm", "post_attention_layernorm"),
    "mlp_out": ("post_mlp_layernorm", "post_feedforward_layernorm"),
}
"""Norms between a module's output and the residual stream, in models that have one after the MLP."""
_WITHIN = {
    "z": ("o_proj", "c_proj", "out_proj", "dense", "attention.out_proj"),
    "mlp_post": ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h"),
    "mlp_pre": ("gate_proj", "c_fc", "fc_in", "fc1", "dense_h_to_4h", "up_proj"),
}
_SECOND_NORM = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm", "ffn_norm")


class Places:
    """The places of one model, from the paths of the modules of its base model."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.modules = set(modules)
        lists = Counter(name.rpartition(".")[0] for name in self.modules if name.rpartition(".")[2].isdigit())
        text = {n: c for n, c in lists.items() if n and not any(tower in n for tower in _OTHER_TOWERS)} or dict(lists)
        self.layers = min(text, key=lambda name: (name.count("."), -text[name], name)) if text else ""
        """Path of the list of layers, such as `layers`, `h` or `language_model.layers`; empty if there is none."""
        self.n_layers = text.get(self.layers, 0)

    def hookpoints(self, name: str) -> list[str]:
        """The hookpoints of this model at the place that `name` means, the usual one first; empty if unknown."""
        if name.removesuffix(INPUT) in self.modules:
            return [name, *self._neighbours(name)]
        for pattern, kinds in ((_TRANSFORMER_LENS, _KINDS), (_SHORT, _SHORT_KINDS)):
            if match := pattern.fullmatch(name):
                layer, kind = match.groups() if pattern is _TRANSFORMER_LENS else match.groups()[::-1]
                kind = kind or "resid_post"
                return self._known(self._of_kind(int(layer), kinds.get(kind, kind)))
        suffix = INPUT if name.endswith(INPUT) else ""
        path = name.removesuffix(INPUT)
        for whole in (path.partition(".")[2], path.partition(".")[2].partition(".")[2]):
            if whole and whole in self.modules:  # `model.layers.9`: paths start inside the base model
                return [whole + suffix, *self._neighbours(whole + suffix)]
        if match := _IN_LAYER.fullmatch(path):
            return self._known(self._of_module(int(match[1]), match[2].lstrip("."), suffix))
        return []

    def suggestions(self, name: str) -> list[str]:
        """Up to three hookpoints for a name that is none: those at the place it means, or else similar paths.

        A similar path is in the same layer, because another layer's activations have the same width and are others.
        """
        path, suffix = name.removesuffix(INPUT), INPUT if name.endswith(INPUT) else ""
        ends = [f"{self.layers}.{i}" for i in (0, 1, self.n_layers - 1) if 0 <= i < self.n_layers]
        match = _IN_LAYER.fullmatch(path)  # of a layer that does not exist: the same part of layers that do
        parts = [end + match[2] for end in ends if end + match[2] in self.modules] if match else []
        some = [end + suffix for end in dict.fromkeys(parts or ends)]
        if path in self.modules:  # a list of layers, or a module that yields no activations
            return some
        if found := self.hookpoints(name):
            return found[:1]
        numbers = re.findall(r"\d+", path)
        if not numbers:
            return some
        own = f"{self.layers}.{numbers[0]}"
        candidates = sorted(m for m in self.modules if m == own or m.startswith(f"{own}."))
        near = difflib.get_close_matches(path, candidates, n=3, cutoff=0.5) if "hook" not in path else []
        return [m + suffix for m in near] or some

    def _known(self, found: list[str]) -> list[str]:
        return [name for name in dict.fromkeys(found) if name.removesuffix(INPUT) in self.modules]

    def _neighbours(self, hookpoint: str) -> list[str]:
        """The other name of a place between two layers: the output of one is the input of the next."""
        path, _, number = hookpoint.removesuffix(INPUT).rpartition(".")
        if path != self.layers or not number.isdigit():
            return []
        other = f"{path}.{int(number) - 1}" if hookpoint.endswith(INPUT) else f"{path}.{int(number) + 1}{INPUT}"
        return self._known([other])

    def _of_module(self, layer: int, rest: str, suffix: str) -> list[str]:
        """A module of a layer by its name in another model: the layer, its attention, its MLP, or a part of those."""
        base = f"{self.layers}.{layer}"
        if not rest:
            return [base + suffix, *self._neighbours(base + suffix)]
        first, _, inner = rest.partition(".")
        for group, kinds in ((_ATTENTION, ("z",)), (_MLP, ("mlp_post", "mlp_pre"))):
            own = self._module(layer, group) if first in group else None
            if own is None:
                continue
            if not inner:
                return [own + suffix]
            for names in (_WITHIN[kind] for kind in kinds):
                if inner in names:
                    return [f"{own}.{name}{suffix}" for name in names]
        return [f"{base}.{rest}{suffix}"]

    def _module(self, layer: int, names: tuple[str, ...]) -> str | None:
        return next((p for name in names if (p := f"{self.layers}.{layer}.{name}") in self.modules), None)

    def _of_kind(self, layer: int, kind: str) -> list[str]:
        base = f"{self.layers}.{layer}"
        if kind == "resid_post":
            return [base, *self._neighbours(base)]
        if kind == "resid_pre":
            return [base + INPUT, *self._neighbours(base + INPUT)]
        if kind == "resid_mid":
            return self._between(layer)
        if kind in _NORMS_OF_OUTPUT:
            return self._added(layer, kind)
        if kind in _WITHIN:
            own = self._module(layer, _ATTENTION if kind == "z" else _MLP)
            suffix = "" if kind == "mlp_pre" else INPUT
            return [f"{own}.{name}{suffix}" for name in _WITHIN[kind]] if own else []
        return []

    def _added(self, layer: int, kind: str) -> list[str]:
        """What the attention or the MLP of a layer adds to the residual stream."""
        if self._module(layer, _NORMS_OF_OUTPUT["mlp_out"]):
            norm = self._module(layer, _NORMS_OF_OUTPUT[kind])
            return [norm] if norm else []
        own = self._module(layer, _ATTENTION if kind == "attn_out" else _MLP)
        if own is None:
            return []
        if f"{self.layers}.{layer}.mlp.gelu_impl" in self.modules:  # BLOOM adds the residual stream inside the module
            return [f"{own}.dense" if kind == "attn_out" else f"{own}.dense_4h_to_h"]
        return [f"{own}.down_proj"] if own.endswith(".ffn") else [own]  # and so does MPT

    def _between(self, layer: int) -> list[str]:
        """The residual stream between attention and MLP; nothing in models that run both beside each other."""
        if self._module(layer, ("attention", "self_attention")):
            return []
        norm = self._module(layer, _SECOND_NORM)
        if norm and norm.endswith("post_attention_layernorm") and self._module(layer, _NORMS_OF_OUTPUT["mlp_out"]):
            own = self._module(layer, _MLP)  # this norm is of the attention's output, and none is before the MLP
            return [own + INPUT] if own else []
        return [norm + INPUT] if norm else []
