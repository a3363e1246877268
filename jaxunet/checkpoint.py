"""Saving and restoring: numbered checkpoints through orbax, and weights alone in one file.

A checkpoint is a directory named by its step. It has a pytree of arrays and a JSON record: the format version, the
shape, dtype and checksum of every leaf, and the caller's entries. It appears under its name only when it is complete,
so a process killed while saving leaves the previous checkpoints and no partial one. Checksums are compared before a
checkpoint is used, because reading damaged array files raises no error.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

FORMAT = 2
"""Version of the checkpoint format; other versions are rejected."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the path, what was found and what was expected."""

    exit_code = 4


class DamagedError(CheckpointError):
    """A checkpoint exists but its files are not what was written."""


class Checkpoints:
    """A directory of numbered checkpoints, of which the newest are kept.

    Args:
      directory: created if missing.
      keep: number of newest checkpoints to keep; older ones, all written by this class, are removed after a save, and
        the remains of a killed save at once. None removes nothing, for readers while another process may be saving.

    Raises:
      CheckpointError: the directory cannot be read.
    """

    def __init__(self, directory: str | Path, *, keep: int | None) -> None:
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._open()

    def _open(self) -> None:
        keep, policies = self.keep, ocp.training.preservation_policies
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                save_decision_policy=_Always(),
                preservation_policy=policies.PreserveAll() if keep is None else policies.LatestN(keep),
                cleanup_tmp_directories=keep is not None,
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoints in {self.directory} cannot be read: {error}") from error

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(self, step: int, tree: Any, record: Mapping[str, Any]) -> None:
        """Saves a checkpoint and returns when it is complete on disk; an existing step is kept.

        Args:
          step: its number.
          tree: pytree of arrays; every process of a distributed run calls this.
          record: JSON values, saved with the arrays.

        Raises:
          CheckpointError: it cannot be written, for example on a full disk; older checkpoints are intact.
        """
        if any(saved.step == step for saved in self._orbax.checkpoints):
            return  # a resumed run reaches the same step with the same arrays
        content = {"leaves": leaf_shapes(tree), "checksums": checksums(tree), "record": dict(record)}
        content = json.loads(json.dumps(content))
        metadata = {"format": FORMAT, "sha256": _digest(content), **content}
        try:
            self._orbax.save(step, tree, custom_metadata=metadata, force=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {step} was not saved in {self.directory}: {error} "
                f"(it needs {megabytes(tree):.0f} MB, {free_megabytes(self.directory):.0f} MB are free)"
            ) from error

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Restores a checkpoint.

        Args:
          abstract: pytree of `jax.ShapeDtypeStruct` with shardings (or of arrays), of the structure that was saved.
          step: its number; None: the newest.

        Returns:
          The tree, with the shardings of `abstract`, and the record.

        Raises:
          CheckpointError: there is none, its format version differs, or a leaf has another shape or dtype.
          DamagedError: it cannot be read, or its arrays or its record are not those that were saved.
        """
        record = self.record(step)
        step = self.latest if step is None else step
        metadata = self._metadata(step)
        self._compare(abstract, metadata["leaves"], step)
        try:
            tree = self._orbax.load(step, abstract)
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"checkpoint {step} in {self.directory} cannot be read: {error}") from error
        found, saved = checksums(tree), metadata["checksums"]
        if wrong := [leaf for leaf in found if found[leaf] != saved.get(leaf)]:
            raise DamagedError(
                f"checkpoint {step} in {self.directory} is damaged: {len(wrong)} of {len(found)} arrays are not what "
                f"was saved ({', '.join(wrong[:3])})"
            )
        return tree, record

    def set_aside(self, step: int) -> Path:
        """Renames a damaged checkpoint to `<step>.corrupt`, which no reader considers, and returns its new path.

        Every process of a distributed run calls this.
        """
        place = self.directory / str(step)
        target = place.with_name(f"{step}.corrupt")
        while target.exists() and place.exists():
            target = target.with_name(target.name + "_")
        self.close()
        if jax.process_index() == 0:
            place.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {place}")
        self._open()
        return target

    @property
    def damaged(self) -> list[Path]:
        """Paths of the checkpoints that were set aside."""
        return sorted(self.directory.glob("*.corrupt*"))

    def record(self, step: int | None = None) -> dict[str, Any]:
        """Reads the JSON record of a checkpoint without its arrays; raises CheckpointError like `restore`."""
        step = self.latest if step is None else step
        if step is None:
            raise CheckpointError(f"no checkpoint in {self.directory}: train first, or name another --run_dir")
        return self._metadata(step)["record"]

    def close(self) -> None:
        """Releases orbax's threads."""
        with contextlib.suppress(OSError, ValueError):  # a failed save, whose error `save` has raised already
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _metadata(self, step: int | None) -> dict[str, Any]:
        try:
            metadata = self._orbax.metadata(step).custom_metadata
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"checkpoint {step} in {self.directory} cannot be read: {error}") from error
        if not isinstance(metadata, dict) or "format" not in metadata:
            raise DamagedError(f"checkpoint {step} in {self.directory} is damaged: it has no record")
        found = metadata["format"]
        if found != FORMAT:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} has format version {found}; "
                f"this version of jaxunet reads {FORMAT}"
            )
        content = {key: value for key, value in metadata.items() if key not in ("format", "sha256")}
        if metadata.get("sha256") != _digest(content):
            raise DamagedError(f"checkpoint {step} in {self.directory} is damaged: its record is not what was saved")
        return metadata

    def _compare(self, abstract: Any, saved: Mapping[str, Any], step: int | None) -> None:
        expected = leaf_shapes(abstract)
        problems = [f"{leaf} is missing" for leaf in sorted(expected.keys() - saved.keys())]
        problems += [f"{leaf} is unknown" for leaf in sorted(saved.keys() - expected.keys())]
        problems += [
            f"{leaf} is {saved[leaf]}, expected {expected[leaf]}"
            for leaf in sorted(expected.keys() & saved.keys())
            if list(saved[leaf]) != list(expected[leaf])
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} does not fit the model: {'; '.join(problems[:5])}{more}"
            )


