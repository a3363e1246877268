"""The weights of a run as one `.npz` file, and the network that such a file contains."""

from pathlib import Path
from typing import Any

import jax

from experiments.build import load_run
from jaxunet.checkpoint import CheckpointError, leaf_shapes, load_weights, save_weights
from jaxunet.model import UNet


def export_weights(run_dir: str | Path, path: str | Path) -> None:
    """Writes the weights of a run's best checkpoint to a `.npz` file; creates its parents."""
    run = load_run(run_dir)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, run.params)


def load_network(path: str | Path) -> tuple[UNet, dict[str, Any]]:
    """Reads a file of `export_weights`.

    Filters, depth, channels and classes follow from the arrays. The size of the slices the network was trained on, its
    dropout rate and its number format are not in the file; inference does not need them.

    Returns:
      The network and its parameters, for `network.apply({"params": params}, images)`.

    Raises:
      CheckpointError: the file is missing, damaged, or holds the weights of another network.
    """
    params = load_weights(path)
    try:
        layers = sum(name.startswith("decoder") and name.endswith("_up") for name in params)
        channels, filters = params["encoder0_conv1"]["kernel"].shape[2:]
        network = UNet(base_filters=filters, num_layers=layers, num_classes=params["head"]["bias"].shape[0])
        images = jax.ShapeDtypeStruct((1, 2**layers, 2**layers, channels), "uint8")
        expected = leaf_shapes(jax.eval_shape(network.init, jax.random.key(0), images)["params"])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} does not hold weights of this network: {error}") from error
    found = leaf_shapes(params)
    problems = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit a network of {layers} poolings: {'; '.join(problems[:3])}")
    return network, params
