"""Kills runs in which a language model explains and judges with kill -9, a hundred times (five minutes).

    python benchmarks/kills.py [--kills 100] [--seed N]

The experiment is the one of the tests (`tests/killed_judges.py`), but with every latent of the tiny world judged. Real
stages run in a process that is killed at random points and started again. A real HTTP server takes 20 ms per reply and
counts its requests. The result has the number of requests that were repeated although their reply was already written,
the number that were repeated because it was not, and whether the tables equal those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout instead of an installed package; its test world

import killed_judges  # noqa: E402
import world  # noqa: E402

EVERY = 10_000
"""Latents to judge per SAE, which is more than there are."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = killed_judges.repeatedly_killed(Path(folder), arguments.kills, arguments.seed, judged=EVERY)
    found.pop("latents_judged_per_sae")
    world.record("llm-kills", found)
