"""Choice: the few types of units that a label names, best first.

What belongs here: choosing types by how much better a reader who knows only these names could guess on which units the
latent fires. That is the log likelihood of its fires on explain under two rates, one for named units and one for all
others; forms of a named word are guessed almost as well. Nothing is read or written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

    from latentgloss.explanations.labels.firing import Firing

ITEMS = 8
"""Most types that a label names. On the demo's SAEs, specificity of labels rises up to about eight names."""
LEAST_MASS, LIFT, WINDOWS = 0.005, 2.0, 2
"""A type is named only if it has this share of the mass, this multiple of the base rate, and this many windows."""
FEW = 3
"""Types that are named if none of them fits: those with most mass."""
OTHER = 0.5
"""By how much the log odds of unnamed units are below those of all units."""
FORM = 0.3
"""By how much the log odds of a form of a named word are below those of the word."""
ORDER = 30.0
"""Occurrences by which the base rate counts where names are put in order: rare types come later."""


def chosen_types(firing: Firing) -> list[int]:
    """Types to name, in order of their firing rate; at most `ITEMS`, one per stem, none if the latent has no mass."""
    rate = np.clip(firing.rate(), 1e-6, 0.95)
    able = (firing.mass > LEAST_MASS) & (rate > LIFT * firing.base) & (firing.windows >= WINDOWS)
    candidates = np.flatnonzero(able)
    if not len(candidates):
        candidates = np.argsort(-firing.mass, kind="stable")[:FEW]
        candidates = candidates[firing.mass[candidates] > 0]
    gain = np.array([_gain(firing, int(j), rate) for j in candidates])
    taken: dict[int, int] = {}
    for place in np.argsort(-gain, kind="stable"):
        if len(taken) < ITEMS and (gain[place] > 0 or not taken):
            taken.setdefault(int(firing.stems[candidates[place]]), int(candidates[place]))
    order = firing.rate(ORDER)
    return sorted(taken.values(), key=lambda j: (-order[j], j))


def _gain(firing: Firing, j: int, rate: Float64[np.ndarray, " types"]) -> float:
    """Nats of the latent's fires on explain that naming a type explains."""
    alike: Int64[np.ndarray, " forms"] = np.flatnonzero(firing.stems == firing.stems[j])
    other = np.log(firing.base / max(1 - firing.base, 1e-9)) - OTHER
    named = np.where(alike == j, 0.0, -FORM) + np.log(rate[j] / (1 - rate[j]))
    best = np.maximum(named, other)

    def likelihood(odds: np.ndarray | float) -> np.ndarray:
        found: np.ndarray = firing.fire[alike] * odds - firing.occur[alike] * np.logaddexp(0, odds)
        return found

    return float((likelihood(best) - likelihood(other)).sum())
