"""What goes wrong with one partition is that partition's failure: exceptions become errors of ours."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from latentgloss.errors import LatentglossError
from latentgloss.store.local import disk_full, is_disk_full


def attempt(action: Callable[[], None]) -> LatentglossError | None:
    """Runs `action`; what it raises becomes an error for one partition instead of ending the run."""
    try:
        action()
    except Exception as e:
        return as_error(e)
    return None


def as_error(error: Exception) -> LatentglossError:
    """Any exception as one of ours, with the place it came from if it was not foreseen."""
    if isinstance(error, LatentglossError):
        return error
    if is_disk_full(error):
        return disk_full(Path(getattr(error, "filename", None) or ".").absolute())
    if isinstance(error, OSError) and error.filename:
        return LatentglossError(f"{error.filename}: {error.strerror}", todo="make the file readable and run again")
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported for its name's sake
        return LatentglossError(
            f"the GPU's memory is full ({str(error).splitlines()[0]})",
            todo="lower `batch_tokens` (of embedding, `embedding_batch`) under [machine], or see what else uses the "
            "GPU; then run again",
        )
    where = "".join(traceback.format_exception(error)[-3:])
    return LatentglossError(f"{type(error).__name__}: {error}", todo=f"please report this; it was raised at\n{where}")
