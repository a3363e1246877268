"""How this process gets its memory."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_HUGE_PAGES = 14  # MADV_HUGEPAGE of mman.h

ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Variables that say the same to a process of any program; that of huge pages needs glibc 2.35."""


def keep_freed_memory() -> bool:
    """Tells the C library to keep large blocks that are freed, in huge pages, and returns whether it keeps them.

    On a CPU every training step takes and frees half a gigabyte of temporaries. glibc maps such blocks anew each time,
    and the kernel clears them page by page: a fifth of the step. Kept in one heap, they are cleared once. Other C
    libraries, and other systems, are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        return False
    kept = all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])
    if kept:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Asks the kernel for pages of 2 MB, where it gives them to those who ask, in what the heap will grow into.

    What turns or shifts images goes through many pages of 4 kB at once, and waits for their addresses: 4 % of a step.
    Half of the machine's memory is taken and freed unused for that, which costs addresses only; where even those are
    limited, pages stay small.
    """
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(pages // 2 * page)
    if block:
        libc.madvise(-(-block // page) * page, (pages // 2 - 1) * page, _HUGE_PAGES)
    libc.free(block)
