import jax
import numpy as np

from data_pipeline.console import run_program
from experiments import build, export
from experiments.weights import load_network
from jaxunet.checkpoint import load_weights


def test_the_weights_of_a_run_are_exported_to_one_new_file(run_dir, tmp_path, capsys):
    path = tmp_path / "new" / "weights.npz"
    assert run_program(export.main, [f"--run_dir={run_dir}", f"--out={path}"]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_weights(path), jax.device_get(build.load_run(run_dir).params))
    network, _ = load_network(path)
    assert (network.base_filters, network.num_layers) == (2, 1)
    capsys.readouterr()
    assert run_program(export.main, [f"--run_dir={run_dir}", f"--out={path}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run_program(export.main, [f"--run_dir={run_dir}", f"--out={tmp_path / 'w.safetensors'}"]) == 2
    assert "the file is written as npz, name it w.npz" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()
