"""Plain Flax computes the same as the library."""

import pytest

from experiments.bench.peers import flax, jaxunet
from experiments.bench.workload import Workload, parameter_count

WORK = Workload(task="predict", size=16, base_filters=2, num_layers=1, batch=1)


def test_plain_flax_predicts_the_same_with_as_many_parameters():
    plain, library = (module.compiled_step(WORK).functions() for module in (flax, jaxunet))
    assert plain["value"]() == pytest.approx(library["value"](), rel=1e-5)
    assert plain["describe"]()["parameters"] == library["describe"]()["parameters"] == parameter_count(WORK)
