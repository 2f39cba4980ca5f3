"""Made-up contexts for tests of fuzzing.

What belongs here: `contexts`, latents whose marks come in runs and at places of their own, so that wrong marks drawn at
random would betray themselves (to `latentgloss.planted.attackers`).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from latentgloss import schema

LENGTH = 16


def contexts(seed: int, latents: list[int], n: int = 40, split: str = "test") -> tuple[pl.DataFrame, np.ndarray]:
    """Rows of `schema.CONTEXTS` of one split, and the mask of each row's window. A latent depends on itself alone."""
    rows, masks = [], []
    for latent in latents:
        rng = np.random.default_rng((seed, latent))
        runs, place = rng.integers(1, 4), rng.random()
        frame = []
        for i in range(n):
            mask = rng.random(LENGTH) < np.where(np.arange(LENGTH) == 0, 0.3, 0.02)
            active = np.zeros(LENGTH)
            for _ in range(runs):
                start = int(np.clip(rng.normal(place * LENGTH, LENGTH / 4), 1, LENGTH - 1))
                active[start : start + int(rng.integers(1, 4))] = rng.uniform(0.1, 1)
            active *= rng.uniform(1, 5)
            if not (active * ~mask).any():
                mask[active > 0] = False
            frame.append((latent, 1000 * latent + i, active.astype(np.float32), mask))
        peaks = np.array([(a * ~m).max() for _, _, a, m in frame])
        decile = -(-10 * (peaks.argsort().argsort() + 1) // n) if n >= 10 else np.zeros(n, int)
        for order, ((number, context, active, mask), d) in enumerate(zip(frame, decile, strict=True)):
            offsets = np.flatnonzero(active)
            rows.append(
                {
                    "latent": number,
                    "split": split,
                    "context": context,
                    "order": order,
                    "decile": int(d),
                    "max_activation": float((active * ~mask).max()),
                    "document": context,
                    "offsets": offsets.tolist(),
                    "activations": active[offsets].tolist(),
                }
            )
            masks.append(mask)
    return schema.CONTEXTS.frame(rows), np.array(masks)


def dense(frame: pl.DataFrame) -> np.ndarray:
    """Activations [contexts, length], token by token."""
    out = np.zeros((frame.height, LENGTH), dtype=np.float32)
    for i, (offsets, values) in enumerate(frame.select("offsets", "activations").iter_rows()):
        out[i, offsets] = values
    return out


def marks_at_random(own: np.ndarray, open_: np.ndarray, seed: int = 0) -> np.ndarray:
    """As many marks as each context has, on tokens of `open_` drawn at random: what wrong marks must not be."""
    draw = np.where(open_, np.random.default_rng(seed).random(own.shape), 2)
    first = draw.argsort(axis=1).argsort(axis=1) < own.sum(axis=1, keepdims=True)
    return first & open_
