"""Checks array annotations while tests run: `Float[Tensor, "tokens d"]` must be of that dtype and shape.

Only annotations that mention an array are checked here; ordinary types are mypy's, which also sees the ones that
exist for type checkers alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

CHECKED_CALLS = 50
"""So many calls of a function are checked in each test. Inner loops call some of them a hundred thousand times."""
_jaxtyped = jaxtyping.jaxtyped
_test = 0


def check_core() -> None:
    """Checks the core's functions and dataclasses from their import on. Call it before anything imports the core.

    The import hook of jaxtyping wraps every function when it is defined, and a wrapped one takes some 50 µs more. Here
    those without an array in their annotations stay as they are, and others are wrapped when they are first called. So
    do functions within functions: these are defined, and would be wrapped, again at each call of the outer one.
    """
    jaxtyping.jaxtyped = _where_needed
    jaxtyping.install_import_hook("latentgloss", "shapes.arrays")


def next_test() -> None:
    """Calls are counted anew from here on."""
    global _test
    _test += 1


def _where_needed(defined: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """`jaxtyping.jaxtyped` for functions and dataclasses with an array in their annotations; others are unchanged."""
    if defined is None:
        return partial(_where_needed, typechecker=typechecker)
    functions = _of(defined)
    if any("<locals>" in function.__qualname__ for function in functions) or not any(map(_annotates_array, functions)):
        return defined
    if inspect.isclass(defined):
        defined.__init__ = _checked(defined.__init__, typechecker)  # type: ignore[misc]
        return defined
    wrapped = _checked if inspect.isfunction(defined) else _jaxtyped
    return wrapped(defined, typechecker=typechecker)


def _checked(function: Callable[..., Any], typechecker: Callable[..., Any]) -> Callable[..., Any]:
    checked: Callable[..., Any] | None = None
    test, calls = -1, 0

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked, test, calls
        if test != _test:
            test, calls = _test, 0
        if calls >= CHECKED_CALLS:
            return function(*args, **kwargs)
        calls += 1
        if checked is None:
            checked = _jaxtyped(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call


def _of(defined: Any) -> list[Any]:
    """The plain functions of what a decorator was given: a function, a method of any kind, a property, a class."""
    if isinstance(defined, property):
        return [function for function in (defined.fget, defined.fset, defined.fdel) if function]
    if inspect.isclass(defined):
        return [defined.__init__] if inspect.isfunction(defined.__init__) else []
    return [getattr(defined, "__func__", defined)]


def _annotates_array(function: Callable[..., Any]) -> bool:
    known = getattr(function, "__globals__", {})
    for hint in getattr(function, "__annotations__", {}).values():
        try:
            found = eval(hint, known) if isinstance(hint, str) else hint
        except Exception:  # a name for type checkers alone, or one that comes later: jaxtyping does not check it either
            continue
        if _has_array(found):
            return True
    return False


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
