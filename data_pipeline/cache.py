"""Decoded slices in host memory, so that each is read once per run; and how much host memory is free."""

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_pipeline.loader import Batch, Slices, read_slice
from data_pipeline.source import UsageError


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of slices in arrays stored elsewhere; batches contain row numbers instead of pixels."""

    indices: np.ndarray  # int64[N], sorted: the slice in each row
    labels: Batch  # "patient" and "slice", int32[N]

    def find(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows `int32[B]` of slices; raises `KeyError` for one that has none."""
        rows = np.minimum(np.searchsorted(self.indices, indices), len(self.indices) - 1)
        if (strangers := indices[self.indices[rows] != indices]).size:
            raise KeyError(f"slice {strangers[0]} is not in the cache")
        return rows.astype(np.int32)

    def gather(self, indices: np.ndarray) -> Batch:
        """Returns `"row"`, `"patient"` and `"slice"`, `int32[B]` each."""
        rows = self.find(indices)
        return {"row": rows, **{name: values[rows] for name, values in self.labels.items()}}


class MemoryCache:
    """Decoded slices in host memory, each read when a batch first needs it.

    Args:
      data: reads the slices.
      indices: the slices that will be needed, at least one.

    Attributes:
      pixels: `"image"` `uint8[N, H, W, C]` and `"mask"` `uint8[N, H, W, K]`; rows are filled when first needed.
      rows: which slice is in which row.

    Raises:
      UsageError: they do not fit into the memory that is free.
      DataError: the first slice cannot be read.
    """

    def __init__(self, data: Slices, indices: Sequence[int]) -> None:
        chosen = np.unique(np.asarray(indices, np.int64))
        first = read_slice(data, int(chosen[0]))
        pixels = {name: np.asarray(first[name]) for name in ("image", "mask")}
        check_memory(len(chosen) * sum(value.nbytes for value in pixels.values()), "data.cache=memory")
        self._data = data
        # The system allocates the memory of `empty` when it is written to, so a short run takes little.
        self.pixels: Batch = {n: np.empty((len(chosen), *v.shape), v.dtype) for n, v in pixels.items()}
        self.rows = Rows(chosen, {name: np.empty(len(chosen), np.int32) for name in ("patient", "slice")})
        self._filled = np.zeros(len(chosen), bool)

    def gather(self, indices: np.ndarray) -> Batch:
        """Returns `"image"`, `"mask"`, `"patient"` and `"slice"` of slices; raises `DataError` as reading them does."""
        rows = self.rows.find(indices)
        for row in rows[~self._filled[rows]].tolist():
            self._read(row)
        return {name: values.take(rows, axis=0) for name, values in (self.pixels | self.rows.labels).items()}

    def fill(self, threads: int) -> None:
        """Reads what has not been read yet, in threads; raises `DataError`."""
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for _ in pool.map(self._read, np.flatnonzero(~self._filled).tolist()):
                pass

    def _read(self, row: int) -> None:
        # Two threads may read one slice at the same time; both write the same values.
        one = read_slice(self._data, int(self.rows.indices[row]))
        for arrays in (self.pixels, self.rows.labels):
            for name, values in arrays.items():
                values[row] = one[name]
        self._filled[row] = True


def check_memory(needed: int, what: str, *, free: int | None = None) -> None:
    """Raises `UsageError` if `needed` bytes are more than are free; does nothing where the free memory is unknown.

    Args:
      needed: bytes.
      what: the option that needs them, for the message.
      free: bytes; None: the free host memory.
    """
    free = free_memory() if free is None else free
    if free is not None and needed > free:
        raise UsageError(
            f"{what} needs {needed / 1e9:.2f} GB for the slices, {free / 1e9:.2f} GB are free; "
            "choose data.cache=none or fewer slices"
        )


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes of host memory that system and container leave to this process; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, LookupError):
        fields = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    with contextlib.suppress(OSError, ValueError, LookupError):  # "max" where the group has no limit
        group = groups / (proc / "self" / "cgroup").read_text().split("0::/")[1].strip()
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(counts["inactive_file"])  # reclaimable
        found.append(int((group / "memory.max").read_text()) - used)
    return max(0, min(found)) if found else None
