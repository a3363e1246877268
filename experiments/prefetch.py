"""Slices on their way to the devices: where they are kept, and the next batch fetched while a step runs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.cache import MemoryCache, check_memory
from data_pipeline.loader import Batch, Data
from data_pipeline.prepared import Prepared
from jaxunet.sharding import global_batch, replicate_from_host, split_rows

Inputs = dict[str, Any]

STEP_INPUTS = ("image", "mask", "row", "weight", "patient")
"""The parts of a batch that a step receives; the others are for messages."""


class SliceStore:
    """The slices of a run, kept where `data.cache` says.

    Args:
      data: prepared slices.
      indices: those that the run needs.
      cache: `"none"` reads a slice each time, `"memory"` keeps it decoded on the host, `"device"` keeps all of them on
        every device.
      threads: reading threads.
      mesh: the devices.

    Attributes:
      source: what the loader reads from.
      pixels: `"image"` and `"mask"` on every device with cache `"device"`, else None.

    Raises:
      UsageError: they do not fit into the memory of the host or of a device.
      DataError: a slice cannot be read.
    """

    def __init__(self, data: Prepared, indices: Sequence[int], *, cache: str, threads: int, mesh: Mesh) -> None:
        self.mesh = mesh
        self.source: Data = data
        self.pixels: Inputs | None = None
        if cache == "none":
            return
        memory = MemoryCache(data, indices)
        self.source = memory
        if cache == "device":
            check_devices_memory(sum(array.nbytes for array in memory.pixels.values()), mesh.local_devices)
            memory.fill(threads)
            self.pixels = replicate_from_host(memory.pixels, mesh)
            self.source = memory.rows

    def put(self, batch: Mapping[str, np.ndarray]) -> Inputs:
        """Puts this process's rows of a batch on its devices; returns the inputs of a compiled step."""
        inputs: Inputs = global_batch({name: batch[name] for name in STEP_INPUTS if name in batch}, self.mesh)
        return inputs if self.pixels is None else inputs | {"pixels": self.pixels}

    def input_shapes(self, batch_size: int, image: tuple[int, ...], mask: tuple[int, ...]) -> Inputs:
        """Returns shapes, dtypes and shardings of what `put` returns for a global batch.

        Args:
          batch_size: slices per batch.
          image: `(H, W, C)`.
          mask: `(H, W, 1)`.
        """

        def split(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split_rows(self.mesh))

        labels = {"weight": split((), "float32"), "patient": split((), "int32")}
        if self.pixels is None:
            return labels | {"image": split(image, "uint8"), "mask": split(mask, "uint8")}
        return labels | {"row": split((), "int32"), "pixels": self.pixels}


def check_devices_memory(needed: int, devices: Sequence[jax.Device]) -> None:
    """Raises `UsageError` if a device reports less than `needed` bytes of free memory.

    Simulated devices share the memory of the host, which holds one copy for each of them.
    """
    what = "data.cache=device"
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            check_memory(needed, f"{what} on {device}", free=stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if devices[0].platform == "cpu":
        check_memory(needed * (len(devices) + 1), what)


class Prefetcher:
    """Batches on their devices, each put there while the step before it runs.

    Args:
      batches: from `data_pipeline.loader`.
      put: from a batch to arrays on the devices.
      on_wait: called with the seconds for which the devices were idle because the next batch was not ready. An upper
        bound: if a step ends while the next batch is being made, the whole time of making it counts.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        put: Callable[[Batch], Inputs],
        on_wait: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        self._batches, self._put, self._on_wait = batches, put, on_wait
        self._ready: tuple[Batch, Inputs] | Exception | None = None

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> tuple[Batch, Inputs]:
        """Returns a batch on the host and the inputs of the step; raises what making it raised."""
        if self._ready is None:
            self.prefetch()
        ready, self._ready = self._ready, None
        assert ready is not None
        if isinstance(ready, Exception):
            raise ready
        return ready

    def prefetch(self, running: Any = None) -> None:
        """Makes the next batch while `running`, an array of the newest step, is computed."""
        start = time.perf_counter()
        try:
            batch = next(self._batches)
            self._ready = batch, self._put(batch)
        except Exception as error:  # StopIteration too: it belongs to the step that would use this batch
            self._ready = error
        if running is None or running.is_ready():
            self._on_wait(time.perf_counter() - start)
