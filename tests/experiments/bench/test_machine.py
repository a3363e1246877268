"""The machine's peak is that of the largest product that takes little time."""

import pytest

from experiments.bench import machine


def test_the_rate_is_that_of_the_largest_matrix_that_takes_little_time(monkeypatch):
    clock, tried = [0.0], []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def prepare(side):
        tried.append(side)

        def run():
            clock[0] += 1e-9 * side**3 if side <= 512 else 1e-8 * side**3

        return run

    assert machine.matmul_rate("cpu", prepare, 1.0) == pytest.approx(2e9)  # two operations per nanosecond
    assert tried == [256, 512, 1024]
