"""`python -m experiments.export --run_dir RUN [--out FILE.npz]`: the weights of the best checkpoint in one file.

The file holds a float32 array a parameter, `encoder0_conv1/kernel` and so on, and nothing else: NumPy alone reads it.
From Python, `load_network("weights.npz")` gives the network and its parameters back.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import ConfigError

if TYPE_CHECKING:
    from experiments.build import Run
    from jaxunet.model import UNet


def export(run: "Run", path: str | Path) -> None:
    """Writes the weights of a run's best checkpoint to a new `.npz` file.

    Raises:
      ConfigError: the file exists, or has another ending.
    """
    from jaxunet.checkpoint import save_weights

    path = new_file(path, ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, run.params)


def load_network(path: str | Path) -> tuple["UNet", dict[str, Any]]:
    """Reads what `export` wrote.

    The arrays tell filters, depth, channels and classes; they do not tell the size of the slices that the network was
    trained on, nor dropout rate and number format, which inference does not need.

    Returns:
      The network and its parameters, for `network.apply({"params": params}, images)`.

    Raises:
      CheckpointError: the file is missing, damaged, or holds the weights of another network.
    """
    import jax

    from jaxunet.checkpoint import CheckpointError, leaf_shapes, load_weights
    from jaxunet.model import UNet

    params = load_weights(path)
    try:
        layers = sum(name.startswith("decoder") and name.endswith("_up") for name in params)
        channels, filters = params["encoder0_conv1"]["kernel"].shape[2:]
        network = UNet(base_filters=filters, num_layers=layers, num_classes=params["head"]["bias"].shape[0])
        images = jax.ShapeDtypeStruct((1, 2**layers, 2**layers, channels), "uint8")
        expected = leaf_shapes(jax.eval_shape(network.init, jax.random.key(0), images)["params"])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} holds no weights of this network: {error}") from error
    found = leaf_shapes(params)
    problems = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit a network of {layers} poolings: {'; '.join(problems[:3])}")
    return network, params


def take_out(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Separates `--out FILE` or `--out=FILE`, which is no part of the configuration, from the other words."""
    words, out = list(argv), None
    for index, word in enumerate(words):
        if word == "--out" or word.startswith("--out="):
            apart = word == "--out"
            out = words[index + 1] if apart and index + 1 < len(words) else word.removeprefix("--out").removeprefix("=")
            if not out or out.startswith("--"):
                raise ConfigError("--out needs a value: the file to write")
            del words[index : index + (2 if apart else 1)]
            break
    return words, out


def new_file(path: str | Path, ending: str) -> Path:
    """Returns the path; raises ConfigError if there is something already, or it does not end in `ending`."""
    path = Path(path)
    if path.suffix.lower() != ending:
        raise ConfigError(f"--out={path}: the file is written as {ending[1:]}, name it {path.stem}{ending}")
    if path.exists():
        raise ConfigError(f"--out={path} exists already: name another file")
    return path


def main(argv: Sequence[str]) -> int:
    """Writes the weights of the run that `--run_dir` names to `--out`, default `weights.npz` in the run directory."""
    from experiments.cli import parse
    from experiments.identity import run_directory

    words, out = take_out(argv)
    if "-h" in words or "--help" in words:
        sys.stdout.write("--out FILE: the .npz file to write; default weights.npz in the run directory\n")
    config = parse(words, program="export")
    path = new_file(out or run_directory(config) / "weights.npz", ".npz")
    from experiments.build import load_run

    export(load_run(run_directory(config), config), path)
    sys.stdout.write(f"weights: {path}, {path.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
