"""Peers take turns, and times of programs that compute something else are never compared."""

from pathlib import Path

import pytest

from experiments.bench.rounds import (
    Participant,
    ValueMismatchError,
    check_values,
    end_together,
    run_rounds,
    start_together,
    take_turns,
)
from experiments.bench.workload import Workload


def participant(name, value, found=(1.0, 0.9, 0.8), dropout_rate=0.0):
    facts = {"value": value, "losses": list(found), "platform": "cpu", "parameters": 1}
    return Participant(name, Workload(dropout_rate=dropout_rate), {}, True, 1.0, 60.0, facts=facts)


def test_times_of_programs_that_find_other_losses_are_never_compared():
    jaxunet = participant("jaxunet", 1.0)
    check_values([jaxunet, participant("flax", 1.00005), participant("pytorch_bf16", 1.01), participant("monai", 7.0)])
    with pytest.raises(ValueMismatchError, match=r"flax finds 1\.001 where jaxunet finds 1 "):
        check_values([jaxunet, participant("flax", 1.001)])
    with pytest.raises(ValueMismatchError, match="pytorch_bf16"):
        check_values([jaxunet, participant("pytorch_bf16", 1.1)])
    check_values([participant("jaxunet_bf16", 1.002), participant("flax", 1.0)])  # the reference is the one that rounds
    otherwise = (1.0, 0.95, 0.9)
    with pytest.raises(ValueMismatchError, match="keras"):
        check_values([jaxunet, participant("keras", 1.0, otherwise)])
    check_values(
        [participant("jaxunet", 1.0, dropout_rate=0.1), participant("keras", 1.0, otherwise, dropout_rate=0.1)]
    )


def test_peers_that_start_together_take_turns_and_one_that_compiles_too_long_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    work = Workload(task="predict", size=16, base_filters=2, num_layers=1, batch=1)
    caches = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    late, *others = (Participant(name, work, caches, True, 0.01, 60.0) for name in ("jaxunet", "jaxunet", "flax"))
    start_together([late], 0.1)
    assert "gave no answer to build" in late.failure
    start_together(others, 60.0)
    assert all(one.is_warm for one in others)
    run_rounds([late, *others], 3, lambda: None, stay=True)
    end_together([late, *others])
    assert [len(one.seconds) for one in (late, *others)] == [0, 3, 3]
    assert all(one.facts["memory"]["bytes"] > 0 for one in others)


def test_each_round_begins_with_another_one_and_a_turn_lasts_long_enough():
    calls = []

    def run(name, seconds_per_step, steps):
        calls.append((name, steps))
        return steps * seconds_per_step

    runs = {name: lambda steps, name=name, s=s: run(name, s, steps) for name, s in (("a", 0.25), ("b", 3.0))}
    assert take_turns(runs, rounds=3, least_seconds=1.0) == {"a": [0.25] * 3, "b": [3.0] * 3}
    warm, timed = calls[:4], calls[4:]
    assert warm == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    assert timed == [("a", 4), ("b", 1), ("b", 1), ("a", 4), ("a", 4), ("b", 1)]
