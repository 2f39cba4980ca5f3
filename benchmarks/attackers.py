"""What who sees the marks and nothing else can tell of fuzzing's truth, over the SAEs of an existing store.

    python benchmarks/attackers.py             the table of docs/methods.md, Fuzzing, on the store of the settings file

Reads the store and writes nothing into it. Of each SAE the test contexts that fuzzing asked about, with their own marks
and with wrong ones made in three ways: as many as the context has on any inactive, unmasked token; those of another
context of the same latent and decile, whichever fits first by hash; and as fuzzing makes them, exchanged. Contexts that
find no wrong marks are left out, as in fuzzing. The attacker is a logistic regression on number, runs, ends and places
of the marks, learnt on other latents; reported is its mean AUROC within latents.

Beside the SAEs: the made-up latents of `tests/fuzzing_world.py`, whose marks come in runs and at places of their own.
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
"""Latents, and contexts of each."""
STAGES = ("resolved_saes", "activation_cache", "sampled_contexts")


def attacked(contexts: pl.DataFrame, masked: np.ndarray) -> dict[str, dict[str, float]]:
    """Per way of making wrong marks: mean AUROC within latents, its standard error, share of contexts left out.

    `contexts`: rows of `schema.CONTEXTS` of one split; `masked`: the masked tokens of each.
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
    for name, (marked, there) in wrong.items():
        features = attackers.of_marks(np.concatenate([own[there], marked[there]]))
        truth = np.repeat([True, False], there.sum())
        area, error = attackers.attack(features, truth, np.tile(latent[there], 2))
        found[name] = {"auroc": round(area, 4), "error": round(error, 4), "left_out": round(float(1 - there.mean()), 5)}
    return found


def chosen_freely(
    group: np.ndarray, latent: np.ndarray, context: np.ndarray, own: np.ndarray, closed: np.ndarray
) -> np.ndarray:
    """Per row another row of its group whose marks fit it, the first by a hash of both; -1 where none does."""
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
    """What the attacker makes of one SAE of the store."""
    from latentgloss import schema
    from latentgloss.contexts.marks import masked_tokens

    resolved, cache, sampled = (workspace.store.current(stage, partition) for stage in STAGES)
    assert resolved is not None and cache is not None and sampled is not None
    contexts = sampled.read(schema.CONTEXTS).filter(split="test")
    masked = masked_tokens(cache, workspace.corpus(resolved), workspace.settings.contexts.length)
    found = attacked(contexts, masked[contexts["context"].to_numpy()])
    return {"latents": contexts["latent"].n_unique(), "contexts": contexts.height, "wrong_marks": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings file; default: the nearest one upward")
    parser.add_argument("--no-record", action="store_true", help="print the table only")
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
