"""Checks array annotations while tests run: `Float[Tensor, "tokens d"]` must be of that dtype and shape.

Only annotations that mention an array are checked here; ordinary types are mypy's, which also sees the ones that
exist for type checkers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Type checker for `jaxtyping.install_import_hook`: beartype, for annotations with an array in them."""
    annotations = getattr(function, "__annotations__", {})
    checked = {name: hint for name, hint in annotations.items() if _has_array(hint)}
    if not checked:
        return function
    function.__annotations__ = checked
    return beartype(function)


def _has_array(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_array, get_args(hint)))
