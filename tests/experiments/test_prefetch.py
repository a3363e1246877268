"""Batches reach the devices one ahead of the step, from wherever the slices are store, and waiting is counted."""

import time
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from data_pipeline import cache
from data_pipeline.loader import train_batches
from data_pipeline.source import DataError, UsageError
from experiments.prefetch import Prefetcher, SliceStore, check_devices_memory
from jaxunet.sharding import make_mesh
from jaxunet.step import take_rows
from tests.data_pipeline.test_cache import Data


def numbers(count, error=None, pause=0.0):
    for number in range(count):
        time.sleep(pause)
        yield {"n": np.array([number])}
    if error:
        raise error


BUSY, IDLE = types.SimpleNamespace(is_ready=lambda: False), types.SimpleNamespace(is_ready=lambda: True)


def test_a_batch_is_on_its_way_before_it_is_asked_for_and_comes_with_what_was_put():
    put = []
    batches = Prefetcher(numbers(3), lambda batch: put.append(int(batch["n"][0])) or {"on": batch["n"]})
    batch, inputs = next(batches)
    assert (put, batch["n"], inputs["on"]) == ([0], [0], [0])
    batches.prefetch(BUSY)
    assert put == [0, 1]
    assert next(batches)[0]["n"] == [1]
    assert put == [0, 1]
    assert [int(batch["n"][0]) for batch, _ in batches] == [2]


def test_an_error_belongs_to_the_step_that_would_take_the_batch():
    batches = Prefetcher(numbers(1, DataError("slice s_1 is gone")), dict)
    next(batches)
    batches.prefetch(BUSY)  # while step 1 still runs
    with pytest.raises(DataError, match="s_1"):
        next(batches)


def test_only_time_in_which_the_devices_had_nothing_to_do_is_waiting():
    waited = []
    batches = Prefetcher(numbers(3, pause=0.05), dict, waited.append)
    next(batches)
    assert len(waited) == 1 and waited[0] >= 0.05  # nothing can run before the first batch is there
    batches.prefetch(BUSY)
    next(batches)
    assert len(waited) == 1
    batches.prefetch(IDLE)
    assert len(waited) == 2 and waited[1] >= 0.05


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("kind", ["none", "memory", "device"])
def test_a_step_is_sent_the_same_slices_wherever_they_are_store(kind, devices):
    mesh, data = make_mesh(jax.devices()[:devices]), Data()
    store = SliceStore(data, range(12), cache=kind, threads=2, mesh=mesh)
    batches = train_batches(store.source, range(12), batch_size=4, seed=1, threads=0)
    wanted = train_batches(data, range(12), batch_size=4, seed=1, threads=0)
    shapes = store.input_shapes(4, (6, 4, 3), (6, 4, 1))
    for _ in range(4):
        inputs, expected = store.put(next(batches)), next(wanted)
        assert ("row" in inputs) == (kind == "device")
        for name, leaf in inputs.items():
            if name == "pixels":
                assert all(array.sharding.is_fully_replicated for array in leaf.values())
            else:
                assert leaf.sharding.spec == PartitionSpec("data")
                assert (leaf.shape, leaf.dtype, leaf.sharding) == (
                    shapes[name].shape,
                    shapes[name].dtype,
                    shapes[name].sharding,
                )
        assert inputs.keys() == shapes.keys()
        taken = take_rows(inputs)
        assert taken.keys() == {"image", "mask", "weight", "patient"}
        for name in taken:
            np.testing.assert_array_equal(taken[name], expected[name])


def test_slices_that_a_device_has_no_room_for_are_refused(monkeypatch):
    def device(**stats):
        return types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats or None, __str__=lambda: "gpu:0")

    check_devices_memory(100, [device(bytes_limit=150, bytes_in_use=50), device()])
    with pytest.raises(
        UsageError, match=r"^data\.cache=device on .* needs 100\.00 GB for the slices, 99\.00 GB are free"
    ):
        check_devices_memory(100 * 10**9, [device(bytes_limit=150 * 10**9, bytes_in_use=51 * 10**9)])
    monkeypatch.setattr(cache, "free_memory", lambda: 899)
    check_devices_memory(100, jax.devices()[:7])  # simulated devices share the host, which also holds one copy
    with pytest.raises(UsageError, match=r"^data\.cache=device needs"):
        check_devices_memory(100, jax.devices())
