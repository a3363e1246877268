"""The library as a peer counts the memory of a step and serves what its programs compile."""

from types import SimpleNamespace

import jax
import pytest

from experiments.bench.peers.jaxunet import compiled_step
from experiments.bench.workload import Workload, parameter_count


def test_memory_of_a_step_is_what_the_device_counted_or_else_the_plan(monkeypatch):
    work = Workload(task="predict", size=16, base_filters=2, num_layers=1, batch=1)
    found = compiled_step(work)
    for seen in (None, {}, {"peak_bytes_in_use": 10**9}):
        monkeypatch.setattr(jax, "devices", lambda seen=seen: [SimpleNamespace(memory_stats=lambda: seen)])
        memory = found.memory()
        parts = [memory[part] for part in ("arguments", "results", "temporaries", "aliases")]
        assert memory["planned"] == sum(parts)
        assert memory["arguments"] >= 4 * parameter_count(work)
        assert memory["bytes"] == (10**9 if seen else memory["planned"])


def test_bytes_are_those_that_the_operations_read_and_write():
    found = compiled_step(Workload(task="predict", size=16, base_filters=2, num_layers=1, batch=1))
    assert found.bytes_accessed() >= found.memory()["arguments"] + found.memory()["results"]
    assert found.bytes_accessed() == pytest.approx(found.compile().cost_analysis()["bytes accessed"])
