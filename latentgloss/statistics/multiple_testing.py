"""Adjusted p-values for families of tests.

What belongs here: Holm's adjustment, for a table in which one false claim is one too many, and Benjamini-Hochberg's,
for many latents of which a small share of false claims is acceptable. The caller decides what a family is: a table, or
the latents of one SAE. NaN stands for a comparison without a test. It stays NaN and does not count in the family.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats


def holm(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Adjusted p-values that control the chance of any false claim (Holm, Scand. J. Stat. 6:65, 1979).

    p̃_(i) = min(1, max over j ≤ i of (m - j + 1) p_(j)), with p_(1) ≤ … ≤ p_(m) the p-values that are not NaN.
    """
    known = ~np.isnan(p)
    values = p[known]
    m, order = len(values), np.argsort(values, kind="stable")
    steps = np.minimum(np.maximum.accumulate(values[order] * (m - np.arange(m))), 1.0)
    return _filled(p, known, order, steps)


def benjamini_hochberg(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Adjusted p-values that control the expected share of false claims among all claims.

    p̃_(i) = min(1, min over j ≥ i of m p_(j) / j), with p_(1) ≤ … ≤ p_(m) the p-values that are not NaN
    (Benjamini & Hochberg, J. R. Stat. Soc. B 57:289, 1995).
    """
    known = ~np.isnan(p)
    values = p[known]
    return _filled(p, known, np.arange(len(values)), stats.false_discovery_control(values) if len(values) else values)


def _filled(
    p: Float[np.ndarray, "*shape"],
    known: np.ndarray,
    order: np.ndarray,
    adjusted: np.ndarray,
) -> Float[np.ndarray, "*shape"]:
    """An array like `p` with `adjusted`, which is in ascending order, at the places where p is `known`."""
    in_place = np.empty(len(order))
    in_place[order] = adjusted
    result = np.full(p.shape, np.nan)
    result[known] = in_place
    return result
