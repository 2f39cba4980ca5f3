"""Do 95 % intervals contain the truth in 95 of 100 cases? Every interval that is stored, over simulated latents.

    python benchmarks/interval_coverage.py          all cells, result, figure in docs/images/coverage.svg

A cell is a metric, a true value, judgements per class, a size of cluster and a correlation within it. What is judged
is made up, so the truth is known: answers are beta-binomial in clusters (documents, or prompts of five), evidence is
normal with a normal effect of the cluster. Tests run a part of the cells.
"""

from __future__ import annotations

import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats

from latentgloss import statistics
from latentgloss.intervals import Interval

sys.path.insert(0, str(Path(__file__).resolve().parent))

LATENTS = 5000
BANDS = tuple((0.55 + 0.08 * i, 0.63 + 0.08 * i) for i in range(5))
"""Of true values. At one exact value the lattice of possible rates alone moves coverage by ±2 % (Brown, Cai & DasGupta,
Stat. Sci. 16:101, 2001), whatever the interval; no latent has one exact value."""
PER_CLASS = (50, 100, 200)
SIZES = (2, 5)
"""Judgements of a class per cluster: contexts per document as sampled, contexts per prompt."""
CORRELATIONS = (0.0, 0.3)


def answers(
    true: np.ndarray, other: np.ndarray, n: int, size: int, correlation: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """truth, prediction, valid, cluster: n positives recognised with chance `true`, n negatives with `other`.

    The classes have documents of their own. Of three documents one is short: it holds half as many judgements.
    """
    sizes = np.full(2 * n, size)
    sizes[::3] = max(1, size // 2)
    of_class = np.repeat(np.arange(2 * n), sizes)[:n]
    k = int(of_class.max()) + 1
    cluster = np.concatenate([of_class, of_class + k])
    chances = np.stack([true, other], axis=1).repeat(k, axis=1)
    if correlation:
        scale = (1 - correlation) / correlation
        chances = rng.beta(chances * scale, (1 - chances) * scale)
    right = rng.random((len(true), 2 * n)) < chances[:, cluster]
    truth = np.broadcast_to(np.arange(2 * n) < n, right.shape)
    return truth, right == truth, np.ones_like(truth), np.broadcast_to(cluster, right.shape)


def evidence(
    area: np.ndarray, n: int, size: int, correlation: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """truth, evidence, valid, cluster with AUROC `area`."""
    truth, _, valid, cluster = answers(area, area, n, size, 0.0, rng)
    shared = rng.standard_normal((len(area), int(cluster.max()) + 1))[:, cluster[0]]
    noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.standard_normal(truth.shape)
    return truth, np.sqrt(2) * stats.norm.ppf(area)[:, None] * truth + noise, valid, cluster


def covered(interval: Interval, true: np.ndarray) -> float:
    return float(np.mean((interval.low <= true) & (true <= interval.high)))


def cell(
    metric: str, band: tuple[float, float], n: int, size: int, correlation: float, latents: int = LATENTS
) -> float:
    """Share of `latents`, with true values even in `band`, whose interval holds the truth. The seed is the cell's."""
    rng = np.random.default_rng([METRICS.index(metric), int(100 * band[0]), n, size, int(10 * correlation)])
    true = rng.uniform(*band, latents)
    if metric == "auroc":
        return covered(statistics.auroc(*evidence(true, n, size, correlation, rng)), true)
    if metric == "balanced_accuracy":
        tpr = true + rng.uniform(-1, 1, latents) * np.minimum(0.2, 0.99 - true)  # made of unequal rates
        tnr = 2 * true - tpr
    else:
        tpr = tnr = true
    found = statistics.rate_intervals(*answers(tpr, tnr, n, size, correlation, rng))
    return covered(getattr(found, metric), true)


METRICS = ("tpr", "tnr", "balanced_accuracy", "auroc")


def main() -> None:
    for metric in METRICS:
        start = time.time()
        found = {key: cell(metric, *key) for key in product(BANDS, PER_CLASS, SIZES, CORRELATIONS)}
        bad = {k: round(v, 3) for k, v in found.items() if not 0.93 <= v <= 0.97}
        print(metric, round(min(found.values()), 3), round(max(found.values()), 3), len(bad), "of", len(found), round(time.time() - start, 1))
        for k, v in bad.items():
            print("   ", k, v)


if __name__ == "__main__":
    main()
