"""A file of weights gives the network back, and one that does not fit is named."""

import jax
import numpy as np
import pytest

from experiments import build
from experiments.config import Config, override
from experiments.weights import load_network
from jaxunet.checkpoint import CheckpointError, save_weights


def small_network():
    config = override(Config(), {"model.base_filters": 2, "model.num_layers": 2, "model.num_classes": 3})
    network, rng = build.model(config), np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), "uint8"))["params"]
    return network, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_exported_weights_give_the_network_back(tmp_path):
    network, params = small_network()
    save_weights(tmp_path / "weights.npz", params)
    again, loaded = load_network(tmp_path / "weights.npz")
    assert (
        (again.base_filters, again.num_layers, again.num_classes)
        == (2, 2, 3)
        == (
            network.base_filters,
            network.num_layers,
            network.num_classes,
        )
    )
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("damage", ["missing", "foreign", "layer", "shape"])
def test_weights_that_do_not_fit_are_named(tmp_path, damage):
    _, params = small_network()
    path = tmp_path / "weights.npz"
    if damage == "foreign":
        params = {"a": np.zeros(3, np.float32)}
    elif damage == "layer":
        del params["decoder0_conv2"]
    elif damage == "shape":
        params["encoder2_conv1"]["kernel"] = np.zeros((3, 3, 4, 9), np.float32)
    if damage != "missing":
        save_weights(path, params)
    with pytest.raises(CheckpointError, match=r"weights\.npz"):
        load_network(path)
