"""Intervals of shares, and of sums and ratios of shares.

What belongs here: `Interval`, Wilson's interval, and MOVER, which makes one interval from several. How many independent
judgements a share rests on is decided in `rates`; areas have intervals of their own, in `areas`. The conventions for
blocks of latents are those of `metrics`. Each function names its source. Simulated coverage decided between candidates
(docs/methods.md, Intervals).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Shaped
from scipy import stats

from latentgloss.statistics.clusters import PerLatent

if TYPE_CHECKING:
    from collections.abc import Sequence


class Interval(NamedTuple):
    """A value per latent [latents] and the ends of its interval, all in the unit of the value."""

    value: PerLatent
    low: PerLatent
    high: PerLatent


def wilson(
    share: PerLatent, n: Shaped[np.ndarray, " latents"], level: float = 0.95, df: PerLatent | float = np.inf
) -> Interval:
    """Wilson's score interval of a share p of n judgements (Wilson, JASA 22:209, 1927).

    (p + q² / 2n ± q √(p (1 - p) / n + q² / 4n²)) / (1 + q² / n), with q the two-sided quantile at `level`: the normal
    one, or Student's if `df` is finite. `n` may be an effective number of judgements. The width is never zero, not even
    at p = 0 or 1. The ends are NaN where p or n is NaN, or n is 0.
    """
    q2 = quantile(level, df) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (share + q2 / (2 * n)) / (1 + q2 / n)
        half = np.sqrt(q2 * (share * (1 - share) / n + q2 / (4 * n**2))) / (1 + q2 / n)
        # At 0 and 1, rounding would move an end slightly past the share.
        low, high = np.fmin(np.clip(centre - half, 0, 1), share), np.fmax(np.clip(centre + half, 0, 1), share)
    known = np.isfinite(centre)
    return Interval(share, np.where(known, low, np.nan), np.where(known, high, np.nan))


def mover(
    parts: Sequence[Interval], weights: Sequence[PerLatent | float], correlation: PerLatent | float = 0.0
) -> Interval:
    """MOVER: interval of θ = Σ w_i θ_i from the intervals (l_i, u_i) of the θ_i; w_i ≥ 0, θ in [0, 1].

    L = θ - √(Σ w_i² (θ_i - l_i)² + 2 r w₁ w₂ (θ₁ - l₁) (θ₂ - l₂)), U = θ + √(the same with u_i - θ_i), both clipped to
    [0, 1] (Zou & Donner, Stat. Med. 27:1693, 2008). r is `correlation`, that of the first two parts; the others count
    as independent. A part of weight 0 is left out, even where it is NaN; any other NaN makes the result NaN.
    """
    zero = np.zeros_like(parts[0].value)
    value, down, up = zero, zero, zero
    for part, weight in zip(parts, weights, strict=True):
        used = np.asarray(weight) != 0
        value = value + np.where(used, weight * part.value, 0.0)
        down = down + np.where(used, (weight * (part.value - part.low)) ** 2, 0.0)
        up = up + np.where(used, (weight * (part.high - part.value)) ** 2, 0.0)
    if np.any(correlation):
        (a, b), (w, x) = parts[:2], weights[:2]
        down = down + 2 * correlation * w * x * (a.value - a.low) * (b.value - b.low)
        up = up + 2 * correlation * w * x * (a.high - a.value) * (b.high - b.value)
    low, high = value - np.sqrt(np.maximum(down, 0.0)), value + np.sqrt(np.maximum(up, 0.0))
    return Interval(value, np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0))


def mover_ratio(top: Interval, bottom: Interval) -> Interval:
    """MOVER-R: interval of the ratio θ₁ / θ₂ ≥ 0 from the intervals (l_i, u_i) of independent θ₁ and θ₂.

    L = (θ₁θ₂ - √((θ₁θ₂)² - l₁ u₂ (2θ₁ - l₁) (2θ₂ - u₂))) / (u₂ (2θ₂ - u₂)),
    U = (θ₁θ₂ + √((θ₁θ₂)² - u₁ l₂ (2θ₁ - u₁) (2θ₂ - l₂))) / (l₂ (2θ₂ - l₂))
    (Donner & Zou, Stat. Methods Med. Res. 21:347, 2012). The upper end is ∞ where θ₂ could be 0. The ends are NaN where
    a lower end given is NaN.
    """
    (a, low_a, high_a), (b, low_b, high_b) = top, bottom
    with np.errstate(invalid="ignore", divide="ignore"):
        under, over = high_b * (2 * b - high_b), low_b * (2 * b - low_b)
        inner, outer = low_a * (2 * a - low_a), high_a * (2 * a - high_a)
        # The lower root is rationalised because `under` passes through zero where θ₂ is half of u₂.
        low = inner / (a * b + np.sqrt(np.maximum((a * b) ** 2 - under * inner, 0.0)))
        high = (a * b + np.sqrt(np.maximum((a * b) ** 2 - over * outer, 0.0))) / over
        known = ~np.isnan(low_a + low_b)
        low, high = np.where(inner > 0, low, 0.0), np.where(over > 0, high, np.inf)
        return Interval(a / b, np.where(known, low, np.nan), np.where(known, high, np.nan))


def ratio(top: Shaped[np.ndarray, " latents"], bottom: Shaped[np.ndarray, " latents"]) -> PerLatent:
    """top / bottom [latents]; NaN where `bottom` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: PerLatent = np.where(bottom > 0, top / bottom, np.nan)
    return result


def quantile(level: float, df: PerLatent | float) -> PerLatent | float:
    """Two-sided quantile of Student's t at `level`; at df = inf it is the normal one."""
    found: PerLatent | float = stats.t.ppf((1 + level) / 2, df)
    return found
