"""work.py: what went wrong with one partition, in words that say what to do."""

from __future__ import annotations

import errno

import pytest
import torch

from latentgloss.errors import InputError, LatentglossError
from latentgloss.work import as_error, attempt


def test_a_full_gpu_says_what_to_lower() -> None:
    error = as_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nGPU 0 has …"))
    assert "Tried to allocate 8.00 GiB" in str(error) and "batch_tokens" in str(error) and "report" not in str(error)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (InputError("this is ours"), "this is ours"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "make the file readable"),
        (ZeroDivisionError("nobody foresaw this"), "please report this"),
    ],
)
def test_what_else_is_raised(raised: Exception, said: str) -> None:
    def fails() -> None:
        raise raised

    error = attempt(fails)
    assert isinstance(error, LatentglossError) and said in str(error)
