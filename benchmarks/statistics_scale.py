"""Seconds and peak memory of every number in a score table, for 100,000 latents with 200 judgements each.

    python benchmarks/statistics_scale.py

The judgements are random, with ties, with documents that latents share, and with a tenth missing. Intervals are
computed twice: for judgements made alone, and for judgements made five per prompt.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentgloss.statistics import areas, crossed, metrics, multiple_testing, resampling, specificity
from latentgloss.statistics.rates import rate_intervals

sys.path.insert(0, str(Path(__file__).resolve().parent))

import world

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTS = 20_000
"""Documents that the judgements are spread over."""
PROMPTS = {
    "intervals of rates, prompts": "intervals of rates",
    "AUROC, prompts": "AUROC",
    "population, prompts": "population: rates, precision, F1",
    "population: AUROC, prompts": "population: AUROC",
}
"""Measurements with prompts, each with the same measurement without prompts."""


def peak_mib() -> int:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Judgements(NamedTuple):
    """Random judgements of a block of latents, as `statistics` takes them."""

    truth: np.ndarray
    evidence: np.ndarray
    prediction: np.ndarray
    valid: np.ndarray
    document: np.ndarray
    decile: np.ndarray
    stratum: np.ndarray
    prompt: np.ndarray
    share: np.ndarray
    rate: np.ndarray


def judgements(latents: int, n: int) -> Judgements:
    """n judgements of each latent, half of them on activating contexts."""
    shape = (latents, n)
    rng = np.random.default_rng(0)
    truth = np.broadcast_to(np.arange(n) < n // 2, shape).copy()
    skill = rng.random((latents, 1), dtype=np.float32)
    evidence = np.round(rng.standard_normal(shape, dtype=np.float32) + 2 * skill * truth, 2)
    valid = rng.random(shape, dtype=np.float32) < 0.9
    document = rng.integers(0, DOCUMENTS, shape, dtype=np.int32)
    decile = np.where(truth, rng.integers(1, 11, shape, dtype=np.uint8), 0)
    stratum = rng.integers(0, 2, shape, dtype=np.int8)
    order = rng.random(shape, dtype=np.float32).argsort(1) // 5
    prompt = order + rng.integers(0, 1 << 59, (latents, 1))  # as large as the numbers of prompts, which are hashes
    share, rate = np.tile([0.1, 0.9], (latents, 1)), rng.uniform(1e-4, 0.1, latents)
    return Judgements(truth, evidence, evidence > 0.8, valid, document, decile, stratum, prompt, share, rate)


class Stopwatch:
    """Seconds of each measurement, and the peak memory after it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    def __call__(self, name: str, measured: Callable[[], Any]) -> Any:
        """Runs `measured` and returns its result."""
        start = time.perf_counter()
        result = measured()
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self.peaks[name] = peak_mib()
        return result


def measure(block: Judgements, timed: Stopwatch) -> None:
    """Computes every number of a score table, and the numbers over latents."""
    truth, evidence, prediction, valid, document, decile, stratum, prompt, share, rate = block
    timed("threshold", lambda: metrics.youden_threshold(evidence, truth, valid))
    timed("confusion", lambda: metrics.confusion(truth, prediction, valid))
    timed("recall by decile", lambda: metrics.recall_by_decile(truth, prediction, decile, valid))
    rates = timed("intervals of rates", lambda: rate_intervals(truth, prediction, valid, document))
    area = timed("AUROC", lambda: areas.auroc(truth, evidence, valid, document))
    timed("AUPRC", lambda: areas.auprc(truth, evidence, valid))
    population = (truth, prediction, valid, document, stratum, share, rate)
    timed("population: rates, precision, F1", lambda: metrics.prevalence_weighted(*population))
    timed(
        "population: AUROC",
        lambda: areas.auroc(truth, evidence, valid, document, stratum=stratum, share=share),
    )
    timed(
        "population: AUPRC",
        lambda: areas.auprc_at_base_rate(truth, evidence, valid, stratum, share, rate),
    )
    timed(
        "intervals of rates, prompts",
        lambda: rate_intervals(truth, prediction, valid, document, prompt=prompt),
    )
    timed("AUROC, prompts", lambda: areas.auroc(truth, evidence, valid, document, prompt=prompt))
    timed("population, prompts", lambda: metrics.prevalence_weighted(*population, prompt=prompt))
    timed(
        "population: AUROC, prompts",
        lambda: areas.auroc(truth, evidence, valid, document, stratum=stratum, share=share, prompt=prompt),
    )
    null = np.random.default_rng(1).permutation(area.value)
    p = timed("p from nulls", lambda: specificity.pooled_p(area.value, rate, null, rate))
    timed("Benjamini-Hochberg", lambda: multiple_testing.benjamini_hochberg(p))
    timed("paired comparison", lambda: resampling.compare(area.value, null, chance=0.5))
    moves = timed("influence", lambda: crossed.influence_on_accuracy(truth, prediction, valid))
    timed(
        "latents × documents",
        lambda: crossed.crossed_interval(rates.balanced_accuracy.value, moves, document),
    )


def main() -> None:
    """Measures and records the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=100_000)
    parser.add_argument("--judgements", type=int, default=200, help="judgements per latent")
    arguments = parser.parse_args()
    block = judgements(arguments.latents, arguments.judgements)
    inputs, timed = peak_mib(), Stopwatch()
    measure(block, timed)
    seconds = timed.seconds
    world.record(
        "statistics",
        {
            "latents": arguments.latents,
            "judgements": arguments.judgements,
            "seconds": seconds,
            "total_seconds": round(sum(took for name, took in seconds.items() if name not in PROMPTS), 1),
            "total_seconds_with_prompts": round(
                sum(took for name, took in seconds.items() if name not in PROMPTS.values()), 1
            ),
            "inputs_mib": inputs,
            "peak_mib": timed.peaks,
        },
    )


if __name__ == "__main__":
    main()