class _Always:
    """Save decision policy of orbax: the caller decides when to save."""

    def should_save(self, *_: Any, **__: Any) -> bool:
        return True


def leaf_shapes(tree: Any) -> dict[str, list[Any]]:
    """Maps the path of each leaf to its shape and dtype, `{"params/head/bias": [[1], "float32"]}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in leaves
    }


def checksums(tree: Any) -> dict[str, int]:
    """Maps the path of each leaf to a checksum of its bits, which does not depend on its sharding."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One at a time: the sum of a leaf that is divided among devices is a program with communication, and several of
    # these at once can deadlock on the few threads of a CPU.
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(jax.device_get(_checksum(_words(leaf))))
        for path, leaf in leaves
    }


def _words(leaf: Any) -> Any:
    """Views host arrays of 8-byte elements as 4-byte words, because JAX would round them."""
    if isinstance(leaf, jax.Array) or np.dtype(leaf.dtype).itemsize <= 4:
        return leaf
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint32)


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    """Sum of the elements' bits times odd numbers, modulo 2^32: it differs whenever a single element changes."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    # The row-major position, from one iota per axis, so that an array split over devices is not gathered.
    position, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    return jnp.sum(words.astype(jnp.uint32) * (2 * position + 1), dtype=jnp.uint32)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def abstract_like(tree: Any, sharding: Any) -> Any:
    """Shapes and dtypes of `tree` with one sharding or a tree of them, as an argument of `Checkpoints.restore`."""
    one = isinstance(sharding, jax.sharding.Sharding)
    shardings = jax.tree.map(lambda _: sharding, tree) if one else sharding
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def megabytes(tree: Any) -> float:
    """Size of the arrays of a tree in MB (10^6 bytes)."""
    return sum(np.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)) / 1e6


def free_megabytes(path: Path) -> float:
    """Free disk space at `path`, which need not exist yet, in MB."""
    existing = next(p for p in [path, *path.parents] if p.exists())
    return shutil.disk_usage(existing).free / 1e6


def save_weights(path: str | Path, params: Any) -> None:
    """Writes the parameters to one `.npz` file, a float32 array named `encoder0_conv1/kernel` for each leaf.

    The file appears under its name only when it is complete.
    """
    path = Path(path)
    arrays = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_weights(path: str | Path) -> dict[str, Any]:
    """Reads a file of `save_weights`, as the nested dict for `UNet.apply({"params": ...})`.

    Raises:
      CheckpointError: the file is missing, damaged or not a file of arrays.
    """
    params: dict[str, Any] = {}
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                *layers, leaf = name.split("/")
                node = params
                for layer in layers:
                    node = node.setdefault(layer, {})
                node[leaf] = arrays[name]
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} holds no weights: {error}") from error
    return params
