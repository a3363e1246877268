"""Where the time of a run goes: to its first step, and how much of the rest the devices waited for data."""

import time
from typing import TYPE_CHECKING

from experiments import STARTED

if TYPE_CHECKING:
    import jax

    from experiments.feed import Feed


class Clock:
    """Measures one process of a run, in seconds.

    Attributes:
      imported: from the start of the program until its libraries were imported.
      compiled: of tracing and compiling the training step, or of finding it in the compilation cache.
      first_step: from the start of the program to the end of the first step.
    """

    def __init__(self) -> None:
        self.imported = self.compiled = self.first_step = 0.0
        self._seconds = self._waited = 0.0
        self._lap = time.perf_counter()
        self._feeds: list[Feed] = []

    def libraries_imported(self) -> None:
        """To be called once the libraries are imported."""
        self.imported = time.perf_counter() - STARTED

    def watch(self, feed: "Feed") -> "Feed":
        """Counts the time that is waited for a feed from now on."""
        self._feeds.append(feed)
        return feed

    def first(self, result: "jax.Array") -> dict[str, float]:
        """Waits for the first step to end; returns what came before it, in seconds."""
        result.block_until_ready()
        self._lap = time.perf_counter()
        self.first_step = self._lap - STARTED
        return {"import": self.imported, "compile": self.compiled, "first_step": self.first_step}

    def lap(self) -> dict[str, float]:
        """Returns the `"seconds"` since the first step or the last call, and the share `"waited"` for data of them."""
        now, waited = time.perf_counter(), sum(feed.waited for feed in self._feeds)
        seconds, waiting = now - self._lap, waited - self._waited
        self._lap, self._waited, self._seconds = now, waited, self._seconds + seconds
        return {"seconds": seconds, "waited": waiting / seconds if seconds else 0.0}

    def total(self) -> dict[str, float]:
        """The same of all laps together."""
        return {"seconds": self._seconds, "waited": self._waited / self._seconds if self._seconds else 0.0}
