import itertools
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.loader import epoch_order, eval_batches, steps_per_epoch, train_batches
from data_pipeline.source import DataError

ROOT = Path(__file__).parents[2]


class Data:
    """Slices whose pixels, patient and number tell their index; `broken` cannot be read."""

    def __init__(self, count, broken=None, error=None, pause=0.0):
        self.entries = [types.SimpleNamespace(name=f"s_{index}") for index in range(count)]
        self.broken, self.error, self.pause = broken, error, pause

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        time.sleep(self.pause)
        if index == self.broken:
            raise self.error
        image = np.full((4, 2, 3), index, np.uint8)
        return {"image": image, "mask": image[..., :1] % 2, "patient": np.int32(index // 3), "slice": np.int32(index)}


def take(batches, count):
    return list(itertools.islice(batches, count))


def slices(batches):
    return [batch["slice"].tolist() for batch in batches]


counts = st.integers(1, 40)
batch_sizes = st.sampled_from([1, 3, 8])
processes = st.integers(1, 4)
quick = settings(deadline=None, max_examples=60)


@given(counts, batch_sizes, processes, st.integers(0, 3), st.randoms(use_true_random=False))
@quick
def test_evaluation_counts_every_index_exactly_once_in_order(count, batch_size, parts, threads, random):
    assume(batch_size % parts == 0)
    indices = random.sample(range(60), count)
    local = [
        list(
            eval_batches(
                Data(60), indices, batch_size=batch_size, threads=threads, process_index=part, process_count=parts
            )
        )
        for part in range(parts)
    ]
    assert {len(batches) for batches in local} == {-(-count // batch_size)}
    rows = [
        (int(number), float(weight))
        for batches in zip(*local, strict=True)
        for batch in batches
        for number, weight in zip(batch["slice"], batch["weight"], strict=True)
    ]
    assert [number for number, weight in rows if weight == 1] == indices
    assert [weight for _, weight in rows] == [1.0] * count + [0.0] * (len(rows) - count)


@given(counts, batch_sizes, processes, st.integers(0, 3), st.integers(0, 5))
@quick
def test_the_training_order_is_the_same_for_any_number_of_processes_and_threads(
    count, batch_size, parts, threads, seed
):
    assume(count >= batch_size and batch_size % parts == 0)
    wanted = slices(take(train_batches(Data(40), range(count), batch_size=batch_size, seed=seed, threads=0), 12))
    local = [
        train_batches(
            Data(40),
            range(count),
            batch_size=batch_size,
            seed=seed,
            threads=threads,
            process_index=part,
            process_count=parts,
        )
        for part in range(parts)
    ]
    got = [list(itertools.chain(*rows)) for rows in zip(*(slices(take(batches, 12)) for batches in local), strict=True)]
    assert got == wanted


@given(counts, batch_sizes, st.integers(0, 100), st.integers(1, 3))
@quick
def test_a_run_resumed_at_any_step_sees_what_an_uninterrupted_one_sees(count, batch_size, start, threads):
    assume(count >= batch_size)
    options = {"batch_size": batch_size, "seed": 7, "threads": threads}
    uninterrupted = slices(take(train_batches(Data(40), range(count), **options), start + 5))
    resumed = slices(take(train_batches(Data(40), range(count), start_step=start, **options), 5))
    assert resumed == uninterrupted[start:]


@given(counts, batch_sizes)
@quick
def test_an_epoch_takes_each_index_once_and_drops_the_incomplete_batch(count, batch_size):
    assume(count >= batch_size)
    steps = steps_per_epoch(count, batch_size)
    indices = np.arange(count) + 10
    batches = slices(take(train_batches(Data(60), indices, batch_size=batch_size, seed=1), 2 * steps))
    for epoch in batches[:steps], batches[steps:]:
        seen = list(itertools.chain(*epoch))
        assert len(set(seen)) == len(seen) == count - count % batch_size
        assert set(seen) <= set(indices.tolist())


def test_the_order_is_the_one_that_older_runs_were_started_with():
    assert epoch_order(8, seed=0, epoch=0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert epoch_order(8, seed=0, epoch=1).tolist() == [7, 4, 5, 1, 6, 2, 0, 3]
    assert epoch_order(8, seed=1, epoch=0).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]


def test_every_index_comes_to_every_place_of_an_epoch():
    places = np.zeros((5, 5), int)
    for epoch in range(2000):
        places[np.arange(5), epoch_order(5, seed=3, epoch=epoch)] += 1
    assert places.min() > 320  # 400 expected, standard deviation 18
    assert places.max() < 480


def test_a_batch_has_the_documented_shapes_and_types():
    for batches in (
        train_batches(Data(9), range(9), batch_size=4, seed=0, process_index=1, process_count=2),
        eval_batches(Data(9), range(9), batch_size=4, process_index=1, process_count=2),
    ):
        batch = next(batches)
        assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
            "image": ((2, 4, 2, 3), "uint8"),
            "mask": ((2, 4, 2, 1), "uint8"),
            "weight": ((2,), "float32"),
            "patient": ((2,), "int32"),
            "slice": ((2,), "int32"),
        }
        assert batch["weight"].tolist() == [1, 1]
        assert batch["patient"].tolist() == (batch["slice"] // 3).tolist()
        assert batch["image"][:, 0, 0, 0].tolist() == batch["slice"].tolist()
        assert batch["mask"][:, 0, 0, 0].tolist() == (batch["slice"] % 2).tolist()


def test_a_process_may_get_padding_only():
    batches = [list(eval_batches(Data(5), [4], batch_size=4, process_index=part, process_count=4)) for part in range(4)]
    assert [batch["weight"].tolist() for (batch,) in batches] == [[1], [0], [0], [0]]


def test_no_indices_give_no_evaluation_batch():
    assert list(eval_batches(Data(5), [], batch_size=4)) == []


def test_fewer_slices_than_a_global_batch_are_refused_before_iterating():
    with pytest.raises(DataError, match=r"^3 samples < global batch 8"):
        train_batches(Data(9), range(3), batch_size=8, seed=0)
    with pytest.raises(DataError, match=r"^0 samples < global batch 1"):
        train_batches(Data(9), [], batch_size=1, seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": 4, "process_count": 3},
        {"batch_size": 4, "process_index": 2, "process_count": 2},
        {"batch_size": 4, "process_index": -1},
        {"batch_size": 4, "threads": -1},
    ],
)
def test_arguments_out_of_range_are_refused_before_iterating(options):
    with pytest.raises(ValueError):
        train_batches(Data(9), range(9), seed=0, **options)
    with pytest.raises(ValueError):
        eval_batches(Data(9), range(9), **options)


@pytest.mark.parametrize("change", [{"seed": -1}, {"start_step": -1}])
def test_a_negative_seed_or_step_is_refused(change):
    with pytest.raises(ValueError):
        train_batches(Data(9), range(9), **{"batch_size": 4, "seed": 0} | change)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no such device"), "slice s_6: OSError: no such device"),
        (DataError("slice s_6: record lost"), "slice s_6: record lost"),
    ],
)
def test_a_slice_that_cannot_be_read_is_named_with_its_batch(threads, error, message):
    data = Data(9, broken=6, error=error)
    batches = eval_batches(data, range(9), batch_size=2, threads=threads)
    assert slices(take(batches, 3)) == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == f"batch 4 of the evaluation: {message}"
    step = next(
        step
        for step, rows in enumerate(slices(take(train_batches(Data(9), range(9), batch_size=3, seed=0), 3)), 1)
        if 6 in rows
    )
    batches = train_batches(data, range(9), batch_size=3, seed=0, threads=threads)
    take(batches, step - 1)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == f"training step {step}: {message}"


def new_threads(before):
    """Returns the threads that are still there after a while."""
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return set(threading.enumerate()) - before


def test_closing_the_iterator_ends_its_threads():
    before = set(threading.enumerate())
    for batches in (
        train_batches(Data(9, pause=0.01), range(9), batch_size=4, seed=0),
        eval_batches(Data(9, pause=0.01), range(9), batch_size=2),
    ):
        next(batches)
        assert set(threading.enumerate()) - before
        batches.close()
        assert not new_threads(before)


def test_an_error_ends_the_threads_while_it_is_still_handled():
    before = set(threading.enumerate())
    data = Data(99, broken=5, error=OSError("gone"))
    batches = eval_batches(data, range(99), batch_size=2)
    with pytest.raises(DataError):
        list(batches)
    assert not new_threads(before)


def test_a_program_that_ends_while_batches_are_read_ends_quietly():
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from tests.data_pipeline.test_loader import *\n"
        "batches = train_batches(Data(99, pause=.01), range(99), batch_size=4, seed=0)\n"
        "next(batches); print('end', flush=True)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


def test_reading_ahead_is_bounded():
    data = Data(99)
    read = []
    data.__class__ = type(
        "Counting", (Data,), {"__getitem__": lambda self, i: read.append(i) or Data.__getitem__(self, i)}
    )
    batches = train_batches(data, range(99), batch_size=3, seed=0, threads=2)
    next(batches)
    time.sleep(0.3)
    assert len(read) <= 3 * 5
