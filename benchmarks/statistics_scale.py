"""Every number of a score table for 100,000 latents of 200 judgements: seconds and peak memory.

    python benchmarks/statistics_scale.py

Judgements are made up, with ties, documents shared by latents, and a tenth missing. Intervals are made twice: each
judgement alone, and five to a prompt.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgloss.statistics import intervals, metrics, multiple_testing, resampling, specificity

sys.path.insert(0, str(Path(__file__).resolve().parent))

import world

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTS = 20_000
PROMPTS = {
    "intervals of rates, prompts": "intervals of rates",
    "AUROC, prompts": "AUROC",
    "population, prompts": "population: rates, precision, F1",
    "population: AUROC, prompts": "population: AUROC",
}
"""What is measured with prompts, and without."""


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=100_000)
    parser.add_argument("--judgements", type=int, default=200)
    arguments = parser.parse_args()
    shape = (arguments.latents, arguments.judgements)
    rng = np.random.default_rng(0)
    truth = np.broadcast_to(np.arange(shape[1]) < shape[1] // 2, shape).copy()
    skill = rng.random((shape[0], 1), dtype=np.float32)
    evidence = np.round(rng.standard_normal(shape, dtype=np.float32) + 2 * skill * truth, 2)
    prediction = evidence > 0.8
    valid = rng.random(shape, dtype=np.float32) < 0.9
    document = rng.integers(0, DOCUMENTS, shape, dtype=np.int32)
    decile = np.where(truth, rng.integers(1, 11, shape, dtype=np.uint8), 0)
    stratum = rng.integers(0, 2, shape, dtype=np.int8)
    order = rng.random(shape, dtype=np.float32).argsort(1) // 5
    prompt = order + rng.integers(0, 1 << 59, (shape[0], 1))  # as large as parts of hashes are
    del order
    share, rate = np.tile([0.1, 0.9], (shape[0], 1)), rng.uniform(1e-4, 0.1, shape[0])
    inputs = peak_mib()
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    def timed(name: str, of: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = of()
        seconds[name] = round(time.perf_counter() - start, 2)
        peaks[name] = peak_mib()
        return result

    timed("threshold", lambda: metrics.youden_threshold(evidence, truth, valid))
    timed("confusion", lambda: metrics.confusion(truth, prediction, valid))
    timed("recall by decile", lambda: metrics.recall_by_decile(truth, prediction, decile, valid))
    rates = timed("intervals of rates", lambda: intervals.rate_intervals(truth, prediction, valid, document))
    area = timed("AUROC", lambda: intervals.auroc(truth, evidence, valid, document))
    timed("AUPRC", lambda: metrics.auprc(truth, evidence, valid))
    population = (truth, prediction, valid, document, stratum, share, rate)
    timed("population: rates, precision, F1", lambda: metrics.prevalence_weighted(*population))
    timed(
        "population: AUROC",
        lambda: intervals.auroc(truth, evidence, valid, document, stratum=stratum, share=share),
    )
    timed(
        "population: AUPRC",
        lambda: metrics.auprc_at_base_rate(truth, evidence, valid, stratum, share, rate),
    )
    timed(
        "intervals of rates, prompts",
        lambda: intervals.rate_intervals(truth, prediction, valid, document, prompt=prompt),
    )
    timed("AUROC, prompts", lambda: intervals.auroc(truth, evidence, valid, document, prompt=prompt))
    timed("population, prompts", lambda: metrics.prevalence_weighted(*population, prompt=prompt))
    timed(
        "population: AUROC, prompts",
        lambda: intervals.auroc(truth, evidence, valid, document, stratum=stratum, share=share, prompt=prompt),
    )
    null = rng.permutation(area.value)
    p = timed("p from nulls", lambda: specificity.pooled_p(area.value, rate, null, rate))
    timed("Benjamini-Hochberg", lambda: multiple_testing.benjamini_hochberg(p))
    timed("paired comparison", lambda: resampling.compare(area.value, null, chance=0.5))
    moves = timed("influence", lambda: resampling.influence_on_accuracy(truth, prediction, valid))
    timed(
        "latents × documents",
        lambda: resampling.crossed_interval(rates.balanced_accuracy.value, moves, document),
    )
    world.record(
        "statistics",
        {
            "latents": shape[0],
            "judgements": shape[1],
            "seconds": seconds,
            "total_seconds": round(sum(took for name, took in seconds.items() if name not in PROMPTS), 1),
            "total_seconds_with_prompts": round(
                sum(took for name, took in seconds.items() if name not in PROMPTS.values()), 1
            ),
            "inputs_mib": inputs,
            "peak_mib": peaks,
        },
    )


if __name__ == "__main__":
    main()
