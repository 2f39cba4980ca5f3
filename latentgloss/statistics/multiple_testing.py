"""Families of tests: what several p are worth together.

What belongs here: adjusted p. Holm where one wrong claim in a table is one too many; Benjamini-Hochberg where a
share of wrong ones among many latents is borne. What makes a family is the caller's to say: a table, or the latents of
one SAE. NaN is a comparison without a test: it stays NaN and is not in the family.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats


def holm(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Adjusted p that keep the chance of any false claim (Holm, Scand. J. Stat. 6:65, 1979).

    The i-th smallest of m is multiplied by m - i + 1, at least what smaller ones got, at most 1.
    """
    known = ~np.isnan(p)
    values = p[known]
    m, order = len(values), np.argsort(values, kind="stable")
    steps = np.minimum(np.maximum.accumulate(values[order] * (m - np.arange(m))), 1.0)
    return _filled(p, known, order, steps)


def benjamini_hochberg(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Adjusted p that keep the expected share of false claims among all claimed (J. R. Stat. Soc. B 57:289, 1995)."""
    known = ~np.isnan(p)
    values = p[known]
    return _filled(p, known, np.arange(len(values)), stats.false_discovery_control(values) if len(values) else values)


def _filled(
    p: Float[np.ndarray, "*shape"],
    known: np.ndarray,
    order: np.ndarray,
    adjusted: np.ndarray,
) -> Float[np.ndarray, "*shape"]:
    of_known = np.empty(len(order))
    of_known[order] = adjusted
    result = np.full(p.shape, np.nan)
    result[known] = of_known
    return result
