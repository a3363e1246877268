"""Where slices are kept changes no batch, reads each slice once, and is refused where it does not fit."""

import itertools
import os
import time
import types

import numpy as np
import pytest

from data_pipeline import cache
from data_pipeline.cache import MemoryCache, check_memory, free_memory
from data_pipeline.loader import eval_batches, train_batches
from data_pipeline.source import DataError, UsageError


class Data:
    """Slices of noise; counts how often each is read, and cannot read `broken`."""

    def __init__(self, count=20, broken=None):
        self.entries = [types.SimpleNamespace(name=f"s_{index}") for index in range(count)]
        self.reads, self.broken = [0] * count, broken

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        self.reads[index] += 1
        time.sleep(0.0005)
        if index == self.broken:
            raise OSError("no such device")
        image = np.random.default_rng(index).integers(0, 256, (6, 4, 3), np.uint8)
        return {"image": image, "mask": image[..., :1] >> 7, "patient": np.int32(index // 3), "slice": np.int32(index)}


TRAIN, VAL = [3, 17, 4, 9, 11, 2, 8, 15, 1], [19, 0, 6]
OPTIONS = {"batch_size": 4, "seed": 5}


def batches_of(kind, data, **options):
    """Seven training batches and one of validation, with the pixels that stand for them on the device."""
    if kind == "none":
        kept, pixels = data, None
    else:
        memory = MemoryCache(data, TRAIN + VAL)
        kept, pixels = memory, memory.pixels
    if kind == "device":
        memory.fill(threads=2)
        kept = memory.rows
    train = train_batches(kept, TRAIN, start_step=1, **OPTIONS, **options)
    found = [*itertools.islice(train, 7), *eval_batches(kept, VAL, batch_size=4, **options)]
    train.close()
    if kind == "device":
        assert {batch["row"].dtype.name for batch in found} == {"int32"}
        assert not any("image" in batch or "mask" in batch for batch in found)
        rows = [batch.pop("row") for batch in found]
        found = [b | {name: values[r] for name, values in pixels.items()} for b, r in zip(found, rows, strict=True)]
    return found


@pytest.mark.parametrize("kind", ["memory", "device"])
@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 3}, {"process_index": 1, "process_count": 2}])
def test_every_cache_gives_the_batches_of_none(kind, options):
    wanted, found = batches_of("none", Data(), **options), batches_of(kind, Data(), **options)
    assert len(found) == len(wanted) == 8
    for batch, other in zip(found, wanted, strict=True):
        assert batch.keys() == other.keys() >= {"image", "mask", "weight", "patient", "slice"}
        for name in other:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_a_slice_is_read_when_first_asked_for_and_never_again():
    data = Data()
    memory = MemoryCache(data, TRAIN)
    data.reads = [0] * len(data)  # one was read for its shape
    batches = train_batches(memory, TRAIN, threads=0, **OPTIONS)
    first = next(batches)["slice"]
    assert [index for index, reads in enumerate(data.reads) if reads] == sorted(first.tolist())
    for _ in range(9):
        next(batches)
    assert [data.reads[index] for index in TRAIN] == [1] * len(TRAIN)
    assert sum(data.reads) == len(TRAIN)


def test_filling_reads_what_is_missing_only():
    data = Data()
    memory = MemoryCache(data, TRAIN)
    memory.gather(np.array([3, 17]))
    data.reads = [0] * len(data)
    memory.fill(threads=3)
    assert sum(data.reads) == len(TRAIN) - 2
    assert data.reads[3] == data.reads[17] == 0
    np.testing.assert_array_equal(memory.pixels["image"][memory.rows.find(np.array([9]))[0]], data[9]["image"])


def test_a_batch_of_a_cache_is_a_copy_that_may_be_written_to():
    memory = MemoryCache(Data(), TRAIN)
    memory.gather(np.array([3]))["image"][:] = 0
    np.testing.assert_array_equal(memory.gather(np.array([3]))["image"][0], Data()[3]["image"])


def test_a_slice_that_cannot_be_read_is_named_with_its_step_as_without_a_cache():
    messages = []
    for kept in (Data(broken=11), MemoryCache(Data(broken=11), TRAIN)):
        with pytest.raises(DataError) as caught:
            list(itertools.islice(train_batches(kept, TRAIN, threads=0, **OPTIONS), 9))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[1].endswith("slice s_11: OSError: no such device")
    with pytest.raises(DataError, match="slice s_11: OSError"):
        MemoryCache(Data(broken=11), TRAIN).fill(threads=2)


@pytest.mark.parametrize("stranger", [5, 18, 25])
def test_a_slice_that_is_not_in_the_cache_is_never_taken_for_another(stranger):
    memory = MemoryCache(Data(30), TRAIN)
    with pytest.raises(KeyError, match=f"slice {stranger} is not in the cache"):
        memory.gather(np.array([3, stranger]))
    with pytest.raises(KeyError, match=f"slice {stranger} "):
        memory.rows.gather(np.array([stranger]))


def test_slices_that_do_not_fit_are_refused_with_both_figures(monkeypatch):
    check_memory(10, "it", free=10)
    with pytest.raises(UsageError, match=r"^it needs 3\.00 GB for the slices, 2\.50 GB are free; .*data\.cache=none"):
        check_memory(3 * 10**9, "it", free=2_500_000_000)
    monkeypatch.setattr(cache, "free_memory", lambda: 12 * 6 * 4 * 4)
    MemoryCache(Data(), TRAIN + VAL)  # twelve slices of 6 x 4 x (3 + 1) bytes fit exactly
    monkeypatch.setattr(cache, "free_memory", lambda: 12 * 6 * 4 * 4 - 1)
    with pytest.raises(UsageError, match=r"^data\.cache=memory needs"):
        MemoryCache(Data(), TRAIN + VAL)
    monkeypatch.setattr(cache, "free_memory", lambda: None)
    MemoryCache(Data(), TRAIN + VAL)


def test_free_memory_is_what_the_narrower_of_system_and_container_leaves(tmp_path):
    proc, group = tmp_path / "proc", tmp_path / "groups" / "job" / "7"
    assert free_memory(proc, tmp_path / "groups") is None
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       9000 kB\nMemAvailable:   5000 kB\nHugePages_Total:       0\n")
    assert free_memory(proc, tmp_path / "groups") == 5000 * 1024
    (proc / "self" / "cgroup").write_text("4:memory:/other\n0::/job/7\n")
    (group / "memory.stat").write_text("anon 1000\ninactive_file 300\n")
    (group / "memory.current").write_text("1500\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(proc, tmp_path / "groups") == 5000 * 1024
    (group / "memory.max").write_text("4000\n")
    assert free_memory(proc, tmp_path / "groups") == 4000 - (1500 - 300)
    (group / "memory.max").write_text("1000\n")
    assert free_memory(proc, tmp_path / "groups") == 0
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < (free_memory() or total) <= total
