"""Do 95 % intervals contain the truth in 95 of 100 cases? Every interval that is stored, over simulated latents.

    python benchmarks/interval_coverage.py          all cells, result, figure in docs/images/coverage.svg

A cell is a metric, a true value, judgements per class, a size of cluster and a correlation within it. What is judged
is made up, so the truth is known: answers are beta-binomial in clusters (documents, or prompts of five), evidence is
normal with a normal effect of the cluster. Tests run a part of the cells.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from latentgloss import statistics
from latentgloss.intervals import Interval

if TYPE_CHECKING:
    from pathlib import Path

LATENTS = 5000
BANDS = tuple((0.55 + 0.08 * i, 0.63 + 0.08 * i) for i in range(5))
"""Of true values. At one exact value the lattice of possible rates alone moves coverage by ±2 % (Brown, Cai & DasGupta,
Stat. Sci. 16:101, 2001), whatever the interval; no latent has one exact value."""
PER_CLASS = (50, 100, 200)
SIZES = (2, 5)
"""Judgements of a class per cluster: contexts per document as sampled, contexts per prompt."""
CORRELATIONS = (0.0, 0.3)


class Judged(NamedTuple):
    """A block of latents, as `statistics` takes them; `right`: the judge agrees with `truth`."""

    truth: np.ndarray
    right: np.ndarray
    valid: np.ndarray
    cluster: np.ndarray
    stratum: np.ndarray


def answers(chances: np.ndarray, n: int, size: int, correlation: float, rng: np.random.Generator) -> Judged:
    """n judgements of each kind, right with chances [latents kinds]: positives first, then strata of negatives.

    Kinds have documents of their own. Of three documents one is short: it holds half as many judgements.
    """
    latents, kinds = chances.shape
    sizes = np.full(2 * n, size)
    sizes[::3] = max(1, size // 2)
    of_kind = np.repeat(np.arange(2 * n), sizes)[:n]
    k = int(of_kind.max()) + 1
    kind = np.repeat(np.arange(kinds), n)
    cluster = np.tile(of_kind, kinds) + k * kind
    p = chances.repeat(k, axis=1)
    if correlation:
        scale = (1 - correlation) / correlation
        p = rng.beta(p * scale, (1 - p) * scale)
    right = rng.random((latents, kinds * n)) < p[:, cluster]
    truth, cluster, kind = (np.broadcast_to(a, right.shape) for a in (kind == 0, cluster, kind))
    return Judged(truth, right, np.ones_like(truth), cluster, kind - 1)


def evidence(judged: Judged, area: np.ndarray, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Normal evidence with an effect of the document; `area` [latents strata] is what each stratum's AUROC is."""
    shared = rng.standard_normal((len(area), int(judged.cluster.max()) + 1))[:, judged.cluster[0]]
    noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.standard_normal(judged.truth.shape)
    below = np.sqrt(2) * stats.norm.ppf(area)
    values: np.ndarray = noise - np.where(judged.truth, 0.0, below[:, np.maximum(judged.stratum[0], 0)])
    return values


def covered(interval: Interval, true: np.ndarray) -> float:
    return float(np.mean((interval.low <= true) & (true <= interval.high)))


