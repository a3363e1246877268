"""Keras computes the same as the library, where it is installed."""

import dataclasses

import pytest

from experiments.bench.peers import jaxunet
from experiments.bench.workload import Workload

pytest.importorskip("tensorflow", exc_type=ImportError)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "hybrid"])
def test_keras_finds_the_same_losses_step_after_step(loss):
    from experiments.bench.peers import keras

    work = Workload(loss=loss, size=16, base_filters=2, num_layers=1, batch=2, dropout_rate=0.0)
    peer, library = keras.serve(**dataclasses.asdict(work)), jaxunet.compiled_step(work).functions()
    assert peer["describe"]()["parameters"] == library["describe"]()["parameters"]
    assert peer["value"]() == pytest.approx(library["value"](), rel=1e-5)
    found, expected = ([functions["run"](steps=1) for _ in range(3)] for functions in (peer, library))
    assert found == pytest.approx(expected, rel=1e-4)
