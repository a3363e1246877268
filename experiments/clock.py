"""Where the time of a run goes: to its first step, and how much of the rest the devices waited for data."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments import STARTED

if TYPE_CHECKING:
    import jax

    from experiments.feed import Feed


class Clock:
    """Measures one process of a run, in seconds.

    Attributes:
      imported: from the start of the program until its libraries were imported.
      compiled: of tracing and compiling, or of finding the result in the compilation cache.
      first_step: from the start of the program to the end of the first step.
    """

    def __init__(self) -> None:
        self.imported = self.compiled = self.first_step = 0.0
        self._start = self._lap = time.perf_counter(), 0.0
        self._feeds: list[Feed] = []
        self._lock, self._compilers, self._since = threading.Lock(), 0, 0.0

    def libraries_imported(self) -> None:
        """To be called once the libraries are imported."""
        self.imported = time.perf_counter() - STARTED

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Counts the time within as that of compiling; what several threads compile at once counts once."""
        with self._lock:
            self._compilers += 1
            if self._compilers == 1:
                self._since = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._compilers -= 1
                if not self._compilers:
                    self.compiled += time.perf_counter() - self._since

    def watch(self, feed: "Feed") -> "Feed":
        """Counts the time that is waited for a feed from now on."""
        self._feeds.append(feed)
        return feed

    def first(self, result: "jax.Array") -> dict[str, float]:
        """Waits for the first step to end; returns what came before it, in seconds."""
        result.block_until_ready()
        self._start = self._lap = self._now()
        self.first_step = self._start[0] - STARTED
        return {"import": self.imported, "compile": self.compiled, "first_step": self.first_step}

    def lap(self) -> dict[str, float]:
        """Returns the `"seconds"` since the first step or the last call, and the share `"waited"` for data of them."""
        before, self._lap = self._lap, self._now()
        return _share(before, self._lap)

    def total(self) -> dict[str, float]:
        """The same of all laps together."""
        return _share(self._start, self._lap)

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), sum(feed.waited for feed in self._feeds)


def _share(before: tuple[float, float], after: tuple[float, float]) -> dict[str, float]:
    seconds, waited = after[0] - before[0], after[1] - before[1]
    return {"seconds": seconds, "waited": waited / seconds if seconds else 0.0}
