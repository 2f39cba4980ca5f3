"""SparseCoder: the one form that every SAE and transcoder takes after reading, whatever its format on disk.

What belongs here: encoding activations to sparse (token, latent, value) triples, and decoding them. Readers fold what
can be folded (scales, decoder norms) into the weights, so one formula remains:

    pre = (norm(x) − subtract_b_dec · b_dec) W_enc + b_enc
    f   = activation(pre)
    x̂   = denorm(f W_dec + b_dec) + x W_skipᵀ

Only activations above 0 are kept. Arithmetic is float32 whatever the stored dtype, because bfloat16 loses thresholds
and the choice between latents of nearly equal strength. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from latentgloss.errors import SaeError
from latentgloss.saes.selection import GROUPS, GroupMax, JumpRelu, Relu, TopK, top

if TYPE_CHECKING:
    from latentgloss.saes.selection import Activation, Sparse

_LAYER_NORM_EPS = 1e-5
_NO_NORM = 1e-12
"""Norm up to which a decoder row counts as zero; `torch.nn.functional.normalize` makes no unit vectors of such rows."""
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 28}
"""Pre-activations in memory at once: on a CPU about what its caches hold; a GPU is faster with large products."""


@dataclass(frozen=True)
class SparseCoder:
    """An SAE (d_out = d_in) or a transcoder. All tensors are float32 and on one device.

    Raises SaeError if the parts do not fit together.
    """

    W_enc: Float[Tensor, "d n"]
    b_enc: Float[Tensor, " n"]
    W_dec: Float[Tensor, "n d_out"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation
    subtract_b_dec: bool
    """Whether b_dec is subtracted from the input before encoding; never for transcoders."""
    input_norm: Literal["none", "layer_norm", "rescale"] = "none"
    """`layer_norm`: (x − mean) / (std + 1e-5); `rescale`: x · √d / ‖x‖. Both are undone after decoding."""
    W_skip: Float[Tensor, "d_out d"] | None = None
    """Skip connection from the input to the output; None: there is none."""
    bfloat16_weights: bool = False
    """Whether W_enc was stored in bfloat16, so that rounding it to bfloat16 changes nothing."""
    transcoder: bool = False
    """Whether the reconstruction is of another place in the model than the input: a module's output from its input."""
    identity: bool = False
    """Whether W_enc is the identity and both biases are zero. Then pre = norm(x), without a product."""
    weights_sha256: str = ""
    """Digest of what the coder was read from (`sae_digest`)."""

    def __post_init__(self) -> None:
        d, n = self.W_enc.shape
        if self.subtract_b_dec and self.d_out != d:
            raise SaeError(
                f"b_dec (width {self.d_out}) cannot be subtracted from the input of a transcoder",
                expected=f"width {d}, like the input",
            )
        if isinstance(self.activation, TopK | GroupMax) and not 0 < self.activation.k <= n:
            raise SaeError(f"k = {self.activation.k}", expected=f"1 to {n}, the number of latents")
        if isinstance(self.activation, GroupMax) and n % self.activation.k:
            raise SaeError(f"k = {self.activation.k} groups", expected=f"a divisor of the {n} latents")

    @property
    def d_in(self) -> int:
        """Width of the activations that are encoded."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @cached_property
    def directionless(self) -> list[int]:
        """Latents whose decoder row is zero, ascending: whatever they find, they write nothing."""
        found: list[int] = (~has_direction(self.W_dec)).nonzero().flatten().tolist()
        return found

    def to(self, device: torch.device | str) -> SparseCoder:
        """The coder with all tensors on `device`."""
        activation = self.activation
        if isinstance(activation, JumpRelu):
            activation = JumpRelu(activation.threshold.to(device))
        skip = None if self.W_skip is None else self.W_skip.to(device)
        tensors = {name: getattr(self, name).to(device) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return replace(self, activation=activation, W_skip=skip, **tensors)

    def check_width(self, width: int, hookpoint: str) -> None:
        """Raises SaeError unless activations of this width, found at `hookpoint`, can be encoded."""
        if width != self.d_in:
            raise SaeError(
                f"the SAE takes activations of width {self.d_in}; those at {hookpoint} have width {width}",
                expected="equal widths",
                todo="correct `hookpoint` or `model` of this SAE in the registry",
            )

    @torch.inference_mode()
    def encode_sparse(self, x: Float[Tensor, "tokens d"]) -> Sparse:
        """Activations above 0 of all latents on every token, ordered by token.

        One chunk of pre-activations is in memory at a time, never all [tokens, n]. Raises SaeError if the width of `x`
        is not d_in.
        """
        self.check_width(x.shape[1], "the input")
        bias = None if self.identity else self._encoder_bias()
        exact = self.bfloat16_weights and x.dtype == torch.bfloat16 and self.input_norm == "none"
        rounded = self.W_enc.bfloat16() if exact and bias is not None and _has_mixed_products(x.device) else None
        rows = max(16, _CHUNK.get(x.device.type, 1 << 20) // self.n_latents)
        parts: list[Sparse] = []
        for start in range(0, len(x), rows):
            if bias is not None and rounded is not None:
                pre = torch.mm(x[start : start + rows], rounded, out_dtype=torch.float32).add_(bias)
            else:
                chunk, _, _ = self._normalised(x[start : start + rows].float())
                pre = chunk
                if bias is not None:
                    with _bfloat16_products(exact):
                        pre = torch.addmm(bias, chunk, self.W_enc)
            token, latent, value = self._active(pre)
            parts.append((token + start, latent, value))
        if not parts:
            empty = torch.zeros(0, dtype=torch.int64, device=x.device)
            return empty, empty, torch.zeros(0, device=x.device)
        token, latent, value = (torch.cat(column) for column in zip(*parts, strict=True))
        return token, latent, value

    @torch.inference_mode()
    def decode_sparse(
        self,
        token: Int[Tensor, " m"],
        latent: Int[Tensor, " m"],
        value: Float[Tensor, " m"],
        x: Float[Tensor, "tokens d"],
    ) -> Float[Tensor, "tokens d_out"]:
        """Reconstruction (float32) from triples ordered by token, as `encode_sparse` returns them for the same `x`.

        `x` gives the number of tokens, the scales that undo the input normalisation, and the input of the skip
        connection.
        """
        x = x.float()
        offsets = torch.searchsorted(token.contiguous(), torch.arange(len(x), device=x.device))
        out = embedding_bag(latent, self.W_dec, offsets, mode="sum", per_sample_weights=value) + self.b_dec
        if self.input_norm != "none":
            _, scale, shift = self._normalised(x)
            out = out * scale + shift
        return out if self.W_skip is None else out + x @ self.W_skip.T

    def largest_pre(self, norms: Float[Tensor, " tokens"]) -> float:
        """A bound on the pre-activations of activations with these norms; infinite if it does not fit into float32."""
        if not len(norms):
            return 0.0
        # A normalised activation has at most the norm √d, whatever it was before.
        largest = norms.max() if self.input_norm == "none" else norms.new_tensor(self.d_in**0.5)
        weight, bias = self._largest
        return float(largest * weight + bias)

    @cached_property
    def _largest(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """(√d times the largest encoder weight, which no direction's norm exceeds; the largest encoder bias)."""
        weight = self.W_enc.new_ones(()) if self.identity else self.W_enc.abs().max() * self.d_in**0.5
        return weight, self._encoder_bias().abs().max()

    def _encoder_bias(self) -> Float[Tensor, " n"]:
        """b_enc − b_dec W_enc, which replaces the subtraction of b_dec from every activation."""
        return self.b_enc - self.b_dec @ self.W_enc if self.subtract_b_dec else self.b_enc

    def _normalised(
        self, x: Float[Tensor, "tokens d"]
    ) -> tuple[Float[Tensor, "tokens d"], Tensor | float, Tensor | float]:
        """(norm(x), scale, shift): scale and shift undo the normalisation after decoding."""
        if self.input_norm == "rescale":
            norm = x.norm(dim=1, keepdim=True) / self.d_in**0.5
            return x / norm, norm, 0.0
        if self.input_norm == "layer_norm":
            mean = x.mean(1, keepdim=True)
            std = x.std(1, keepdim=True)
            return (x - mean) / (std + _LAYER_NORM_EPS), std, mean
        return x, 1.0, 0.0

    def _active(self, pre: Float[Tensor, "tokens n"]) -> Sparse:
        """The triples of one chunk of pre-activations."""
        match self.activation:
            case TopK(k):
                value, latent = top(pre, k, GROUPS.get(pre.device.type, 1))
            case GroupMax(k):
                value, latent = pre.reshape(len(pre), k, -1).max(dim=2)
                latent += torch.arange(0, self.n_latents, self.n_latents // k, device=pre.device)
            case JumpRelu(threshold):
                token, latent = (pre > threshold.clamp_min(0)).nonzero(as_tuple=True)
                return token, latent, pre[token, latent]
            case Relu():
                token, latent = (pre > 0).nonzero(as_tuple=True)
                return token, latent, pre[token, latent]
        token, column = (value > 0).nonzero(as_tuple=True)
        return token, latent[token, column], value[token, column]


def has_direction(decoder: Float[Tensor, "n d_out"]) -> Bool[Tensor, " n"]:
    """Whether each decoder row is other than zero, which is whether its cosine with other rows is defined."""
    found: Tensor = decoder.norm(dim=1) > _NO_NORM
    return found


def _has_mixed_products(device: torch.device) -> bool:
    """Whether bfloat16 matrices can be multiplied into float32: exact products at several times the speed."""
    return device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype")  # from torch 2.8 on


@contextmanager
def _bfloat16_products(allowed: bool) -> Iterator[None]:
    """Lets oneDNN multiply float32 matrices as bfloat16 with float32 sums. This halves the time on CPUs that can.

    `allowed` must be true only if both factors hold bfloat16 values. Then the products are exact, and only the order of
    the sums differs.
    """
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)  # absent before torch 2.9
    if matmul is None or not allowed:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
