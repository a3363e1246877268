"""Sums are the sums of their terms, logarithms have the right slope, and a schedule compiles once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunet import UNet
from jaxunet.losses import (
    LOSSES,
    bce_loss,
    boundary_loss,
    combine,
    dice_boundary_loss,
    dice_loss,
    exp_log_loss,
    focal_loss,
    hybrid_loss,
    ssim_loss,
)
from jaxunet.sharding import make_mesh, replicate
from jaxunet.step import compile_train_step
from tests.helpers import tiny
from tests.helpers.float64 import sigmoid
from tests.helpers.loss_cases import CASES, compiled, gradient

SHAPE = (2, 16, 18, 1)


def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    g = np.zeros(SHAPE, np.float32)
    g[:, 5:11, 4:12] = 1
    return (rng.normal(scale=2, size=SHAPE) + 2 * g - 1).astype(np.float32), g


TERMS = {
    "bce_dice": {"bce": 1 / 2, "dice": 1 / 2},
    "bce_jaccard": {"bce": 1 / 2, "jaccard": 1 / 2},
    "combo": {"bce": 1 / 4, "dice": 1 / 2},
    "dice_topk": {"dice": 1, "topk_bce": 1},
    "jaccard_topk": {"jaccard": 1, "topk_bce": 1},
    "focal_jaccard": {"focal": 1, "jaccard": 1},
    "hybrid": {"bce": 1 / 3, "ssim": 1 / 3, "jaccard": 1 / 3},
    "unet3plus": {"focal": 1, "ms_ssim": 1, "jaccard": 1},
    "dice_cl_dice": {"dice": 1 / 2, "cl_dice": 1 / 2},
    "dice_boundary": {"dice": 0.99, "boundary": 0.01},
}


@functools.cache
def values() -> dict[str, np.ndarray]:
    """Every loss that the sums are made of, and the sums, of one example in one compilation."""
    z, g = example()
    names = TERMS.keys() | {name for terms in TERMS.values() for name in terms}
    return jax.jit(lambda: {name: LOSSES[name].fn(z, g, reduce="image") for name in names})()


@pytest.mark.parametrize("name", TERMS)
def test_a_sum_is_the_sum_of_its_terms(name):
    expected = sum(factor * values()[term] for term, factor in TERMS[name].items())
    np.testing.assert_allclose(values()[name], expected, rtol=1e-6)


def test_options_reach_the_terms():
    z, g = example()
    dice, focal = dice_loss(z, g), focal_loss(z, g, alpha=0.4, gamma=1.5)
    found = LOSSES["dice_focal"].fn(z, g, alpha=0.4, gamma=1.5, weights=(1.0, 0.5))
    assert float(found) == pytest.approx(float(dice + 0.5 * focal), rel=1e-6)
    for name, option, value in (("combo", "beta", 0.9), ("dice_topk", "k", 50.0), ("unified_focal", "delta", 0.9)):
        assert abs(float(LOSSES[name].fn(z, g, **{option: value})) - float(LOSSES[name].fn(z, g))) > 0.01


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if "weights" in entry.options])
def test_another_number_of_weights_is_refused(name):
    weights = (0.25,) * (len(LOSSES[name].options["weights"]) + 1)
    with pytest.raises(ValueError, match=f"{len(weights) - 1} terms but {len(weights)} weights"):
        LOSSES[name].fn(*example(), weights=weights)


def test_the_class_weights_of_combo_are_those_of_the_formula():
    z, g = example()
    p, alpha, beta = sigmoid(z), 0.3, 0.8
    entropy = -np.mean(beta * g * np.log(p) + (1 - beta) * (1 - g) * np.log(1 - p))
    expected = alpha * entropy + (1 - alpha) * float(dice_loss(z, g))
    assert float(LOSSES["combo"].fn(z, g, alpha=alpha, beta=beta)) == pytest.approx(expected, rel=1e-5)


def test_unified_focal_of_two_pixels_is_what_the_paper_writes():
    """One true and one false pixel, each with probability 0.3: every term by hand."""
    g = np.array([1.0, 0.0], np.float32).reshape(1, 1, 2, 1)
    z = np.full_like(g, np.log(0.3 / 0.7))
    focal = (0.6 * -np.log(0.3) + 0.4 * np.sqrt(0.3) * -np.log(0.7)) / 2
    tumour = 1 - 0.3 / (0.3 + 0.6 * 0.7 + 0.4 * 0.3)
    background = 1 - 0.7 / (0.7 + 0.6 * 0.3 + 0.4 * 0.7)
    expected = 0.5 * focal + 0.5 * (np.sqrt(tumour) + background) / 2
    assert float(LOSSES["unified_focal"].fn(z, g)) == pytest.approx(expected, rel=1e-6)


@functools.cache
def slope_of_exp_log(weights: tuple[float, float]):
    return jax.jit(jax.grad(functools.partial(exp_log_loss, weights=weights)))


@pytest.mark.parametrize("level", [1.0, 8.0, 20.0, 60.0])
def test_exp_log_keeps_its_slope_where_a_prediction_is_certain(level):
    """For a certain pixel `(-log p)^0.3` is e^(-0.3 z); from probabilities, float32 has no slope from z = 17 on."""
    g = example()[1]
    z = (level * (2 * g - 1)).astype(np.float32)
    slope, of_dice = (slope_of_exp_log(weights)(z, g) for weights in ((0.0, 1.0), (1.0, 0.0)))
    f = float(g.mean())
    surprisal = np.log1p(np.exp(-np.float64(level)))
    expected = 0.3 * surprisal**-0.7 * sigmoid(np.array(-level)) / g.size
    np.testing.assert_allclose(slope[g == 1], -expected / np.sqrt(f), rtol=1e-4)
    np.testing.assert_allclose(slope[g == 0], expected / np.sqrt(1 - f), rtol=1e-4)
    assert np.isfinite(of_dice).all()
    assert (of_dice * (1 - 2 * g) > 0).all()


def test_exp_log_takes_the_frequency_of_the_data_set():
    z, g = example()
    f = float(g.mean())
    plain, told, rarer = (float(exp_log_loss(z, g, frequency=x)) for x in (None, f, f / 4))
    assert told == pytest.approx(plain, rel=1e-6)
    assert rarer > plain + 0.01
    empty = np.zeros_like(g)
    assert float(exp_log_loss(z, empty)) == pytest.approx(float(exp_log_loss(z, empty, frequency=1e-12)), rel=1e-5)


def test_the_factor_of_the_boundary_may_be_traced():
    z, g = example()
    loss = jax.jit(lambda alpha: dice_boundary_loss(z, g, alpha=alpha))
    dice, boundary = float(dice_loss(z, g)), float(boundary_loss(z, g))
    for alpha in (0.0, 0.01, 1.0):
        assert float(loss(alpha)) == pytest.approx((1 - alpha) * dice + alpha * boundary, rel=1e-5)
    assert loss._cache_size() == 1


def test_a_boundary_schedule_trains_with_one_compilation():
    alpha = optax.linear_schedule(0.01, 1.0, 4)
    loss = combine([dice_loss, boundary_loss], [lambda step: 1 - alpha(step), alpha])
    network = UNet(base_filters=2, num_layers=0)
    mesh, batch = make_mesh(jax.devices()[:2]), tiny.batch()
    train_step = compile_train_step(mesh, loss=loss, seed=0)
    state = replicate(tiny.state(network, optax.adam(1e-2)), mesh)

    @jax.jit
    def terms(params):
        logits, masks = network.apply({"params": params}, batch["image"]), jnp.asarray(batch["mask"])
        return dice_loss(logits, masks), boundary_loss(logits, masks)

    for share in (0.01, 0.2575, 0.505, 0.7525, 1.0, 1.0):
        dice, boundary = map(float, terms(state.params))
        state, metrics = train_step(state, batch)
        assert float(metrics["loss"]) == pytest.approx((1 - share) * dice + share * boundary, rel=1e-4)
    assert train_step._cache_size() == 1


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("level", [-12.0, -4.0, 0.0, 4.0])
def test_hybrid_pushes_every_prediction_on_a_batch_without_tumour_down(level, spread):
    # The reference's Jaccard has gradient zero there, and NaN once the sigmoid underflows.
    z = (level + spread * CASES["random"][0]).astype(np.float32)
    assert (gradient("hybrid")(z, 0 * z) > 0).all()
    assert (gradient("jaccard")(z, 0 * z) > 0).all()


def test_compound_losses_are_the_means_of_the_reference():
    z, g = CASES["blob"]
    bce, dice, jaccard, ssim = (float(compiled(name)(z, g)) for name in ("bce", "dice", "jaccard", "ssim"))
    assert float(compiled("bce_dice")(z, g)) == pytest.approx((bce + dice) / 2, rel=1e-6)
    assert float(compiled("bce_jaccard")(z, g)) == pytest.approx((bce + jaccard) / 2, rel=1e-6)
    assert float(compiled("hybrid")(z, g)) == pytest.approx((bce + ssim + jaccard) / 3, rel=1e-6)
    assert float(hybrid_loss(z, g, weights=(1, 1, 1))) == pytest.approx(bce + ssim + jaccard, rel=1e-6)


def test_combine_is_the_weighted_sum_and_itself_a_loss():
    z, g = CASES["blob"]
    loss = combine([bce_loss, combine([dice_loss, ssim_loss], [1, 0.5])], [0.3, 2])
    for reduce in ("batch", "image"):
        bce, dice, ssim = (compiled(name)(z, g, reduce=reduce) for name in ("bce", "dice", "ssim"))
        value = loss(z, g, weight=np.ones(2), reduce=reduce)
        np.testing.assert_allclose(value, 0.3 * bce + 2 * (dice + 0.5 * ssim), rtol=1e-6)


def test_a_schedule_changes_a_weight_without_another_compilation():
    z, g = CASES["blob"]
    loss = combine([bce_loss, combine([dice_loss], [lambda step: 2.0 * step])], [optax.linear_schedule(0, 1, 10), 1])
    jitted = jax.jit(lambda step: loss(z, g, step=step))
    bce, dice = float(bce_loss(z, g)), float(dice_loss(z, g))
    for step in (0, 5, 10, 20):
        assert float(jitted(step)) == pytest.approx(min(step / 10, 1) * bce + 2 * step * dice, rel=1e-5)
    assert jitted._cache_size() == 1
    with pytest.raises(ValueError, match="pass step="):
        loss(z, g)


def test_combine_refuses_another_number_of_weights():
    with pytest.raises(ValueError, match="2 terms but 3 weights"):
        combine([bce_loss, dice_loss], [1, 1, 1])
    with pytest.raises(ValueError, match="3 terms but 2 weights"):
        hybrid_loss(*CASES["blob"], weights=(0.5, 0.5))
