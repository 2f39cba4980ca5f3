"""Keeps freed memory in the process between batches instead of returning it to the system.

What belongs here: settings of the C library's allocator, making Arrow use that allocator, and making PyTorch request
huge pages. A forward pass frees tens of megabytes in every layer and allocates as much again, and so does sampling in
every block. By default this memory is returned to the system now and then and comes back page by page, which costs up
to 30 page faults per token and a fifth of the time of a forward pass (docs/log.md). Keeping it does not raise the peak.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt` (malloc.h)."""


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, permanently and for the whole process. Without glibc it does nothing.

    Both thresholds are set, because setting one ends the automatic choice of the other. All threads share one arena,
    because further arenas are mappings of 64 MiB that are returned as soon as they are empty. Arrow is switched to
    glibc's allocator. PyTorch requests huge pages because of an environment variable, which it reads at its first
    allocation.
    """
    import pyarrow as pa

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_ARENA_MAX, 1)
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own allocator returns memory as readily
