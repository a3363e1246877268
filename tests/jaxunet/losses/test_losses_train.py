"""Every loss trains the network of the demo, on two devices."""

import functools

import jax
import numpy as np
import optax
import pytest

from data_pipeline import SourceOptions, open_source
from data_pipeline.loader import stack
from experiments import build
from experiments.cli import parse
from jaxunet.losses import LOSSES
from jaxunet.sharding import global_batch, make_mesh, replicate
from jaxunet.step import compile_train_step, init_state

STEPS, BATCH, AT_EACH_END = 30, 16, 5
MESH = make_mesh(jax.devices()[:2])
# 54 programs: LLVM takes 25 s to optimise each, and the steps are as many as that is worth.
FAST_TO_COMPILE = {"xla_backend_optimization_level": 1}


@functools.cache
def batches():
    """Phantoms of ten patients, in an order of their own."""
    source = open_source(None, SourceOptions(size=(64, 64), phantom_patients=10))
    order = np.random.default_rng(0).permutation(len(source.records))
    names = [record.patient for record in source.records]
    slices = []
    for index in order[: order.size // BATCH * BATCH]:
        image, mask = source.read(int(index))
        slices.append({"image": image, "mask": mask, "patient": names.index(names[index]), "slice": index})
    batches = [stack(slices[first : first + BATCH]) for first in range(0, len(slices), BATCH)]
    return [global_batch({**batch, "weight": np.ones(BATCH, np.float32)}, MESH) for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_thirty_steps_lower_the_loss_and_stay_finite(name):
    config = parse(["--config=demo"], program="train")
    state = init_state(build.model(config), optax.adam(1e-3), seed=0, image_shape=build.image_shape(config))
    state = replicate(state, MESH)
    step = compile_train_step(MESH, loss=LOSSES[name].fn, seed=0)
    step = step.lower(state, batches()[0]).compile(compiler_options=FAST_TO_COMPILE)
    values, finite = [], []
    for number in range(STEPS):
        state, report = step(state, batches()[number % len(batches())])
        values.append(report["loss"])
        finite.append(report["finite"])
    values = np.array(jax.device_get(values))
    assert all(jax.device_get(finite)) and np.isfinite(values).all()
    assert int(state.step) == STEPS
    assert values[-AT_EACH_END:].mean() < values[:AT_EACH_END].mean()
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state.params)} == {2}
