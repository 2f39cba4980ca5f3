"""The shape checks themselves are on, and refuse what they should."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError, UInt32, jaxtyped
from shapes import arrays


@jaxtyped(typechecker=arrays)
def _scaled(
    x: Float[np.ndarray, "tokens d"], ids: UInt32[np.ndarray, " tokens"], name: int
) -> Float[np.ndarray, "tokens d"]:
    return x if name else x[:, 1:]


IDS = np.arange(3, dtype=np.uint32)


def test_accepts_what_fits() -> None:
    assert _scaled(np.ones((3, 2)), IDS, 1).shape == (3, 2)


def test_leaves_ordinary_types_to_mypy() -> None:
    assert _scaled(np.ones((3, 2)), IDS, "one").shape == (3, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "ids", "flag"),
    [
        (np.ones((4, 2)), IDS, 1),
        (np.ones(3), IDS, 1),
        (np.ones((3, 2), int), IDS, 1),
        (np.ones((3, 2)), IDS.astype(np.int64), 1),
        (np.ones((3, 2)), IDS, 0),
    ],
    ids=["axis differs", "axis missing", "dtype", "integer dtype", "result"],
)
def test_refuses_what_does_not(x: np.ndarray, ids: np.ndarray, flag: int) -> None:
    with pytest.raises(TypeCheckError):
        _scaled(x, ids, flag)


def test_the_core_is_checked() -> None:
    """conftest.py installed the hook before anything imported the core."""
    from latentgloss.statistics.metrics import shrink

    fits = np.full(3, 0.5)
    assert shrink(fits, np.full(3, 20.0), 0.5).shape == (3,)
    with pytest.raises(TypeCheckError):
        shrink(fits[None], np.full(3, 20.0), 0.5)
