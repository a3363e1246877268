"""Slices on their way to the devices: where they are kept, and the next batch brought while a step runs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.cache import MemoryCache, check_memory
from jaxunet.sharding import global_batch, replicate_from_host, split_rows

if TYPE_CHECKING:
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from data_pipeline.loader import Batch, Data
    from data_pipeline.prepared import Prepared

Inputs = dict[str, Any]

PARTS = ("image", "mask", "row", "weight", "patient")
"""What a step is sent of a batch; the rest is for messages."""


class Kept:
    """The slices of a run, where `data.cache` keeps them.

    Args:
      data: prepared slices.
      indices: those the run needs.
      cache: `"none"` reads a slice each time, `"memory"` keeps it decoded on the host, `"device"` keeps all of them on
        every device.
      threads: that read.
      mesh: the devices.

    Attributes:
      source: what the loader's batches are made from.
      pixels: `"image"` and `"mask"` on every device, with cache `"device"`, else None.

    Raises:
      UsageError: they do not fit into the memory of the host or of a device.
      DataError: a slice cannot be read.
    """

    def __init__(self, data: "Prepared", indices: Sequence[int], *, cache: str, threads: int, mesh: "Mesh") -> None:
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

    def put(self, batch: Mapping[str, "np.ndarray"]) -> Inputs:
        """Puts this process's rows of a batch on its devices; what a compiled step takes."""
        inputs: Inputs = global_batch({name: batch[name] for name in PARTS if name in batch}, self.mesh)
        return inputs if self.pixels is None else inputs | {"pixels": self.pixels}


def input_shapes(
    mesh: "Mesh",
    batch_size: int,
    image: tuple[int, ...],
    mask: tuple[int, ...],
    pixels: Mapping[str, "jax.Array"] | None = None,
) -> Inputs:
    """Shapes, dtypes and shardings of what `Kept.put` gives for a global batch, without one.

    Args:
      mesh: the devices.
      batch_size: slices of a batch.
      image: `(H, W, C)`.
      mask: `(H, W, 1)`.
      pixels: as of `Kept`.
    """
    import jax

    def split(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split_rows(mesh))

    labels = {"weight": split((), "float32"), "patient": split((), "int32")}
    if pixels is None:
        return labels | {"image": split(image, "uint8"), "mask": split(mask, "uint8")}
    return labels | {"row": split((), "int32"), "pixels": pixels}


def check_devices_memory(needed: int, devices: Sequence["jax.Device"]) -> None:
    """Raises `UsageError` if a device says that it has less than `needed` bytes left.

    Simulated devices share the memory of the host, which then holds a copy for each.
    """
    what = "data.cache=device"
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            check_memory(needed, f"{what} on {device}", free=stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if devices[0].platform == "cpu":
        check_memory(needed * (len(devices) + 1), what)


class Feed:
    """Batches on their devices, each brought there while the step before it runs.

    Args:
      batches: of `data_pipeline.loader`.
      put: from a batch to arrays on the devices.

    Attributes:
      waited: seconds for which the devices had nothing to do because the next batch was not there. An upper bound:
        where a step ended while its successor's batch was being made, the whole making counts.
    """

    def __init__(self, batches: "Iterator[Batch]", put: Callable[["Batch"], Inputs]) -> None:
        self.waited = 0.0
        self._batches, self._put = batches, put
        self._ready: tuple[Batch, Inputs] | Exception | None = None

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> tuple["Batch", Inputs]:
        """Returns a batch on the host and what the step takes of it; raises what making it raised."""
        if self._ready is None:
            self.ahead()
        ready, self._ready = self._ready, None
        assert ready is not None
        if isinstance(ready, Exception):
            raise ready
        return ready

    def ahead(self, running: Any = None) -> None:
        """Makes the next batch while `running`, an array of the newest step, is computed."""
        start = time.perf_counter()
        self._ready = self._make()
        if running is None or running.is_ready():
            self.waited += time.perf_counter() - start

    def _make(self) -> "tuple[Batch, Inputs] | Exception":
        try:
            batch = next(self._batches)
            return batch, self._put(batch)
        except Exception as error:  # StopIteration too: it belongs to the step that would take this batch
            return error
