"""Processes of a benchmark answer, fail with a reason, are ended in time, and show what they use while they wait."""

import time
from pathlib import Path

import pytest

from experiments.bench.worker import Worker, WorkerError, xla_flags

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_worker_answers_however_much_it_prints_and_says_why_it_fails():
    with Worker("a worker", "tests.helpers.bench_worker:simple", {"a": 1}, environment={"GIVEN": "this"}) as process:
        process.call("print")
        assert process.call("echo", value=2) == [2, {"a": 1}]
        assert process.call("environment") == "this"
        assert process.seconds < 1
        assert process.call("process_peak_bytes") > 10**6
        with pytest.raises(WorkerError, match=r"a worker failed in fail: ValueError: too small$"):
            process.call("fail")
        assert process.call("echo", value=3)[0] == 3
        with pytest.raises(WorkerError, match="a worker died with code 7 in die"):
            process.call("die")
    with pytest.raises(WorkerError, match="failed in build: AttributeError"):
        Worker("another", "tests.helpers.bench_worker:unknown", {})


def test_a_worker_that_takes_too_long_is_ended():
    with Worker("a slow one", "tests.helpers.bench_worker:simple", {}, patience=5) as process:
        process.call("echo", value=1)
        with pytest.raises(WorkerError, match="a slow one gave no answer to hang within 5 s and was ended"):
            process.call("hang")


def test_processor_time_of_a_waiting_process_is_counted():
    with Worker("busy", "tests.helpers.bench_worker:restless", {}) as process:
        process.call("wake")
        time.sleep(0.5)
        process.call("sleep")
        assert process.idle_cpu_seconds > 0.02
    with Worker("calm", "tests.helpers.bench_worker:simple", {}) as process:
        time.sleep(0.5)
        process.call("echo", value=1)
        assert process.idle_cpu_seconds < 0.02


def test_xla_flags_of_a_worker_follow_those_of_the_user(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1 --xla_two=2")
    assert xla_flags("--xla_two=3") == {"XLA_FLAGS": "--xla_one=1 --xla_two=2 --xla_two=3"}  # the last one counts
    monkeypatch.delenv("XLA_FLAGS")
    assert xla_flags("--xla_two=3") == {"XLA_FLAGS": "--xla_two=3"}
