"""How this process gives memory back: not, while it will want as much again in a moment.

What belongs here: settings of the C library's allocator, that Arrow uses it, and that PyTorch asks for huge pages. A
forward pass frees and takes back the same tens of megabytes in every layer, and sampling does in every block. By
default they go back to the system now and then and return page by page: up to 30 page faults per token, a fifth of the
pass (docs/log.md). The peak stays what it was.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt` (malloc.h)."""


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for what comes next; elsewhere does nothing. For the whole process, for good.

    Both thresholds are set, since setting one ends the automatic choice of the other. One arena for all threads: the
    others live in mappings of 64 MiB, which go back as soon as they are empty. Arrow is told to take its memory there;
    PyTorch, to ask for huge pages, which it looks up when it first takes memory.
    """
    import pyarrow as pa

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_ARENA_MAX, 1)
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own gives memory back as readily
