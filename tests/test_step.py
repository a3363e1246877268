"""A step does what it says: one Adam update, nothing on a value that is not finite, dropout from (seed, step) alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunet import UNet, eval_step, init_state, metrics, predict_step, train_step
from jaxunet.losses import LOSSES, bce_loss, dice_loss
from jaxunet.sharding import make_mesh, replicate
from jaxunet.step import compile_eval_step, compile_predict_step, compile_train_step, with_weight

IMAGE = (16, 16, 3)
NAN_LOSS, NAN_GRADIENT = 5.0, 7.0  # weights that make `fragile_loss` fail

traces: list[int] = []


def draw_batch(rows: int = 4, seed: int = 0, size: int = 16) -> dict[str, np.ndarray]:
    """Bright discs in noise; the mask is the disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.uniform(0.3, 0.7, (rows, 2)) * size, rng.uniform(0.15, 0.25, rows) * size
    mask = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2 < radii[:, None, None] ** 2
    image = rng.integers(0, 100, (rows, size, size, 3)) + 120 * mask[..., None]
    return {
        "image": image.astype(np.uint8),
        "mask": mask[..., None].astype(np.uint8),
        "weight": np.ones(rows, np.float32),
        "patient": np.zeros(rows, np.int32),
        "slice": np.zeros(rows, np.int32),
    }


def fragile_loss(logits, masks, *, weight):
    """BCE that turns into NaN, or whose gradient does, at the word of the weights. Counts its traces."""
    traces.append(1)
    broken = jnp.where(weight[0] == NAN_LOSS, jnp.nan, 0)
    steep = jnp.sqrt(jnp.where(weight[0] == NAN_GRADIENT, 0.0, 1.0) * jnp.sum(logits**2))
    return bce_loss(logits, masks) + broken + 1e-3 * steep


@pytest.fixture(scope="module")
def fresh():
    """Builds the same state again and again, since a step consumes its own."""
    model = UNet(base_filters=2, num_layers=1, dropout_rate=0.4)
    tx = optax.adam(1e-3, eps=1e-7)
    state = jax.device_get(init_state(model, tx, seed=0, image_shape=IMAGE))
    return lambda: jax.tree.map(jnp.array, state)


@pytest.fixture(scope="module")
def step():
    return jax.jit(train_step, static_argnames="loss", donate_argnums=0)


@pytest.fixture(scope="module")
def batch():
    return draw_batch()


