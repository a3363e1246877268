"""How this process gets its memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h

ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_ARENA_MAX": "1"}
"""Variables that say the same to a process of any program."""


def keep_freed_memory() -> bool:
    """Tells the C library to keep large blocks that are freed, and returns whether it does.

    On a CPU every training step takes and frees half a gigabyte of temporaries. glibc maps such blocks anew each time,
    and the kernel clears them page by page: a fifth of the step. Kept in one heap, they are cleared once. Other C
    libraries, and other systems, are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_ARENA_MAX, 1)])
