"""One mesh axis, `"data"`: batches are split over all devices, parameters are copied to each."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the 1-D `("data",)` mesh over all devices of all processes (or the given ones).

    The axis type is Auto (`jax.make_mesh` makes explicit axes), so the compiler inserts the collectives and a loss over
    the global batch stays one global loss. Devices are ordered by process, so each process has contiguous rows.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def split_rows(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: the first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of parameters and scalars: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(names: Iterable[str], mesh: Mesh) -> dict[str, NamedSharding]:
    """Sharding of each array of a batch: rows are split, `"pixels"`, which they index, is copied to every device."""
    return {name: replicated(mesh) if name == "pixels" else split_rows(mesh) for name in names}


def split_largest_axes(tree: Any, mesh: Mesh) -> Any:
    """Shardings that divide each array over the devices along its largest axis that divides evenly.

    An array without such an axis (biases shorter than the mesh, scalars) is copied to every device.
    """

    def divide(leaf: Any) -> NamedSharding:
        sizes = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
        if not any(sizes):
            return replicated(mesh)
        axis = sizes.index(max(sizes))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    return jax.tree.map(divide, tree)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices, as its share of one global batch.

    Args:
      batch: NumPy arrays; the first axis is this process's share of the global batch.
      mesh: the mesh of `make_mesh`.

    Returns:
      Global arrays, `[process_count * rows, ...]`, split over the mesh.

    Raises:
      ValueError: the rows do not divide among this process's devices.
    """
    local_devices = len(mesh.local_devices)
    for name, rows in batch.items():
        if len(rows) % local_devices:
            raise ValueError(f"batch[{name!r}] has {len(rows)} rows, which do not divide among {local_devices} devices")
    sharding = split_rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every leaf on every device of the mesh; every process passes the same values."""
    return jax.device_put(tree, replicated(mesh))


def replicate_from_host(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """`replicate` for large NumPy arrays; unlike `device_put` it does not compare them between processes."""
    place = partial(jax.make_array_from_callback, sharding=replicated(mesh))
    return {name: place(array.shape, data_callback=array.__getitem__) for name, array in arrays.items()}
