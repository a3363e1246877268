"""What the processes of a run must have in common, here with the answers of the others given."""

import os
import signal

import numpy as np
import pytest

from data_pipeline.source import DataError
from experiments import processes
from experiments.config import ConfigError
from experiments.processes import PeerError, StopRequest, any_process, assert_same_on_all, fail_together


def others(monkeypatch, *answers):
    """Lets another process answer each exchange: with these values, or with this process's own (None)."""
    queue = list(answers)

    def gather(value):
        answer = queue.pop(0)
        return np.stack([value, value if answer is None else answer(value)])

    monkeypatch.setattr(processes, "_gather", gather)


def test_alone_everything_agrees_and_errors_pass():
    assert_same_on_all({"a": 1, "b": [1.5, "x"]})
    with fail_together("reading"):
        pass
    with pytest.raises(DataError, match="mine"), fail_together("reading"):
        raise DataError("mine")


def test_what_differs_is_named(monkeypatch):
    def another_second(digests):
        changed = digests.copy()
        changed[1, 0] ^= 1
        return changed

    others(monkeypatch, another_second, None)
    with pytest.raises(ConfigError, match=r"differ in: train\.epochs; start all with the same command line"):
        assert_same_on_all({"configuration": {}, "train.epochs": 3})


def test_a_difference_that_only_another_process_sees_stops_this_one_too(monkeypatch):
    others(monkeypatch, None, np.logical_not)
    with pytest.raises(ConfigError, match="differ in: values that another process names"):
        assert_same_on_all({"configuration": {}})


def test_a_failure_elsewhere_is_an_error_here(monkeypatch):
    others(monkeypatch, np.logical_not)
    message = "process 1 failed while opening the run directory: see its message"
    with pytest.raises(PeerError, match=message), fail_together("opening the run directory"):
        pass
    assert PeerError.exit_code == 1


def test_a_failure_here_is_told_to_the_others_before_it_is_raised(monkeypatch):
    told = []
    monkeypatch.setattr(processes, "_gather", lambda value: told.append(bool(value[0])) or value[None])
    with pytest.raises(DataError), fail_together("reading"):
        raise DataError("here")
    assert told == [True]


# --- signals


def test_the_first_signal_requests_a_stop_and_the_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_single_process_hears_itself_at_every_step():
    assert any_process([True, False], step=7) == [True, False]
