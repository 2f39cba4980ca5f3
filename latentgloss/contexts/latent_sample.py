"""The latents that something costly is done for: a seeded sample of the eligible ones.

What belongs here: which latents they are. Explainers and scorers that sample use the same rule, so that with the same
seed the smaller of two samples is part of the larger: what is judged has been explained.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import UInt32

from latentgloss import schema
from latentgloss.config.entries import LatentRange, LatentSample, SaeSpec
from latentgloss.errors import InputError
from latentgloss.statistics.counter_rng import counter_hash


def sampled(
    eligibility: pl.DataFrame, n: int | Literal["all"] | None, seed: int
) -> UInt32[np.ndarray, " sample"] | None:
    """`n` of the eligible latents, ascending; None: all of them, for `n` None or "all".

    Those of the lowest hashes of seed and latent, so that a smaller sample is part of a larger one, and a latent that
    comes or goes changes the sample by one. `eligibility` has rows of `schema.ELIGIBILITY`.
    """
    if n is None or n == "all":
        return None
    eligible = eligibility.filter(pl.col("status") == "eligible")["latent"].to_numpy()
    order = np.argsort(counter_hash(seed, eligible), kind="stable")
    return np.sort(eligible[order[:n]])


def smaller(*sizes: int | Literal["all"] | None) -> int | None:
    """The size of the smallest of several samples of one seed, which is what they have in common."""
    return min((n for n in sizes if isinstance(n, int)), default=None)


def of_block(latents: UInt32[np.ndarray, " sample"], block: str) -> list[int]:
    """Those of a sample that are in one block."""
    return [int(latent) for latent in latents[latents // schema.BLOCK == int(block)]]


def latents_in_turn(spec: SaeSpec, n_latents: int) -> UInt32[np.ndarray, " latents"]:
    """Ids of the latents a SAE's registry entry asks for, each once, those first that were asked for first.

    A sample comes by hash, so that with the same seed a smaller one is the beginning of a larger; all latents are the
    sample of all with seed 0. A list comes as it is listed, a range from its start. Raises InputError if the SAE has
    no such latents.
    """
    asked = spec.latents
    match asked:
        case "all" | LatentSample():
            n, seed = (n_latents, 0) if asked == "all" else (asked.sample, asked.seed)
            if n > n_latents:
                raise _out_of_range(spec, f"a sample of {n} latents", f"at most {n_latents}")
            chosen = np.argsort(counter_hash(seed, np.arange(n_latents)), kind="stable")[:n]
        case LatentRange():
            if not asked.start < asked.stop <= n_latents:
                raise _out_of_range(spec, f"latents {asked.start} to {asked.stop}", f"0 <= start < stop <= {n_latents}")
            chosen = np.arange(asked.start, asked.stop)
        case _:
            chosen = np.asarray(list(dict.fromkeys(asked)), dtype=np.int64)
            wrong = chosen[(chosen < 0) | (chosen >= n_latents)]
            if wrong.size or not chosen.size:
                found = f"latents {wrong[:5].tolist()}" if wrong.size else "an empty list of latents"
                raise _out_of_range(spec, found, f"ids from 0 to {n_latents - 1}")
    return chosen.astype(np.uint32)


def selected_latents(spec: SaeSpec, n_latents: int) -> UInt32[np.ndarray, " latents"]:
    """The same, ascending."""
    return np.sort(latents_in_turn(spec, n_latents))


def _out_of_range(spec: SaeSpec, found: str, expected: str) -> InputError:
    return InputError(
        f"{spec.partition} asks for {found}",
        expected=f"{expected}, since the SAE is that wide",
        todo="correct `latents` in the registry",
    )
