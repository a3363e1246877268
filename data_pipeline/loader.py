"""Batches from a prepared dataset; a batch depends only on (seed, step)."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipeline.source import DataError

Batch = dict[str, np.ndarray]
_STEPS = 2**53  # stands for endless


class Slices(Protocol):
    """What a loader reads from; `data_pipeline.prepared.Prepared` is one."""

    def __len__(self) -> int:
        """Returns the number of slices."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Returns image `uint8[H, W, C]`, mask `uint8[H, W, K]`, patient and slice; safe to call from threads."""
        ...


@runtime_checkable
class Gatherer(Protocol):
    """Returns many slices at once; `data_pipeline.cache` has two."""

    def gather(self, indices: np.ndarray, /) -> Batch:
        """Returns arrays with one row per index, `"patient"` and `"slice"` among them; safe to call from threads."""
        ...


Data = Slices | Gatherer


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the number of full global batches in `count` slices; raises `DataError` for fewer than one batch.

    The incomplete rest of an epoch is dropped.
    """
    if count < batch_size:
        raise DataError(
            f"{count} samples < global batch {batch_size}: a training epoch needs at least one full batch; "
            "use a smaller batch size or more data"
        )
    return count // batch_size


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation `int64[count]`, a pure function of its arguments."""
    # NumPy guarantees the stream of a bit generator, but not that of `Generator.permutation`, with which a resumed run
    # could change.
    words = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(count)
    return np.argsort(words, kind="stable")


def train_batches(
    data: Data,
    indices: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Returns an endless iterator of training batches, shuffled again in every epoch.

    The batch of step `s` (counted from 0) depends only on `indices`, `batch_size`, `seed` and `s`, so a run resumed at
    `start_step`, with any number of threads and processes, sees the batches of an uninterrupted one.

    Args:
      data: reads slices, or gathers them; a gatherer's arrays replace those named below.
      indices: the slices to train on.
      batch_size: slices in a global batch, over all processes.
      seed: of the shuffling, not negative.
      start_step: steps already done.
      threads: reading threads; 0 reads in the caller's thread.
      process_index: this process; it gets the rows `[index * B/count, (index + 1) * B/count)` of each global batch.
      process_count: processes that share each global batch; divides `batch_size`.

    Returns:
      Batches `{"image": uint8[B, H, W, C], "mask": uint8[B, H, W, K], "weight": float32[B] (ones), "patient": int32[B],
      "slice": int32[B]}` with B = batch_size / process_count.

    Raises:
      DataError: fewer slices than one global batch; while iterating: a slice that cannot be read, with its name.
      ValueError: an argument out of range.
    """
    rows = _rows(batch_size, process_index, process_count)
    if seed < 0 or start_step < 0 or threads < 0:
        raise ValueError(f"seed {seed}, start_step {start_step} and threads {threads} must not be negative")
    chosen = np.asarray(indices, np.int64)
    steps = steps_per_epoch(len(chosen), batch_size)

    @functools.lru_cache(maxsize=2)  # near the end of an epoch the threads already read from the next
    def order(epoch: int) -> np.ndarray:
        return epoch_order(len(chosen), seed=seed, epoch=epoch)

    def make(step: int) -> Batch:
        epoch, position = divmod(step, steps)
        places = order(epoch)[position * batch_size : (position + 1) * batch_size][rows]
        return _batch(data, chosen[places], np.ones(len(places), np.float32), f"training step {step + 1}")

    return _stream(make, range(start_step, _STEPS), threads)


def eval_batches(
    data: Data,
    indices: Sequence[int],
    *,
    batch_size: int,
    threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Returns an iterator over `indices` in their order, each exactly once, in full batches.

    The last global batch is filled up with copies of the last slice, whose weight is 0. Every process gets the same
    number of batches; some may hold padding only.

    Args:
      data: as in `train_batches`.
      indices: the slices to evaluate; without any there is no batch.
      batch_size: slices in a global batch, over all processes.
      threads: reading threads; 0 reads in the caller's thread.
      process_index: this process, as in `train_batches`.
      process_count: processes that share each global batch; divides `batch_size`.

    Returns:
      Batches like those of `train_batches`, with weight 1 for slices and 0 for padding.

    Raises:
      DataError: while iterating: a slice that cannot be read, with its name.
      ValueError: an argument out of range.
    """
    rows = _rows(batch_size, process_index, process_count)
    if threads < 0:
        raise ValueError(f"threads {threads} must not be negative")
    chosen = np.asarray(indices, np.int64)
    places = np.arange(batch_size)[rows]

    def make(step: int) -> Batch:
        wanted = step * batch_size + places
        weight = (wanted < len(chosen)).astype(np.float32)
        return _batch(data, chosen[np.minimum(wanted, len(chosen) - 1)], weight, f"batch {step + 1} of the evaluation")

    return _stream(make, range(-(-len(chosen) // batch_size)), threads)


def _rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"batch size {batch_size}, process {process_index} of {process_count}: out of range")
    if batch_size % process_count:
        raise ValueError(f"the global batch of {batch_size} does not divide among {process_count} processes")
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def read_slice(data: Slices, index: int) -> dict[str, Any]:
    """Returns `data[index]`; every error becomes a `DataError` with the slice's name."""
    try:
        return data[index]
    except DataError:
        raise
    except Exception as error:
        entries = getattr(data, "entries", None)
        name = entries[index].name if entries else index
        raise DataError(f"slice {name}: {type(error).__name__}: {error}") from error


def _batch(data: Data, indices: np.ndarray, weight: np.ndarray, where: str) -> Batch:
    try:
        arrays = data.gather(indices) if isinstance(data, Gatherer) else _read(data, indices)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return {**arrays, "weight": weight}


def _read(data: Slices, indices: np.ndarray) -> Batch:
    read = {index: read_slice(data, index) for index in dict.fromkeys(indices.tolist())}  # padding repeats a slice
    return stack([read[index] for index in indices.tolist()])


def stack(slices: Sequence[Mapping[str, Any]]) -> Batch:
    """Returns the slices as one batch without weights."""
    return {
        "image": np.stack([one["image"] for one in slices]),
        "mask": np.stack([one["mask"] for one in slices]),
        "patient": np.array([one["patient"] for one in slices], np.int32),
        "slice": np.array([one["slice"] for one in slices], np.int32),
    }


def _stream(make: Callable[[int], Batch], steps: range, threads: int) -> Iterator[Batch]:
    """Makes batches ahead of their use, in grain's threads, each of which makes whole batches."""
    import grain  # takes half a second and is not needed to read or prepare slices

    # A few batches ahead: grain's default of 500 elements would be gigabytes here.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = iter(grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
