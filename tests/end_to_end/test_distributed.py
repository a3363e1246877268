"""One step gives the same loss, parameters and dropout however many devices and processes share the batch."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments.run_directory import locked
from tests.helpers.programs import TINY, environment, run

STEP = """
import sys, jax, numpy as np
from experiments import processes
from experiments.config import Config
import dataclasses
if len(sys.argv) > 2:
    processes.start_processes(dataclasses.replace(Config(), distributed=True))
import jax.numpy as jnp, optax
from jaxunet import UNet, init_state
from jaxunet.losses import hybrid_loss
from jaxunet.sharding import global_batch, make_mesh, replicate
from jaxunet.step import compile_train_step

rng = np.random.default_rng(0)
batch = {"image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8), "mask": np.zeros((8, 32, 32, 1), np.uint8),
         "weight": np.ones(8, np.float32)}
batch["mask"][0, 4:20, 6:18] = 1  # tumour on the first shard only
rank, count = jax.process_index(), jax.process_count()
rows = slice(rank * 8 // count, (rank + 1) * 8 // count)
mesh = make_mesh()
state = init_state(UNet(base_filters=2, num_layers=2), optax.adam(1e-3, eps=1e-7), seed=0, image_shape=(32, 32, 3))
state = replicate(state, mesh)
step = compile_train_step(mesh, loss=hybrid_loss, seed=0)
losses = []
for _ in range(2):
    state, metrics = step(state, global_batch({k: v[rows] for k, v in batch.items()}, mesh))
    losses.append(float(metrics["loss"]))
if rank == 0:
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.params))}
    np.savez(sys.argv[1], losses=losses, devices=mesh.size, processes=count, **leaves)
"""

MEASURE = """
import dataclasses, sys, jax, numpy as np
from experiments import processes
from experiments.config import Config
if len(sys.argv) > 2:
    processes.start_processes(dataclasses.replace(Config(), distributed=True))
from experiments.evaluation import measure_batch
from jaxunet.sharding import global_batch, make_mesh, replicated, split_rows

rng = np.random.default_rng(0)
batch = {"z": rng.normal(scale=4, size=(8, 16, 12, 1)).astype(np.float32),
         "g": (rng.random((8, 16, 12, 1)) < 0.2).astype(np.uint8), "weight": (np.arange(8) < 7).astype(np.float32)}
rank, count = jax.process_index(), jax.process_count()
rows = slice(rank * 8 // count, (rank + 1) * 8 // count)
mesh = make_mesh()
step = jax.jit(lambda b: measure_batch(b["z"], b["g"], weight=b["weight"]),
               in_shardings=split_rows(mesh), out_shardings=replicated(mesh))
found = jax.device_get(step(global_batch({k: v[rows] for k, v in batch.items()}, mesh)))
if rank == 0:
    parts = found.sums._asdict() | found.histogram._asdict() | {"prediction": found.prediction, "mask": found.mask}
    np.savez(sys.argv[1], processes=count, **parts)
"""

LATE = """
import dataclasses, time, jax
from experiments import processes
from experiments.config import Config
processes.start_processes(dataclasses.replace(Config(), distributed=True))
with processes.fail_together("reading"):
    time.sleep(40 * jax.process_index())
print("met")
"""

pytestmark = pytest.mark.timeout(900)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def pair(command, env, cwd, *, each=((), ()), code=0):
    """Starts two processes of one device that find each other, waits for both and returns their outputs.

    `each` holds the further words of the one and the other. Exit codes must be `code`; None: anything but 0.
    """
    port = free_port()
    processes = [
        subprocess.Popen(
            [*command, *each[rank]],
            cwd=cwd,
            env={
                **env,
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert all(codes) if code is None else codes == [code, code], "\n".join(outputs)
    return outputs


def test_two_processes_step_like_one(tmp_path):
    env = environment(tmp_path)
    subprocess.run([sys.executable, "-c", STEP, "one.npz"], cwd=tmp_path, env=env, check=True, timeout=500)
    pair([sys.executable, "-c", STEP, "two.npz", "distributed"], env, tmp_path)
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert (one["devices"], one["processes"], two["devices"], two["processes"]) == (1, 1, 2, 2)
    for name in set(one.files) - {"devices", "processes"}:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_process_that_needs_longer_for_its_files_is_waited_for(tmp_path):
    """On CPUs the first exchange connects the processes, which must all have come within 30 seconds."""
    outputs = pair([sys.executable, "-c", LATE], environment(tmp_path), tmp_path)
    assert all("met" in output for output in outputs)


@pytest.mark.slow
def test_two_processes_count_like_one(tmp_path):
    """Each sees the counts, the histogram and the masks of the whole batch."""
    env = environment(tmp_path)
    subprocess.run([sys.executable, "-c", MEASURE, "one.npz"], cwd=tmp_path, env=env, check=True, timeout=500)
    pair([sys.executable, "-c", MEASURE, "two.npz", "distributed"], env, tmp_path)
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["mask"].shape == (8, 16, 12, 1)
    for name in set(one.files) - {"processes", "overlap", "predicted"}:
        np.testing.assert_array_equal(one[name], two[name])
    for name in ("overlap", "predicted"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)


@pytest.mark.slow
def test_two_processes_train_evaluate_and_write_one_run(tmp_path):
    env = environment(tmp_path)
    args = [*TINY, "--train.epochs=2", "--run_dir=run", "--distributed"]
    outputs = pair([sys.executable, "-m", "experiments.train", *args], env, tmp_path)
    assert "2 x cpu" in outputs[0]
    assert "epoch 2" in outputs[0]
    assert "epoch 2" not in outputs[1]
    alone = [*TINY, "--train.epochs=2", "--run_dir=alone"]
    subprocess.run([sys.executable, "-m", "experiments.train", *alone], cwd=tmp_path, env=env, check=True, timeout=500)
    read = [np.genfromtxt(tmp_path / d / "train_losses.csv", delimiter=",", skip_header=1) for d in ("run", "alone")]
    np.testing.assert_allclose(read[0], read[1], rtol=1e-4)
    done = run("evaluate", "--run_dir=run", cwd=tmp_path, env=env)  # one process reads what two have written
    assert done.returncode == 0, done.stderr
    differing = [[*args, f"--train.seed={seed}", "--run_dir=differing"] for seed in (0, 1)]
    outputs = pair([sys.executable, "-m", "experiments.train"], env, tmp_path, each=differing, code=2)
    assert all("the processes of this run differ in: configuration" in output for output in outputs)
    assert not (tmp_path / "differing").exists()
    with locked(tmp_path / "run"):  # only the first process looks at the lock; the second must not wait for it
        outputs = pair([sys.executable, "-m", "experiments.train", *args], env, tmp_path, code=None)
    assert "is in use by" in outputs[0]
    assert "process 0 failed while opening the run directory" in outputs[1]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == len((tmp_path / "alone" / "metrics.jsonl").read_text().splitlines())
