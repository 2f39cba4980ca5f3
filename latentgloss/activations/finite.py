"""Finite activations: an activation that is NaN or infinite is an error, because no latent can be read from it.

What belongs here: the check of one batch of activations before an SAE encodes it. A comparison with NaN is false, so
without this check such tokens would be missing from the cache and nothing would say so. Reads activations, float
[tokens, d], on the device that computed them; writes nothing.

Pre-activations of finite activations are finite if they cannot exceed float32: |pre| ≤ ‖x‖ · ‖w‖ + |b|
(Cauchy-Schwarz). So the large array of pre-activations is not read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentgloss.errors import SaeError, SubjectError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Float32

    from latentgloss.saes.coder import SparseCoder


def check_finite(
    x: Float[torch.Tensor, "tokens d"],
    norms: Float32[torch.Tensor, " tokens"],
    *,
    hookpoint: str,
    partition: str,
    first: int,
    dtype: str,
) -> None:
    """Raises SubjectError if an activation is NaN or infinite.

    `norms`: the norm of each row of `x`. `hookpoint` and `partition` (the SAE) are named in the error. `first` is the
    position of the first row in the corpus, `dtype` that in which the model runs.
    """
    import torch

    bad = ~torch.isfinite(norms)
    if not bad.any():
        return
    rows = bad.nonzero().flatten()
    n_nan, n_infinite = int(x.isnan().sum()), int(x.isinf().sum())
    what = f"{n_nan} values NaN, {n_infinite} infinite" if n_nan or n_infinite else "their norms exceed float32"
    precise = "" if dtype == "float32" else 'set dtype = "float32" in the model\'s registry file, '
    raise SubjectError(
        f"{partition}: the activations at {hookpoint} are not finite on {len(rows)} of {len(x)} tokens of a batch "
        f"({what}; the first at position {first + int(rows[0])} of the corpus)",
        expected="finite activations, because no latent can be read from NaN or infinity",
        todo=f"{precise}check that the model's weights are intact, or choose another hookpoint",
    )


def check_encodable(norms: Float32[torch.Tensor, " tokens"], coder: SparseCoder, *, hookpoint: str) -> None:
    """Raises SaeError if the SAE makes NaN or infinity of finite activations with these norms."""
    if coder.input_norm == "rescale":
        zero = int((norms == 0).sum())
        if zero:
            raise SaeError(
                f"the activations at {hookpoint} are zero on {zero} of {len(norms)} tokens of a batch",
                expected="activations other than zero, because the SAE scales each of them to a fixed norm",
                todo="check that `hookpoint` and `model` in the registry are those on which the SAE was trained",
            )
    if not coder.largest_pre(norms) < float("inf"):
        raise SaeError(
            f"the pre-activations of the SAE may exceed float32 at {hookpoint}",
            expected="activations and weights whose products fit into float32",
            todo="check that `hookpoint` and `model` in the registry are those on which the SAE was trained",
        )
