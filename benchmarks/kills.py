"""kill -9 while a language model explains and judges: a hundred times (five minutes).

    python benchmarks/kills.py [--kills 100] [--seed N]

The experiment is the test's (`tests/killed_judges.py`), with every latent of the tiny world judged: real stages in a
process that is killed at random points and started again, a real HTTP server that takes 20 ms for a reply and counts
what it is asked. Recorded is how often a reply that was already written was asked for again, how often one that was
not, and whether the tables are those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout, whichever is installed; its fake server and its world

import killed_judges  # noqa: E402
import world  # noqa: E402

EVERY = 10_000
"""Latents judged per SAE: more than there are."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = killed_judges.repeatedly_killed(Path(folder), arguments.kills, arguments.seed, judged=EVERY)
    found.pop("latents_judged_per_sae")
    world.record("llm-kills", found)
