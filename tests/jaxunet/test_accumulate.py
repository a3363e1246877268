"""A batch in microbatches has the mean of their losses and gradients, for any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunet.accumulate import accumulated
from jaxunet.losses import bce_loss, dice_loss
from jaxunet.sharding import global_batch, make_mesh, replicate
from jaxunet.step import compile_train_step
from tests.helpers import tiny

NETWORK, BATCH = tiny.Pixelwise(), tiny.batch(8)
PARAMS = tiny.params(NETWORK)


@functools.cache
def in_microbatches(loss, microbatches):
    """Loss, number of each row and gradients."""

    def gradient(batch, key):
        def objective(params):
            return loss(NETWORK.apply({"params": params}, batch["image"]), batch["mask"])

        value, grads = jax.value_and_grad(objective)(PARAMS)
        return (value, jnp.sum(batch["mask"], (1, 2, 3), dtype=jnp.int32)), grads

    return jax.device_get(
        jax.jit(accumulated(gradient, microbatches))(jax.tree.map(jnp.asarray, BATCH), jax.random.key(0))
    )


def assert_same(found, expected):
    assert float(found[0][0]) == pytest.approx(float(expected[0][0]), rel=1e-6)
    np.testing.assert_array_equal(found[0][1], BATCH["mask"].sum((1, 2, 3)))  # in the order of the batch
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found[1], expected[1])
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found[1])) > 1e-3


@pytest.mark.parametrize("microbatches", [2, 8])
def test_cross_entropy_in_microbatches_is_that_of_the_whole_batch(microbatches):
    assert_same(in_microbatches(bce_loss, microbatches), in_microbatches(bce_loss, 1))
    assert len(set(BATCH["mask"].sum((1, 2, 3)).tolist())) > 6  # rows that a wrong order would swap


def test_dice_in_microbatches_is_the_mean_over_microbatches_and_not_that_of_the_batch():
    def mean_of_microbatches(logits, masks):
        return (dice_loss(logits[0::2], masks[0::2]) + dice_loss(logits[1::2], masks[1::2])) / 2

    assert_same(in_microbatches(dice_loss, 2), in_microbatches(mean_of_microbatches, 1))
    assert abs(float(in_microbatches(dice_loss, 2)[0][0]) - float(in_microbatches(dice_loss, 1)[0][0])) > 1e-5


@functools.cache
def one_step(devices):
    mesh = make_mesh(jax.devices()[:devices])
    state = replicate(tiny.state(tiny.Pixelwise(dropout_rate=0.4), optax.sgd(0.1)), mesh)
    batch = global_batch(tiny.batch(16), mesh)
    step = compile_train_step(mesh, loss=dice_loss, seed=3, accumulate=2).lower(state, batch).compile()
    state, result = jax.device_get(step(state, batch))
    return state.params, result, step.as_text()


@pytest.mark.parametrize(
    "devices", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 8]
)
def test_a_step_in_microbatches_is_the_same_on_many_devices_and_no_image_travels(devices):
    (params, result, text), (expected_params, expected, _) = one_step(devices), one_step(1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected_params)
    assert float(result["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    for name in ("tp", "fp", "fn", "tn"):  # with the same dropout
        np.testing.assert_array_equal(getattr(result["sums"], name), getattr(expected["sums"], name))
    np.testing.assert_array_equal(result["sums"].tp + result["sums"].fn, tiny.batch(16)["mask"].sum((1, 2, 3)))
    assert "all-reduce(" in text
    assert tiny.travelling(text) <= 16  # a number an image, for the metrics


def test_each_microbatch_has_its_own_key_and_one_microbatch_changes_nothing():
    def gradient(batch, key):
        return (jnp.sum(batch), jax.random.bits(key, batch.shape)), batch

    assert accumulated(gradient, 1) is gradient
    (_, bits), _ = jax.jit(accumulated(gradient, 4))(jnp.arange(8.0), jax.random.key(0))
    assert len(set(bits.tolist())) == 8


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 does not divide into 4 microbatches"):
        accumulated(lambda batch, key: ((0.0, batch), batch), 4)(jnp.zeros(6), jax.random.key(0))
