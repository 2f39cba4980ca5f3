"""Turns any exception raised for one partition into a LatentglossError, so that only that partition fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from latentgloss.errors import LatentglossError
from latentgloss.store.local import disk_full, is_disk_full


def attempt(action: Callable[[], None]) -> LatentglossError | None:
    """Runs `action` and returns its exception as a LatentglossError (`as_error`); None if it succeeds."""
    try:
        action()
    except Exception as e:
        return as_error(e)
    return None


def as_error(error: Exception) -> LatentglossError:
    """Converts any exception to a LatentglossError; an unexpected one carries the place it was raised at."""
    if isinstance(error, LatentglossError):
        return error
    if is_disk_full(error):
        return disk_full(Path(getattr(error, "filename", None) or ".").absolute())
    if isinstance(error, OSError) and error.filename:
        return LatentglossError(f"{error.filename}: {error.strerror}", todo="make the file readable and run again")
    if type(error).__name__ == "OutOfMemoryError":  # torch's class, recognised by name to avoid importing torch
        return LatentglossError(
            f"the GPU's memory is full ({str(error).splitlines()[0]})",
            todo="lower `batch_tokens` (for embeddings `embedding_batch`) under [machine], or free GPU memory that "
            "another process holds; then run again",
        )
    where = "".join(traceback.format_exception(error)[-3:])
    return LatentglossError(f"{type(error).__name__}: {error}", todo=f"please report this; it was raised at\n{where}")
