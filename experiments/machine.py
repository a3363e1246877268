"""What depends on the machine: the memory allocator, the cache of compiled programs, and the clock of a run."""

import contextlib
import ctypes
import importlib
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from data_pipeline.prepared import default_cache_dir
from experiments import STARTED
from experiments.config import Config, ConfigError

# --- memory

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # from malloc.h
_HUGE_PAGES = 14  # MADV_HUGEPAGE from mman.h

ALLOCATOR_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""The same settings as environment variables, for any program; the one for huge pages needs glibc 2.35."""


def keep_freed_memory() -> bool:
    """Makes the C library keep large freed blocks, in huge pages; returns whether it does.

    On a CPU every training step allocates and frees half a gigabyte of temporaries. By default glibc maps such blocks
    again each time and the kernel clears them page by page, which takes a fifth of the step. Blocks kept in one heap
    are cleared once. Other C libraries and other systems are left alone.
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
    """Asks the kernel for pages of 2 MB in the memory that the heap will grow into.

    Transposing and shifting images touches many pages of 4 kB at once and waits for their addresses: 4 % of a step. To
    mark that memory, half of the machine's is allocated and freed unused, which only reserves addresses. Where even
    those are limited, pages stay small.
    """
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(pages // 2 * page)
    if block:
        libc.madvise(-(-block // page) * page, (pages // 2 - 1) * page, _HUGE_PAGES)
    libc.free(block)


# --- compiled programs

CACHE_OFF = "off"
_CHECKED = "checked"


def use_compilation_cache(config: Config) -> None:
    """Makes XLA keep compiled programs in `compile_cache`; called before anything is compiled.

    The default is `xla` in the folder of the prepared slices, or `JAX_COMPILATION_CACHE_DIR`. Any number of processes
    may share it: an entry is written once, under a name that depends on the program, the devices, the options and the
    compiler's version. Anyone who may write there controls the code that runs here, so it is created for the user only.

    Raises:
      ConfigError: the folder that `compile_cache` names cannot be written. Without that option, programs are then
        compiled every time, and a line says so.
    """
    if config.compile_cache == CACHE_OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    given = config.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given and "://" in given:
        folder = given  # a bucket, which JAX knows how to write to
    else:
        path = Path(given or Path(config.data.cache_dir or default_cache_dir()) / "xla").expanduser().absolute()
        folder = str(path)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_damaged(path)
        except OSError as error:
            message = f"compiled programs cannot be kept in {path}: {error.strerror or error}"
            if config.compile_cache:
                raise ConfigError(f"{message}; name another --compile_cache, or --compile_cache={CACHE_OFF}") from error
            sys.stderr.write(f"note: {message}\n")
            return
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # If another process is still writing an entry, this one compiles the program again; the user need not be warned.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)


def remove_damaged(folder: Path) -> None:
    """Removes entries that a killed process left half written: JAX would neither use nor replace them.

    Each entry is checked once: the time of the last check is kept in a file.
    """
    mark = folder / _CHECKED
    checked = mark.stat().st_mtime if mark.exists() else 0.0
    mark.touch()
    for entry in folder.glob("*-cache"):
        try:
            if entry.stat().st_mtime >= checked:
                _decompress(entry.read_bytes())
        except FileNotFoundError:  # another process was faster
            continue
        except ValueError:
            entry.unlink(missing_ok=True)


def _decompress(data: bytes) -> None:
    """Raises ValueError if this is not a complete entry; does nothing where no decoder is installed."""
    try:
        if data[:4] != b"\x28\xb5\x2f\xfd":
            zlib.decompress(data)
        elif decode := _zstandard():
            decode(data)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise ValueError(str(error)) from error


def _zstandard() -> Callable[[bytes], bytes] | None:
    """Returns the decoder of one of the two packages that JAX uses, None without them."""
    for name in ("compression.zstd", "zstandard"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module.decompress
    return None


# --- time


class Clock:
    """Measures one process of a run, in seconds.

    Attributes:
      imported: from the start of the program until its libraries were imported.
      compiled: spent on tracing and compiling, or on reading the result from the compilation cache.
      first_step: from the start of the program to the end of the first step.
      waited: for which the devices waited for data.
    """

    def __init__(self) -> None:
        self.imported = time.perf_counter() - STARTED
        self.compiled = self.first_step = self.waited = 0.0
        self._start = self._lap = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Counts the time of the block as compiling."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.compiled += time.perf_counter() - start

    def wait(self, seconds: float) -> None:
        """Adds time for which the devices waited for data."""
        self.waited += seconds

    def first(self, result: jax.Array) -> dict[str, float]:
        """Waits for the first step to end; returns the seconds before it."""
        result.block_until_ready()
        self._start = self._lap = time.perf_counter(), self.waited
        self.first_step = self._start[0] - STARTED
        return {"import": self.imported, "compile": self.compiled, "first_step": self.first_step}

    def lap(self) -> dict[str, float]:
        """Returns the `"seconds"` since the first step or the last call, and the share of them `"waited"` for data."""
        before, self._lap = self._lap, (time.perf_counter(), self.waited)
        return _share(before, self._lap)

    def total(self) -> dict[str, float]:
        """Returns the same for all laps together."""
        return _share(self._start, self._lap)


def _share(before: tuple[float, float], after: tuple[float, float]) -> dict[str, float]:
    seconds, waited = after[0] - before[0], after[1] - before[1]
    return {"seconds": seconds, "waited": waited / seconds if seconds else 0.0}