def test_initial_state_is_at_step_zero_and_a_function_of_the_seed(fresh):
    state = fresh()
    assert (state.step.dtype, int(state.step)) == (jnp.int32, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    model = UNet(base_filters=2, num_layers=1)
    kernels = [
        init_state(model, optax.sgd(1), seed=seed, image_shape=IMAGE).params["encoder0_conv1"]["kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()


def test_two_steps_are_two_updates_of_adam(fresh, step, batch):
    state, model = fresh(), UNet(base_filters=2, num_layers=1, dropout_rate=0.0)
    state = state.replace(apply_fn=model.apply)

    @jax.jit
    @jax.value_and_grad
    def gradient(params):
        return dice_loss(model.apply({"params": params}, batch["image"]), jnp.asarray(batch["mask"]))

    params, first, second, losses = jax.tree.map(lambda p: np.float64(p), state.params), 0.0, 0.0, []
    for number in (1, 2):
        value, grads = gradient(jax.tree.map(jnp.float32, params))
        losses.append(float(value))
        grads = jax.tree.map(np.float64, grads)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first or jax.tree.map(np.zeros_like, grads), grads)
        second = jax.tree.map(
            lambda v, g: 0.999 * v + 0.001 * g**2, second or jax.tree.map(np.zeros_like, grads), grads
        )
        params = jax.tree.map(
            lambda p, m, v, n=number: p - 1e-3 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-7),
            params,
            first,
            second,
        )
    for number in (1, 2):
        state, result = step(state, batch, loss=dice_loss, seed=0)
        assert float(result["loss"]) == pytest.approx(losses[number - 1], rel=1e-6)
        assert bool(result["finite"])
    assert float(result["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert int(state.step) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.params, params)


def test_sums_of_a_training_step_count_every_pixel_of_every_image(fresh, step, batch):
    _, result = step(fresh(), batch, loss=fragile_loss, seed=0)
    sums = result["sums"]
    np.testing.assert_array_equal(sums.tp + sums.fn, batch["mask"].sum((1, 2, 3)))
    np.testing.assert_array_equal(sums.tp + sums.fn + sums.fp + sums.tn, [256] * 4)


@pytest.mark.parametrize(("poison", "broken"), [(NAN_LOSS, "loss"), (NAN_GRADIENT, "grad_norm")])
def test_loss_or_gradient_that_is_not_finite_leaves_the_state_as_it_was_to_the_bit(fresh, step, batch, poison, broken):
    state, _ = step(fresh(), batch, loss=fragile_loss, seed=0)  # Adam's moments are no longer zero
    before = jax.device_get(state)
    weight = batch["weight"].copy()
    weight[0] = poison
    state, result = step(state, {**batch, "weight": weight}, loss=fragile_loss, seed=0)
    assert not bool(result["finite"])
    assert not np.isfinite(result[broken])
    if broken == "grad_norm":
        assert np.isfinite(result["loss"])
    assert len(jax.tree.leaves(before)) > 20
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), jax.device_get(state), before)
    state, result = step(state, batch, loss=fragile_loss, seed=0)  # and training goes on
    assert bool(result["finite"])
    assert int(state.step) == int(before.step) + 1


def test_dropout_depends_on_seed_and_step_only(fresh, step, batch):
    def loss(state, seed):
        return float(step(state, batch, loss=fragile_loss, seed=seed)[1]["loss"])

    assert loss(fresh(), 1) == loss(fresh(), 1)
    assert loss(fresh(), 1) != loss(fresh(), 2)
    later = jnp.int32(5)
    assert loss(fresh(), 1) != loss(fresh().replace(step=later), 1)
    with_history, _ = step(fresh(), batch, loss=fragile_loss, seed=1)
    arrived = fresh().replace(step=later, opt_state=with_history.opt_state)
    assert loss(arrived, 1) == loss(fresh().replace(step=later), 1)


def test_the_loss_is_traced_once_in_many_steps_and_the_state_is_donated(fresh, batch):
    compiled = compile_train_step(make_mesh(jax.devices()[:1]), loss=fragile_loss, seed=0)
    state = replicate(fresh(), make_mesh(jax.devices()[:1]))
    traces.clear()
    for _ in range(4):
        before = state
        state, _ = compiled(state, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert len(traces) == 1
    assert int(state.step) == 4


def test_plain_loss_of_logits_and_masks_is_accepted_and_gets_float_masks(fresh, step, batch):
    def hinge(logits, masks):
        return jnp.mean(jnp.maximum(0, 1 - (2 * masks - 1) * logits))  # 255 instead of -1 were masks still uint8

    def weighted_hinge(logits, masks, *, weight):
        assert weight is not None
        return hinge(logits, masks.astype(jnp.float32))

    _, plain = step(fresh(), batch, loss=hinge, seed=0)
    _, weighted = step(fresh(), batch, loss=weighted_hinge, seed=0)
    assert float(plain["loss"]) == float(weighted["loss"])
    assert float(plain["grad_norm"]) == pytest.approx(float(weighted["grad_norm"]), rel=1e-6)


def test_losses_that_take_weight_are_recognised_through_wrappers():
    wrapped = functools.partial(dice_loss, smooth=0.5)
    for loss in (bce_loss, wrapped, jax.jit(bce_loss), LOSSES["hybrid"].fn):
        assert with_weight(loss) is loss
    assert with_weight(lambda logits, masks: logits.shape[0], rows=2)(jnp.zeros(5), jnp.zeros(5), weight=None) == 2


@pytest.mark.parametrize("kind", ["weighted", "plain"])
def test_padding_changes_neither_loss_nor_sums_of_an_evaluation(fresh, kind):
    def plain(logits, masks):
        return dice_loss(logits, masks)

    state, model = fresh(), UNet(base_filters=2, num_layers=1)
    evaluate = compile_eval_step(
        make_mesh(jax.devices()[:1]), apply_fn=model.apply, loss=dice_loss if kind == "weighted" else plain
    )
    batch = draw_batch(4, seed=3)
    batch["weight"][3] = 0  # and what lies there is no zeros
    loss, sums = evaluate(state.params, batch, rows=3)
    expected_loss, expected_sums = evaluate(state.params, {k: v[:3] for k, v in batch.items()}, rows=3)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    for found, expected in zip(sums, expected_sums, strict=True):
        np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
        assert float(found[3]) == 0


def test_evaluation_has_no_dropout_and_counts_at_its_threshold(fresh):
    state, batch = fresh(), draw_batch(2)
    model = UNet(base_filters=2, num_layers=1, dropout_rate=0.4)
    probabilities = np.asarray(predict_step(state.params, batch["image"], apply_fn=model.apply))
    threshold = float(np.median(probabilities))
    loss, sums = eval_step(state.params, batch, apply_fn=model.apply, loss=bce_loss, rows=2, threshold=threshold + 1e-4)
    logits = model.apply({"params": state.params}, batch["image"])
    assert float(loss) == pytest.approx(float(bce_loss(logits, batch["mask"])), rel=1e-6)
    assert (np.asarray(sums.tp + sums.fp) == (probabilities > threshold + 1e-4).sum((1, 2, 3))).all()
    np.testing.assert_allclose(probabilities, jax.nn.sigmoid(logits), rtol=1e-6)


def test_four_slices_are_learnt_by_heart():
    mesh = make_mesh(jax.devices()[:1])
    model = UNet(base_filters=4, num_layers=2, dropout_rate=0.0)
    batch = draw_batch(4, size=32)
    state = replicate(init_state(model, optax.adam(1e-2), seed=0, image_shape=(32, 32, 3)), mesh)
    step = compile_train_step(mesh, loss=LOSSES["hybrid"].fn, seed=0)
    losses = []
    for _ in range(60):
        state, result = step(state, batch)
        losses.append(result["loss"])
    probabilities = compile_predict_step(mesh, apply_fn=model.apply)(state.params, batch["image"])
    predicted, actual = np.asarray(probabilities) > 0.5, batch["mask"] == 1
    dice = 2 * (predicted & actual).sum() / (predicted.sum() + actual.sum())
    assert dice > 0.95
    assert losses[-1] < 0.2 * losses[0]
    assert dice == pytest.approx(float(metrics.dice_score(metrics.add(result["sums"]))), abs=0.02)
