"""The time of encoding on a GPU, of its steps, and of the functions that these replace.

What belongs here: the part `encoding` of `gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_worlds import Bench, Peaks, seconds


def encoding(bench: Bench) -> dict[str, Any]:
    """Time and peak memory of encoding, for each shape of SAE."""
    shapes = [(576, 4096, 32), (576, 16384, 64), (576, 131072, 32), (2048, 131072, 64), (2048, 2**20, 32)]
    results: dict[str, Any] = {}
    for d, n, k in [(64, 4096, 8)] if bench.quick else shapes:
        with Peaks(bench.device) as peaks:
            found = _encoding(bench.device, d, n, k)
        results[f"{d} x {n}, k = {k}"] = {**found, **peaks.found}
    return results


def _encoding(device: str, d: int, n: int, k: int) -> dict[str, Any]:
    """Milliseconds of each step on random activations, as many as are encoded at once."""
    import torch

    from latentgloss.saes.coder import SparseCoder
    from latentgloss.saes.selection import TopK, top

    torch.manual_seed(0)
    with torch.inference_mode():
        encoder, bias = torch.randn(d, n, device=device).bfloat16().float(), torch.randn(n, device=device)
        decoder, zero = torch.zeros(1, d, device=device).expand(n, d), torch.zeros(d, device=device)
        coder = SparseCoder(encoder, bias, decoder, zero, TopK(k), subtract_b_dec=False, bfloat16_weights=True)
        rows = 256 if device == "cpu" else min(max(16, 2**28 // n), 2**15)
        x = torch.randn(rows, d, device=device).bfloat16()
        pre = torch.addmm(bias, x.float(), encoder)
        largest = pre.topk(k, dim=1).values
        values, indices = top(pre, k, 32)
        steps: dict[str, Callable[[], Any]] = {
            "product in float32": lambda: torch.addmm(bias, x.float(), encoder),
            "topk": lambda: pre.topk(k, dim=1, sorted=False),
            **{f"top, groups of {group}": partial(top, pre, k, group) for group in (16, 32, 64)},
            "encode_sparse": lambda: coder.encode_sparse(x),
        }
        return {
            "rows": rows,
            "milliseconds": {name: round(1000 * seconds(step, x.device), 3) for name, step in steps.items()},
            "top_finds_the_largest": torch.equal(values.sort(1).values, largest.sort(1).values),
            "top_finds_the_same_again": all(torch.equal(indices, top(pre, k, 32)[1]) for _ in range(3)),
        }
