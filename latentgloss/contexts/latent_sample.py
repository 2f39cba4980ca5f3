"""Which latents a stage works on: those the registry selects, and a seeded sample of the eligible ones.

What belongs here: the selection that an SAE's registry entry makes, and the sample for stages whose cost is per latent
(language models). Explainers and scorers sample by the same rule, so with one seed the smaller of two samples is part
of the larger one, and what is judged has been explained. Reads and writes nothing.
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
    """Ids of `n` eligible latents, ascending; None (no sampling, all of them) if `n` is None or "all".

    The sample is the latents with the lowest hashes of seed and latent. So a smaller sample is part of a larger one,
    and one latent more or less in the population changes the sample by at most one latent. `eligibility` holds rows of
    `schema.ELIGIBILITY`.
    """
    if n is None or n == "all":
        return None
    eligible = eligibility.filter(pl.col("status") == "eligible")["latent"].to_numpy()
    order = np.argsort(counter_hash(seed, eligible), kind="stable")
    return np.sort(eligible[order[:n]])


def smaller(*sizes: int | Literal["all"] | None) -> int | None:
    """The least of several sample sizes; None if none of them limits the sample.

    Samples of one seed have the smallest of them in common.
    """
    return min((n for n in sizes if isinstance(n, int)), default=None)


def of_block(latents: UInt32[np.ndarray, " sample"], block: str) -> list[int]:
    """The latents of a sample that are in one block, named by its number."""
    return [int(latent) for latent in latents[latents // schema.BLOCK == int(block)]]


def latents_in_turn(spec: SaeSpec, n_latents: int) -> UInt32[np.ndarray, " latents"]:
    """Ids of the latents that an SAE's registry entry selects, each once, in the order of their selection.

    A list keeps its order, a range ascends, a sample is in order of its hashes: with one seed, a smaller sample is the
    beginning of a larger one. All latents are ordered like a sample of all of them with seed 0.

    Raises InputError if the selection is empty or names latents that the SAE does not have.
    """
    selection = spec.latents
    match selection:
        case "all" | LatentSample():
            n, seed = (n_latents, 0) if selection == "all" else (selection.sample, selection.seed)
            if n > n_latents:
                raise _out_of_range(spec, f"a sample of {n} latents", f"at most {n_latents}")
            chosen = np.argsort(counter_hash(seed, np.arange(n_latents)), kind="stable")[:n]
        case LatentRange():
            if not selection.start < selection.stop <= n_latents:
                raise _out_of_range(
                    spec, f"latents {selection.start} to {selection.stop}", f"0 <= start < stop <= {n_latents}"
                )
            chosen = np.arange(selection.start, selection.stop)
        case _:
            chosen = np.asarray(list(dict.fromkeys(selection)), dtype=np.int64)
            wrong = chosen[(chosen < 0) | (chosen >= n_latents)]
            if wrong.size or not chosen.size:
                found = f"latents {wrong[:5].tolist()}" if wrong.size else "an empty list of latents"
                raise _out_of_range(spec, found, f"ids from 0 to {n_latents - 1}")
    return chosen.astype(np.uint32)


def selected_latents(spec: SaeSpec, n_latents: int) -> UInt32[np.ndarray, " latents"]:
    """The latents of `latents_in_turn`, ascending; raises what it raises."""
    return np.sort(latents_in_turn(spec, n_latents))


def _out_of_range(spec: SaeSpec, found: str, expected: str) -> InputError:
    return InputError(
        f"{spec.partition} selects {found}",
        expected=f"{expected}, because the SAE has no other latents",
        todo="correct `latents` in the registry",
    )
