"""The benchmark of the distance transform compares equal results, in turns."""

import numpy as np
import pytest

from experiments.bench import distance as bench
from experiments.config import ConfigError


def test_a_row_for_short_and_for_long_distances(capsys):
    assert bench.main(["--size=16", "--batch=2", "--rounds=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "distance transform of 2 masks of 16x16, 3 rounds"
    for name in ("discs", "around them"):
        (row,) = [line for line in lines if line.strip().startswith(name)]
        ours, theirs, ratio = map(float, row.replace(name, "").split())
        assert min(ours, theirs, ratio) >= 0


def test_both_take_turns_in_beginning():
    begun = []
    times = bench.take_turns(lambda: begun.append("ours"), lambda: begun.append("theirs"), 4)
    assert len(times) == 4
    assert begun[0::2] == ["theirs", "ours", "theirs", "ours"]
    assert begun[1::2] == ["ours", "theirs", "ours", "theirs"]


def test_a_difference_ends_the_benchmark(monkeypatch):
    monkeypatch.setattr(bench, "scipy_squared", lambda masks: np.zeros(masks.shape))
    with pytest.raises(bench.InexactError, match="differ from SciPy's"):
        bench.measure(bench.Options(size=16, batch=2, rounds=1))
    assert bench.InexactError.exit_code == 3


def test_sizes_below_one_are_refused_together():
    with pytest.raises(ConfigError, match=r"2 problems:\n  batch=0.*\n  rounds=-1"):
        bench.main(["--batch=0", "--rounds=-1"])


def test_masks_have_both_kinds_of_pixels():
    masks = bench.discs(3, 32)
    assert masks.shape == (3, 32, 32, 1)
    assert masks.any((1, 2, 3)).all()
    assert not masks.all((1, 2, 3)).any()
