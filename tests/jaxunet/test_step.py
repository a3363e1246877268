"""A step does what it says: one Adam update, nothing on a value that is not finite, dropout from (seed, step) alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunet import UNet, eval_step, init_state, predict_step, train_step
from jaxunet.losses import LOSSES, averaged, bce_loss, dice_loss
from jaxunet.metrics import pixel_sums
from jaxunet.sharding import make_mesh, replicate
from jaxunet.step import compile_eval_step, compile_predict_step, compile_train_step, with_context
from tests.helpers import tiny

NETWORK = UNet(base_filters=2, num_layers=1, dropout_rate=0.4)
FLAT = UNet(base_filters=4, num_layers=0)  # quick to compile, no dropout
ADAM = optax.adam(1e-3, eps=1e-7)
BATCH = tiny.batch()
NAN_LOSS, NAN_GRADIENT = 5.0, 7.0  # weights that make `fragile_loss` fail

traces: list[int] = []


def fragile_loss(logits, masks, *, weight):
    """BCE that turns into NaN, or whose gradient does, at the word of the weights. Counts its traces."""
    traces.append(1)
    broken = jnp.where(weight[0] == NAN_LOSS, jnp.nan, 0)
    steep = jnp.sqrt(jnp.where(weight[0] == NAN_GRADIENT, 0.0, 1.0) * jnp.sum(logits**2))
    return bce_loss(logits, masks) + broken + 1e-3 * steep


def fresh():
    return tiny.state(NETWORK, ADAM)


@pytest.fixture(scope="module")
def step():
    return jax.jit(train_step, static_argnames="loss", donate_argnums=0)


def test_initial_state_is_at_step_zero_and_a_function_of_the_seed():
    network = nn.Conv(4, (3, 3))  # any network will do, and this one is quick to initialise
    first, again, other = (init_state(network, ADAM, seed=seed, image_shape=(16, 16, 3)) for seed in (0, 0, 1))
    assert (first.step.dtype, int(first.step)) == (jnp.int32, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(first.params)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first.params["kernel"].shape == (3, 3, 3, 4)
    assert (first.params["kernel"] != other.params["kernel"]).any()


def test_two_steps_are_two_updates_of_adam(step):
    @jax.jit
    @jax.value_and_grad
    def gradient(params):
        return dice_loss(FLAT.apply({"params": params}, BATCH["image"]), jnp.asarray(BATCH["mask"]))

    params = jax.tree.map(np.float64, tiny.params(FLAT))
    first = second = jax.tree.map(np.zeros_like, params)
    state = tiny.state(FLAT, ADAM)
    for number in (1, 2):
        value, grads = gradient(jax.tree.map(np.float32, params))
        grads = jax.tree.map(np.float64, grads)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, grads)
        params = jax.tree.map(
            lambda p, m, v, n=number: p - 1e-3 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-7),
            *(params, first, second),
        )
        state, result = step(state, BATCH, loss=dice_loss, seed=0)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
        assert float(result["loss"]) == pytest.approx(float(value), rel=1e-6)
        assert float(result["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        assert bool(result["finite"])
    assert int(state.step) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.params, params)


def test_sums_of_a_training_step_count_every_pixel_of_every_image(step):
    _, result = step(fresh(), BATCH, loss=fragile_loss, seed=0)
    sums = result["sums"]
    np.testing.assert_array_equal(sums.tp + sums.fn, BATCH["mask"].sum((1, 2, 3)))
    np.testing.assert_array_equal(sums.tp + sums.fn + sums.fp + sums.tn, [256] * 4)


@pytest.mark.parametrize(("poison", "broken"), [(NAN_LOSS, "loss"), (NAN_GRADIENT, "grad_norm")])
def test_loss_or_gradient_that_is_not_finite_leaves_the_state_as_it_was_to_the_bit(step, poison, broken):
    state, _ = step(fresh(), BATCH, loss=fragile_loss, seed=0)  # Adam's moments are no longer zero
    before = jax.device_get(state)
    weight = BATCH["weight"].copy()
    weight[0] = poison
    state, result = step(state, {**BATCH, "weight": weight}, loss=fragile_loss, seed=0)
    assert not bool(result["finite"])
    assert not np.isfinite(result[broken])
    if broken == "grad_norm":
        assert np.isfinite(result["loss"])
    assert len(jax.tree.leaves(before)) > 20
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), jax.device_get(state), before)
    state, result = step(state, BATCH, loss=fragile_loss, seed=0)  # and training goes on
    assert bool(result["finite"])
    assert int(state.step) == int(before.step) + 1


def test_dropout_depends_on_seed_and_step_only(step):
    def loss(state, seed):
        return float(step(state, BATCH, loss=fragile_loss, seed=seed)[1]["loss"])

    assert loss(fresh(), 1) == loss(fresh(), 1)
    assert loss(fresh(), 1) != loss(fresh(), 2)
    assert loss(fresh(), 1) != loss(fresh().replace(step=jnp.int32(5)), 1)
    with_history, _ = step(fresh(), BATCH, loss=fragile_loss, seed=1)
    arrived = fresh().replace(step=jnp.int32(5), opt_state=with_history.opt_state)
    assert loss(arrived, 1) == loss(fresh().replace(step=jnp.int32(5)), 1)


def test_the_loss_is_traced_once_in_many_steps_and_the_state_is_donated(step):
    state = fresh()
    for number in range(1, 5):
        before = state
        state, _ = step(state, BATCH, loss=fragile_loss, seed=number)
        # newer JAX keeps the step number, which `int` below has read, alive for its reader
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)) if leaf.ndim)
        assert int(state.step) == number
    assert len(traces) == 1  # in all tests of this file together


def test_plain_loss_of_logits_and_masks_is_accepted_and_gets_float_masks():
    def hinge(logits, masks):
        return jnp.mean(jnp.maximum(0, 1 - (2 * masks - 1) * logits))  # 255 instead of -1 were masks still uint8

    logits, masks = jnp.array([2.0, -2.0, 0.5]), jnp.array([1, 0, 0], jnp.uint8)
    assert float(with_context(hinge)(logits, masks, weight=jnp.ones(3))) == pytest.approx(0.5)
    assert float(with_context(hinge, rows=2)(logits, masks, weight=jnp.ones(3))) == 0
    _, result = jax.eval_shape(functools.partial(train_step, loss=hinge, seed=0), fresh(), BATCH)
    assert result["loss"].shape == ()


def test_losses_that_take_weight_are_recognised_through_wrappers():
    logits, masks, weight = jnp.array([[[[2.0]]], [[[-1.0]]]]), jnp.ones((2, 1, 1, 1)), jnp.array([1.0, 0.0])
    for loss in (bce_loss, functools.partial(dice_loss, smooth=0.5), jax.jit(bce_loss), averaged(bce_loss, "image")):
        found = with_context(loss)(logits, masks, weight=weight, patient=None, step=0)
        np.testing.assert_allclose(found, loss(logits[:1], masks[:1]), rtol=1e-6)


def test_a_loss_gets_the_patients_and_the_step_if_it_asks_for_them():
    def asking(logits, masks, *, step, patient):
        return jnp.sum(logits) * 0 + 10 * step + jnp.sum(patient)

    state = fresh().replace(step=jnp.int32(7))
    batch = BATCH | {"patient": np.array([1, 2, 3, 4], np.int32)}
    _, result = compile_train_step(make_mesh(jax.devices()[:1]), loss=asking, seed=0)(state, batch)
    assert float(result["loss"]) == 80
    evaluate = compile_eval_step(make_mesh(jax.devices()[:1]), apply_fn=FLAT.apply, loss=asking)
    assert float(evaluate(tiny.params(FLAT), batch, 3, rows=2)[0]) == 33  # a loss without weight never sees padding


@pytest.mark.parametrize("kind", ["weighted", "plain"])
def test_padding_changes_neither_loss_nor_sums_of_an_evaluation(kind):
    def plain(logits, masks):
        return dice_loss(logits, masks)

    mesh, params = make_mesh(jax.devices()[:1]), tiny.params(FLAT)
    evaluate = compile_eval_step(mesh, apply_fn=FLAT.apply, loss=dice_loss if kind == "weighted" else plain)
    batch = tiny.batch(4, seed=3)
    batch["weight"][3] = 0  # and what lies there is no zeros
    loss, sums = evaluate(params, batch, rows=3)
    expected_loss, expected_sums = evaluate(params, {name: rows[:3] for name, rows in batch.items()}, rows=3)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    for found, expected in zip(sums, expected_sums, strict=True):
        np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
        assert float(found[3]) == 0


def test_an_evaluation_by_weight_compiles_once_for_full_and_padded_batches():
    seen = []

    def counted(logits, masks, *, weight):
        seen.append(1)
        return bce_loss(logits, masks, weight=weight)

    evaluate = compile_eval_step(make_mesh(jax.devices()[:1]), apply_fn=FLAT.apply, loss=counted)
    params, padded = tiny.params(FLAT), BATCH | {"weight": np.array([1, 1, 1, 0], np.float32)}
    assert evaluate(params, BATCH, rows=4)[0] != evaluate(params, padded, rows=3)[0]
    assert len(seen) == 1


def test_evaluation_has_no_dropout_and_counts_at_its_threshold():
    params = tiny.params(NETWORK)
    probabilities = np.asarray(jax.jit(functools.partial(predict_step, apply_fn=NETWORK.apply))(params, BATCH["image"]))
    threshold = float(np.median(probabilities)) + 1e-4
    measure = functools.partial(pixel_sums, threshold=threshold)
    evaluate = jax.jit(functools.partial(eval_step, apply_fn=NETWORK.apply, loss=bce_loss, rows=4, measure=measure))
    loss, sums = evaluate(params, BATCH)
    entropy = np.where(BATCH["mask"] == 1, -np.log(probabilities), -np.log(1 - probabilities))
    assert float(loss) == pytest.approx(float(entropy.mean()), rel=1e-5)
    np.testing.assert_array_equal(sums.tp + sums.fp, (probabilities > threshold).sum((1, 2, 3)))
    assert 0 < int(sums.tp.sum()) < BATCH["mask"].sum()


def test_four_slices_are_learnt_by_heart():
    mesh, model = make_mesh(jax.devices()[:1]), UNet(base_filters=4, num_layers=1, dropout_rate=0.0)
    state = replicate(tiny.state(model, optax.adam(1e-2)), mesh)
    step = compile_train_step(mesh, loss=LOSSES["hybrid"].fn, seed=0)
    losses = []
    for _ in range(60):
        state, result = step(state, BATCH)
        losses.append(float(result["loss"]))
    probabilities = compile_predict_step(mesh, apply_fn=model.apply)(state.params, BATCH["image"])
    predicted, actual = np.asarray(probabilities) > 0.5, BATCH["mask"] == 1
    assert 2 * (predicted & actual).sum() / (predicted.sum() + actual.sum()) > 0.95
    assert losses[-1] < 0.2 * losses[0]
