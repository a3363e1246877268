"""A run directory with a real network, shared by the tests of the programs that read one."""

import json

import jax
import numpy as np
import pytest

from experiments import build
from experiments.config import Config, override, to_json
from jaxunet.checkpoint import Checkpoints


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "run"
    directory.mkdir()
    config = override(
        Config(),
        {
            "run_dir": str(directory),
            "model.image_height": 16,
            "model.image_width": 16,
            "model.base_filters": 2,
            "model.num_layers": 1,
        },
    )
    (directory / "config.json").write_text(to_json(config), encoding="utf-8")
    manifest = {"format": 1, "dataset": {"kind": "synthetic", "title": "SYNTHETIC", "fingerprint": "0"}}
    manifest["split"] = {"by": "patient", "notes": [], "train": [], "val": [], "test": []}
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shapes = jax.eval_shape(build.model(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), "uint8"))[
        "params"
    ]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32), shapes)
    with Checkpoints(directory / "checkpoints" / "best", keep=1) as best:
        best.save(3, params, {"epoch": 3})
    return directory
