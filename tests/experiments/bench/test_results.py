"""Statistics of the rounds, and the place of a table on a documentation page."""

import numpy as np
import pytest

from experiments.bench import results
from experiments.config import ConfigError


def test_a_ratio_is_taken_within_each_round():
    assert results.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0  # a slow round slows both
    summary = results.summarise([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (summary["median"], summary["quartiles"], summary["range"]) == (3.0, [2.0, 4.0], [1.0, 5.0])
    assert results.summarise([1.5])["quartiles"] == [1.5, 1.5]


def test_the_interval_of_a_ratio_comes_from_its_order_statistics():
    ratios = np.random.default_rng(0).permutation(np.arange(1.0, 28.0))
    # of 27, the 8th and the 20th: the median lies outside with the probability of at most 7 heads or tails in 27 throws
    assert results.ratio_interval(2 * ratios, [2.0] * 27) == (8.0, 20.0)
    assert results.ratio_interval([1.0] * 5, [1.0] * 5) is None  # too few for 95 %


def test_a_page_without_one_place_for_the_table_is_refused(tmp_path):
    path = tmp_path / "benchmarks.md"
    first, last = results.marks("step")
    assert (first, last) == ("<!-- bench step -->", "<!-- /bench step -->")
    for text in ("nothing", first, f"{last}\n{first}", f"{first}{first}{last}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="has no place for the table"):
            results.write_marked(path, "step", "table")
        assert path.read_text() == text
