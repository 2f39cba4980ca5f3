"""How well can right and wrong marks of fuzzing be told apart by an attacker that sees the marks and nothing else?

    python benchmarks/attackers.py             the table in docs/methods.md, Fuzzing, for the store of the settings file

Reads the SAEs of an existing store and writes nothing into it. Takes the test contexts that fuzzing asked about, with
their own marks and with wrong marks made in three ways: as many as the context has, on random inactive unmasked tokens;
those of another context of the same latent and decile, the first by hash that fits; and exchanged, as fuzzing makes
them. Contexts for which no wrong marks are found are left out, as in fuzzing. The attacker is a logistic regression on
number, runs, ends and places of the marks, trained on other latents. The result is its mean AUROC within latents.

Beside the SAEs, it attacks the artificial latents of `tests/fuzzing_world.py`, whose marks come in runs and at places
of their own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import world

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from latentgloss.workspace import Workspace

SEED = 0
MADE_UP = 120, 100
"""Number of artificial latents, and of contexts of each."""
STAGES = ("resolved_saes", "activation_cache", "sampled_contexts")
"""Stages that are read."""


def attacked(contexts: pl.DataFrame, masked: np.ndarray) -> dict[str, dict[str, float]]:
    """For each way to make wrong marks: mean AUROC within latents, its standard error, and share of contexts left out.

    `contexts`: rows of `schema.CONTEXTS` of one split. `masked`: the masked tokens of each.
    """
    import numpy as np

    from latentgloss.contexts.marks import dense_activations, marks
    from latentgloss.planted import attackers
    from latentgloss.scores.scorers.donors import NONE, donors

    activations = dense_activations(contexts, masked.shape[1])
    own, closed = marks(activations, masked), (activations > 0) | masked
    latent, context, decile = (contexts[name].to_numpy().astype(np.int64) for name in ("latent", "context", "decile"))
    group = latent * 16 + decile
    exchanged = donors(SEED, group, latent, context, own, closed)
    by_choice = chosen_freely(group, latent, context, own, closed)
    drawn = np.where(closed, 2, np.random.default_rng(SEED).random(own.shape)).argsort(axis=1).argsort(axis=1)
    anywhere = (drawn < own.sum(axis=1, keepdims=True)) & ~closed
    wrong = {
        "at random": (anywhere, anywhere.sum(axis=1) == own.sum(axis=1)),
        "any that fits": (own[by_choice], by_choice != NONE),
        "exchanged": (own[exchanged], exchanged != NONE),
    }
    found = {}
    for name, (marked, made) in wrong.items():
        features = attackers.of_marks(np.concatenate([own[made], marked[made]]))
        truth = np.repeat([True, False], made.sum())
        area, error = attackers.attack(features, truth, np.tile(latent[made], 2))
        found[name] = {"auroc": round(area, 4), "error": round(error, 4), "left_out": round(float(1 - made.mean()), 5)}
    return found


def chosen_freely(
    group: np.ndarray, latent: np.ndarray, context: np.ndarray, own: np.ndarray, closed: np.ndarray
) -> np.ndarray:
    """For each row, another row of its group whose marks fit it, the first by a hash of both; -1 where none fits."""
    import numpy as np

    from latentgloss.statistics.counter_rng import counter_hash

    order = np.argsort(group, kind="stable")
    chosen = np.full(len(group), -1, dtype=np.int64)
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        fits = ~(own[rows][None] & closed[rows][:, None]).any(axis=2)
        np.fill_diagonal(fits, val=False)
        key = counter_hash(SEED, latent[rows][:, None], context[rows][:, None], context[rows][None])
        best = np.where(fits, key >> np.uint64(1), np.uint64(2**64 - 1)).argmin(axis=1)
        chosen[rows] = np.where(fits.any(axis=1), rows[best], -1)
    return chosen


def of_sae(workspace: Workspace, partition: str) -> dict[str, Any]:
    """The results of the attacker for one SAE of the store."""
    from latentgloss import schema
    from latentgloss.contexts.marks import masked_tokens

    resolved, cache, sampled = (workspace.store.current(stage, partition) for stage in STAGES)
    assert resolved is not None and cache is not None and sampled is not None
    contexts = sampled.read(schema.CONTEXTS).filter(split="test")
    masked = masked_tokens(cache, workspace.corpus(resolved), workspace.settings.contexts.length)
    found = attacked(contexts, masked[contexts["context"].to_numpy()])
    return {"latents": contexts["latent"].n_unique(), "contexts": contexts.height, "wrong_marks": found}


def main() -> None:
    """Attacks every SAE of the store and the artificial latents, prints the table and records it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings file (default: the nearest one in this folder or above)")
    parser.add_argument("--no-record", action="store_true", help="only print the table")
    arguments = parser.parse_args()

    from latentgloss.workspace import Workspace

    sys.path.insert(0, str(world.ROOT))
    from tests.fuzzing_world import contexts as made_up

    workspace = Workspace.open(arguments.config)
    found = {
        partition: of_sae(workspace, partition)
        for partition in sorted(workspace.registry.saes)
        if workspace.store.current("sampled_contexts", partition) is not None
    }
    frame, masked = made_up(SEED, list(range(MADE_UP[0])), MADE_UP[1])
    invented = {"latents": MADE_UP[0], "contexts": frame.height, "wrong_marks": attacked(frame, masked)}
    if not arguments.no_record:
        world.record("attackers-of-marks", {"saes": found, "made_up": invented})
    for name, row in {**found, "made up": invented}.items():
        for how, x in row["wrong_marks"].items():
            print(f"{name:<48} {how:<14} {x['auroc']:.4f} ± {x['error']:.4f}, left out: {x['left_out']:.2%}")


if __name__ == "__main__":
    main()