def cell(
    metric: str, band: tuple[float, float], n: int, size: int, correlation: float, latents: int = LATENTS
) -> float:
    """Share of `latents`, with true values even in `band`, whose interval holds the truth. The seed is the cell's."""
    rng = np.random.default_rng([METRICS.index(metric), int(100 * band[0]), n, size, int(10 * correlation)])
    true = rng.uniform(*band, latents)
    draw = partial(answers, n=n, size=size, correlation=correlation, rng=rng)
    if metric == "auroc":
        judged = draw(np.full((latents, 2), 0.5))
        values = evidence(judged, true[:, None], correlation, rng)
        return covered(statistics.auroc(judged.truth, values, judged.valid, judged.cluster), true)
    if metric in ("tpr", "tnr", "balanced_accuracy"):
        # Balanced accuracy is made of unequal rates.
        more = rng.uniform(-1, 1, latents) * np.minimum(0.2, 0.99 - true) * (metric == "balanced_accuracy")
        judged = draw(np.stack([true + more, true - more], axis=1))
        found = statistics.rate_intervals(judged.truth, judged.right == judged.truth, judged.valid, judged.cluster)
        return covered(getattr(found, metric), true)
    # The population: two strata of negatives, the smaller one harder.
    share = rng.uniform(0.02, 0.3, latents)
    share = np.stack([share, 1 - share], axis=1)
    if metric == "population_auroc":
        easy = np.minimum(0.98, true + rng.uniform(0, 0.1, latents))
        areas = np.stack([(true - share[:, 1] * easy) / share[:, 0], easy], axis=1)
        keep = (areas[:, 0] > 0.3) & (areas[:, 0] < 0.98)
        share, areas, true = share[keep], areas[keep], true[keep]
        judged = draw(np.full((len(true), 3), 0.5))
        values = evidence(judged, areas, correlation, rng)
        area = statistics.auroc(judged.truth, values, judged.valid, judged.cluster, stratum=judged.stratum, share=share)
        return covered(area, true)
    tpr, easy = rng.uniform(0.55, 0.95, latents), rng.uniform(0.02, 0.3, latents)
    if metric == "population_tnr":
        easy = (1 - true) / (2 * share[:, 0] + share[:, 1])
    fprs = np.stack([np.minimum(2 * easy, 0.95), easy], axis=1)
    fpr = (share * fprs).sum(1)
    if metric == "population_tnr":
        true = 1 - fpr
    if metric == "population_balanced_accuracy":
        true = (tpr + 1 - fpr) / 2
    rate = true * fpr / (tpr * (1 - true) + true * fpr) if metric == "precision" else np.full(latents, 0.05)
    judged = draw(np.concatenate([tpr[:, None], 1 - fprs], axis=1))
    found_there = statistics.prevalence_weighted(
        judged.truth, judged.right == judged.truth, judged.valid, judged.cluster, judged.stratum, share, rate
    )
    if metric == "precision":
        return covered(found_there.precision, true)
    if metric == "population_tnr":
        return covered(found_there.fpr, 1 - true)
    return covered(found_there.balanced_accuracy, true)


METRICS = (
    "tpr",
    "tnr",
    "balanced_accuracy",
    "auroc",
    "population_tnr",
    "population_balanced_accuracy",
    "population_auroc",
    "precision",
)


def figure(cells: dict[str, dict[str, float]], path: Path) -> None:
    """One row per metric, one dot per cell at its coverage; the band asked for behind them. SVG by hand."""
    left, width, row, top = 220, 420, 30, 34
    low, high = 0.90, 1.0

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    height = top + row * len(cells) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 30}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{left + width + 30}" height="{height}" fill="#fff"/>',
        f'<rect x="{x(0.93):.1f}" y="{top}" width="{x(0.97) - x(0.93):.1f}" height="{row * len(cells)}" '
        'fill="#e4eef7"/>',
        f'<line x1="{x(0.95):.1f}" x2="{x(0.95):.1f}" y1="{top}" y2="{top + row * len(cells)}" stroke="#6b8fb3"/>',
        f'<text x="{left}" y="20" fill="#333">share of intervals that hold the truth; '
        "open: independent, filled: correlation .3</text>",
    ]
    for tick in (0.90, 0.93, 0.95, 0.97, 1.0):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{tick:.2f}</text>')
    for number, (metric, found) in enumerate(cells.items()):
        y = top + row * (number + 0.5)
        parts.append(f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end" fill="#222">{metric}</text>')
        for key, value in found.items():
            clustered = key.endswith("icc 0.3")
            fill, shift = ("#1f5a91", 5) if clustered else ("#fff", -5)
            parts.append(
                f'<circle cx="{x(value):.1f}" cy="{y + shift:.1f}" r="2.6" fill="{fill}" stroke="#1f5a91" '
                'stroke-width="1"/>'
            )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def main() -> None:
    import world

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=LATENTS, help="simulated per cell")
    arguments = parser.parse_args()
    cells = {
        metric: {
            f"true {band[0]:.2f}-{band[1]:.2f}, n {n}, cluster {size}, icc {correlation}": round(
                cell(metric, band, n, size, correlation, arguments.latents), 4
            )
            for band, n, size, correlation in product(BANDS, PER_CLASS, SIZES, CORRELATIONS)
        }
        for metric in METRICS
    }
    figure(cells, world.ROOT / "docs" / "images" / "coverage.svg")
    summary = {metric: [min(found.values()), max(found.values())] for metric, found in cells.items()}
    world.record("interval-coverage", {"latents_per_cell": arguments.latents, "range": summary, "cells": cells})


if __name__ == "__main__":
    main()
