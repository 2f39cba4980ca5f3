"""Do 95 % intervals contain the true value in 95 of 100 cases? Every stored interval, on simulated latents.

    python benchmarks/interval_coverage.py              all cells; writes a result and docs/images/coverage.svg
    python benchmarks/interval_coverage.py --prompts    cells with prompts only; takes the others from the latest result

A cell is a metric, a band of true values, a number of judgements per class, a size of cluster and a correlation within
clusters. The judgements are simulated, so the true value is known: answers are beta-binomial within clusters, evidence
is normal with a normal effect of the cluster. In cells with prompts, five judgements of both classes share a prompt,
and documents of one or two judgements are spread over prompts. An answer there is that of its document or that of its
prompt, each with a chance that is the root of the correlation, and otherwise its own. The tests run some of the cells.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from latentgloss.statistics import areas, metrics
from latentgloss.statistics.intervals import Interval
from latentgloss.statistics.rates import rate_intervals

if TYPE_CHECKING:
    from pathlib import Path

LATENTS = 5000
"""Simulated latents per cell."""
BANDS = tuple((0.55 + 0.08 * i, 0.63 + 0.08 * i) for i in range(5))
"""Bands of true values. At a single true value, the lattice of possible rates alone moves coverage by ±2 %, with any
interval (Brown, Cai & DasGupta, Stat. Sci. 16:101, 2001), and real latents do not share a single true value."""
PER_CLASS = (50, 100, 200)
"""Judgements per class."""
SIZES = (2, 5)
"""Judgements of a class per cluster: the number of contexts sampled per document, and a larger one."""
CORRELATIONS = (0.0, 0.3)
PER_PROMPT = 5
"""Judgements per prompt."""
CROSSED = tuple(
    (band, n, 2, of_document, of_prompt)
    for band, n, of_document, of_prompt in product(BANDS[::4], (50, 100), (0.0, 0.2), (0.1, 0.3))
)
"""Cells with prompts: band, judgements per class, size of cluster, correlation in documents, correlation in prompts."""


class Judged(NamedTuple):
    """Judgements of a block of latents, as `statistics` takes them. `right`: the judge agrees with `truth`."""

    truth: np.ndarray
    right: np.ndarray
    valid: np.ndarray
    cluster: np.ndarray
    stratum: np.ndarray
    prompt: np.ndarray | None = None


def shared(prompt: np.ndarray, rng: np.random.Generator, draw: str) -> np.ndarray:
    """A random number per prompt of each latent, repeated for the judgements of the prompt. `draw`: method of `rng`."""
    numbers: np.ndarray = getattr(rng, draw)((len(prompt), int(prompt.max()) + 1))
    return np.take_along_axis(numbers, prompt, 1)


def prompts(latents: int, kinds: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Prompt of each judgement, five per prompt, in random order.

    Positives share prompts with the first stratum of negatives. The other strata share theirs with positives that do
    not count.
    """
    orders = [rng.random((latents, 2 * n)).argsort(1) // PER_PROMPT for _ in range(kinds - 1)]
    each = [orders[0], *(order[:, :n] + 2 * n * h for h, order in enumerate(orders[1:], 1))]
    return np.concatenate(each, axis=1)


def answers(
    chances: np.ndarray, n: int, size: int, correlation: float, rng: np.random.Generator, of_prompt: float = 0.0
) -> Judged:
    """n judgements of each kind, which are right with `chances` [latents kinds].

    The kinds are positives and then the strata of negatives. Each kind has documents of its own. One in three documents
    is short, with half as many judgements. If `of_prompt` > 0, there are prompts, each of which is easy or hard for all
    its judgements.
    """
    latents, kinds = chances.shape
    sizes = np.full(2 * n, size)
    sizes[::3] = max(1, size // 2)
    of_kind = np.repeat(np.arange(2 * n), sizes)[:n]
    k = int(of_kind.max()) + 1
    kind = np.repeat(np.arange(kinds), n)
    cluster = np.tile(of_kind, kinds) + k * kind
    if of_prompt:
        prompt = prompts(latents, kinds, n, rng)
        own, pick = rng.random((2, latents, kinds * n))
        of_document, other = np.sqrt(correlation), np.sqrt(of_prompt)
        own = np.where(pick < other, shared(prompt, rng, "random"), own)
        own = np.where(pick > 1 - of_document, rng.random((latents, k * kinds))[:, cluster], own)
        right = own < chances[:, kind]
        truth, cluster, kind = (np.broadcast_to(a, right.shape) for a in (kind == 0, cluster, kind))
        return Judged(truth, right, np.ones_like(truth), cluster, kind - 1, prompt)
    p = chances.repeat(k, axis=1)
    if correlation:
        scale = (1 - correlation) / correlation
        p = rng.beta(p * scale, (1 - p) * scale)
    right = rng.random((latents, kinds * n)) < p[:, cluster]
    truth, cluster, kind = (np.broadcast_to(a, right.shape) for a in (kind == 0, cluster, kind))
    return Judged(truth, right, np.ones_like(truth), cluster, kind - 1)


def evidence(
    judged: Judged, area: np.ndarray, correlation: float, rng: np.random.Generator, of_prompt: float = 0.0
) -> np.ndarray:
    """Normal evidence with effects of document and prompt. `area` [latents strata]: the true AUROC of each stratum.

    A prompt is easy or hard, which moves positives and negatives apart or together. (A prompt that moves both in the
    same direction hardly changes an area.)
    """
    of_document = rng.standard_normal((len(area), int(judged.cluster.max()) + 1))[:, judged.cluster[0]]
    own = rng.standard_normal(judged.truth.shape)
    noise = np.sqrt(correlation) * of_document + np.sqrt(1 - correlation - of_prompt) * own
    if judged.prompt is not None:
        noise += np.sqrt(of_prompt) * shared(judged.prompt, rng, "standard_normal") * np.where(judged.truth, 1, -1)
    below = np.sqrt(2) * stats.norm.ppf(area)
    values: np.ndarray = noise - np.where(judged.truth, 0.0, below[:, np.maximum(judged.stratum[0], 0)])
    return values


def covered(interval: Interval, true: np.ndarray) -> float:
    """Share of latents whose interval contains the true value."""
    return float(np.mean((interval.low <= true) & (true <= interval.high)))


class Draw(NamedTuple):
    """How the judgements of a cell are drawn; its fields are those of `cell`."""

    rng: np.random.Generator
    n: int
    size: int
    correlation: float
    of_prompt: float
    known: bool

    def answers(self, chances: np.ndarray) -> Judged:
        """Judgements that are right with `chances` [latents kinds]."""
        return answers(chances, self.n, self.size, self.correlation, self.rng, self.of_prompt)

    def evidence(self, judged: Judged, area: np.ndarray) -> np.ndarray:
        """Evidence with a true AUROC of `area` [latents strata]."""
        return evidence(judged, area, self.correlation, self.rng, self.of_prompt)

    def prompt(self, judged: Judged) -> np.ndarray | None:
        """The prompts that the interval is given."""
        return judged.prompt if self.known else None


def cell(
    metric: str,
    band: tuple[float, float],
    n: int,
    size: int,
    correlation: float,
    of_prompt: float = 0.0,
    latents: int = LATENTS,
    *,
    known: bool = True,
) -> float:
    """Share of `latents` whose interval contains the true value. True values are uniform in `band`.

    `known`: whether the interval is given the prompts. The seed follows from the cell.
    """
    seed = [METRICS.index(metric), int(100 * band[0]), n, size, int(10 * correlation)]
    rng = np.random.default_rng([*seed, int(10 * of_prompt)] if of_prompt else seed)
    true = rng.uniform(*band, latents)
    draw = Draw(rng, n, size, correlation, of_prompt, known)
    if metric == "auroc":
        return cell_of_auroc(draw, true)
    if metric in ("tpr", "tnr", "balanced_accuracy"):
        return cell_of_rates(metric, draw, true)
    # The population: two strata of negatives, of which the smaller one is harder.
    share = rng.uniform(0.02, 0.3, latents)
    share = np.stack([share, 1 - share], axis=1)
    if metric == "population_auroc":
        return cell_of_population_auroc(draw, true, share)
    return cell_of_population_rates(metric, draw, true, share)


def cell_of_auroc(draw: Draw, true: np.ndarray) -> float:
    """Coverage of the AUROC in one arm."""
    judged = draw.answers(np.full((len(true), 2), 0.5))
    values = draw.evidence(judged, true[:, None])
    return covered(areas.auroc(judged.truth, values, *judged[2:4], prompt=draw.prompt(judged)), true)


def cell_of_rates(metric: str, draw: Draw, true: np.ndarray) -> float:
    """Coverage of TPR, TNR or balanced accuracy in one arm."""
    # The two rates that make a balanced accuracy differ.
    more = draw.rng.uniform(-1, 1, len(true)) * np.minimum(0.2, 0.99 - true) * (metric == "balanced_accuracy")
    judged = draw.answers(np.stack([true + more, true - more], axis=1))
    said = judged.right == judged.truth
    found = rate_intervals(judged.truth, said, *judged[2:4], prompt=draw.prompt(judged))
    return covered(getattr(found, metric), true)


def cell_of_population_auroc(draw: Draw, true: np.ndarray, share: np.ndarray) -> float:
    """Coverage of the AUROC in the population. `share` [latents strata]."""
    easy = np.minimum(0.98, true + draw.rng.uniform(0, 0.1, len(true)))
    strata = np.stack([(true - share[:, 1] * easy) / share[:, 0], easy], axis=1)
    keep = (strata[:, 0] > 0.3) & (strata[:, 0] < 0.98)
    share, strata, true = share[keep], strata[keep], true[keep]
    judged = draw.answers(np.full((len(true), 3), 0.5))
    values = draw.evidence(judged, strata)
    found = areas.auroc(
        judged.truth, values, *judged[2:4], stratum=judged.stratum, share=share, prompt=draw.prompt(judged)
    )
    return covered(found, true)


def cell_of_population_rates(metric: str, draw: Draw, true: np.ndarray, share: np.ndarray) -> float:
    """Coverage of TNR, balanced accuracy or precision in the population. `share` [latents strata]."""
    latents = len(true)
    tpr, easy = draw.rng.uniform(0.55, 0.95, latents), draw.rng.uniform(0.02, 0.3, latents)
    if metric == "population_tnr":
        easy = (1 - true) / (2 * share[:, 0] + share[:, 1])
    fprs = np.stack([np.minimum(2 * easy, 0.95), easy], axis=1)
    fpr = (share * fprs).sum(1)
    if metric == "population_tnr":
        true = 1 - fpr
    if metric == "population_balanced_accuracy":
        true = (tpr + 1 - fpr) / 2
    rate = true * fpr / (tpr * (1 - true) + true * fpr) if metric == "precision" else np.full(latents, 0.05)
    judged = draw.answers(np.concatenate([tpr[:, None], 1 - fprs], axis=1))
    said = judged.right == judged.truth
    found = metrics.prevalence_weighted(judged.truth, said, *judged[2:5], share, rate, prompt=draw.prompt(judged))
    if metric == "precision":
        return covered(found.precision, true)
    if metric == "population_tnr":
        return covered(found.fpr, 1 - true)
    return covered(found.balanced_accuracy, true)


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
"""Metrics with a stored interval. Their order is part of the seeds."""

STYLES = {
    "prompt icc": ("#c8691c", "#c8691c", 8),
    "icc 0.3": ("#1f5a91", "#1f5a91", 0),
    "icc 0.0": ("#fff", "#1f5a91", -8),
}
"""Fill, stroke and vertical shift of a dot, by a part of its cell's name; the first match counts."""


def figure(cells: dict[str, dict[str, float]], path: Path) -> None:
    """Writes an SVG with one row per metric and one dot per cell at its coverage, over the band from .93 to .97."""
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
        "open: independent, filled: correlation .3, orange: prompts of five</text>",
    ]
    for tick in (0.90, 0.93, 0.95, 0.97, 1.0):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{tick:.2f}</text>')
    for number, (metric, found) in enumerate(cells.items()):
        y = top + row * (number + 0.5)
        parts.append(f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end" fill="#222">{metric}</text>')
        for key, value in found.items():
            fill, stroke, shift = next(style for end, style in STYLES.items() if end in key)
            parts.append(
                f'<circle cx="{x(value):.1f}" cy="{y + shift:.1f}" r="2.6" fill="{fill}" stroke="{stroke}" '
                'stroke-width="1"/>'
            )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def name(band: tuple[float, float], n: int, size: int, correlation: float, of_prompt: float) -> str:
    """Name of a cell in the result."""
    prompt = f", prompt icc {of_prompt}" if of_prompt else ""
    return f"true {band[0]:.2f}-{band[1]:.2f}, n {n}, cluster {size}, icc {correlation}{prompt}"


def main() -> None:
    """Simulates the cells, writes the figure and records the result."""
    import world

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=LATENTS, help="simulated latents per cell")
    parser.add_argument(
        "--prompts", action="store_true", help="cells with prompts only; takes the others from the latest result"
    )
    arguments = parser.parse_args()
    latents = arguments.latents
    plain = [(*where, 0.0) for where in product(BANDS, PER_CLASS, SIZES, CORRELATIONS)]
    kept: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    origin = {}
    if arguments.prompts:
        latest = json.loads(max(world.RESULTS.glob("*-interval-coverage.json")).read_text())
        latents, plain = latest["latents_per_cell"], []
        kept = {metric: {k: v for k, v in latest["cells"][metric].items() if "prompt" not in k} for metric in METRICS}
        origin = {"commit_of_cells_without_prompts": latest.get("commit_of_cells_without_prompts", latest["commit"])}
    cells = {
        metric: kept[metric]
        | {name(*where): round(cell(metric, *where, latents=latents), 4) for where in (*plain, *CROSSED)}
        for metric in METRICS
    }
    figure(cells, world.ROOT / "docs" / "images" / "coverage.svg")
    summary = {
        kind: {
            metric: [f(v for k, v in found.items() if ("prompt" in k) == crossed) for f in (min, max)]
            for metric, found in cells.items()
        }
        for kind, crossed in (("range", False), ("range_with_prompts", True))
    }
    world.record("interval-coverage", {"latents_per_cell": latents, **origin, **summary, "cells": cells})


if __name__ == "__main__":
    main()
