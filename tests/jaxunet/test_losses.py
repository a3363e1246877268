"""Each loss against float64, against documented numbers, and against what can be said of it with pencil and paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunet.losses import LOSSES, averaged, bce_loss, combine, dice_loss, hybrid_loss, jaccard_loss, ssim_loss
from tests.helpers.float64 import sigmoid
from tests.oracles import losses as oracle

SHAPE = (2, 16, 18, 2)


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and masks by name, all of one shape."""
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=2, size=SHAPE)
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    blob = np.broadcast_to(((rows - 8) ** 2 + (columns - 9) ** 2 < 25)[None, :, :, None], SHAPE)
    one = np.zeros(SHAPE)
    one[0, 5, 7, 0] = 1
    mask = rng.random(SHAPE) < 0.3
    error = (rng.permutation(noise.size).reshape(SHAPE) + 0.5) / noise.size  # no two alike: a step crosses no tie
    pairs = {
        "random": (noise, mask),
        "spread": (np.log(error / (1 - error)) * (1 - 2 * mask), mask),
        "blob": (noise + 6 * blob - 3, blob),
        "soft mask": (noise, rng.random(SHAPE)),
        "empty": (noise - 3, np.zeros(SHAPE)),
        "full": (noise, np.ones(SHAPE)),
        "one pixel": (noise, one),
        "confident": (noise + 12 * (2 * blob - 1), blob),
        "perfect": (20.0 * (2 * blob - 1), blob),
        "inverse": (-20.0 * (2 * blob - 1), blob),
    }
    return {name: (z.astype(np.float32), np.asarray(g, np.float32)) for name, (z, g) in pairs.items()}


CASES = cases()
WEIGHTS = {
    "none": None,
    "sample": np.array([0.25, 1.0], np.float32),
    "pixel": np.random.default_rng(1).random((*SHAPE[:3], 1)).astype(np.float32),
}


DOCUMENTED = ("bce", "dice", "jaccard", "ssim", "bce_dice", "bce_jaccard", "hybrid")


@functools.cache
def program(name: str):
    """Value, gradient and values of the images: compiled once for a loss, with a weight a pixel."""

    def run(z, g, weight):
        loss = functools.partial(LOSSES[name].fn, weight=weight)
        return *jax.value_and_grad(loss)(z, g), loss(z, g, reduce="image")

    return jax.jit(run)


def compiled(name: str):
    """The loss as a function `(z, g, weight=None, reduce="batch")`."""

    def run(z, g, weight=None, reduce="batch"):
        weight = np.ones(len(z), np.float32) if weight is None else np.asarray(weight, np.float32)
        if weight.ndim == 1:
            weight = np.broadcast_to(weight[:, None, None, None], (*np.shape(z)[:3], 1))
        value, _, of_images = program(name)(z, np.asarray(g, np.float32), weight)
        return value if reduce == "batch" else of_images

    return run


def gradient(name: str):
    """Its gradient, as a function `(z, g)`."""
    return lambda z, g: program(name)(z, np.asarray(g, np.float32), np.ones((*np.shape(z)[:3], 1), np.float32))[1]


@pytest.mark.parametrize("reduce", ["batch", "image"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_equals_float64(name, reduce):
    rtol, atol = oracle.VALUE_TOLERANCE.get(name, oracle.OTHER_VALUE_TOLERANCE)
    for case, (z, g) in CASES.items():
        value = compiled(name)(z, g, reduce=reduce)
        expected = oracle.ORACLES[name](z, g, None, reduce)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=case)


@pytest.mark.parametrize("kind", ["sample", "pixel"])
@pytest.mark.parametrize("name", LOSSES)
def test_weighted_value_equals_float64(name, kind):
    rtol, atol = oracle.VALUE_TOLERANCE.get(name, oracle.OTHER_VALUE_TOLERANCE)
    weight = WEIGHTS[kind]
    for case in ("random", "blob", "empty"):
        z, g = CASES[case]
        expected = oracle.ORACLES[name](z, g, weight, "batch")
        np.testing.assert_allclose(compiled(name)(z, g, weight=weight), expected, rtol=rtol, atol=atol, err_msg=case)


@pytest.mark.parametrize(
    "name", [name if name in DOCUMENTED else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_a_weight_of_samples_is_that_of_their_pixels_and_none_is_one_everywhere(name):
    z, g = CASES["blob"]
    for weight in (None, WEIGHTS["sample"]):
        of_samples = jax.jit(LOSSES[name].fn)(z, g, weight=weight)
        np.testing.assert_allclose(of_samples, compiled(name)(z, g, weight), rtol=1e-5, atol=1e-6)


@functools.cache
def derivatives(name: str):
    """Value, slope along a direction, gradient and, for smooth losses, its slope: in one compilation, in float64."""

    @jax.jit
    def run(z, g, direction):
        loss = functools.partial(LOSSES[name].fn, masks=g)
        value, slope = jax.jvp(loss, (z,), (direction,))
        if name in oracle.SMOOTH:
            return value, slope, *jax.jvp(jax.grad(loss), (z,), (direction,))
        return value, slope, jax.grad(loss)(z)

    def run_in_float64(*arrays):
        with jax.enable_x64(True):
            results = run(*(np.asarray(array, np.float64) for array in arrays))
            assert {result.dtype for result in results} == {np.dtype(np.float64)}
            return jax.device_get(results)

    return run_in_float64


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_equal_finite_differences_in_float64(name):
    eps, rtol = 1e-5, 1e-7 if name in oracle.SMOOTH else 1e-6
    # Errors are spread where pixels are sorted by them; that makes probabilities alike, which neighbours must not be.
    z, g = CASES["spread" if LOSSES[name].piecewise and not LOSSES[name].positional else "random"]
    rng = np.random.default_rng(2)
    for _ in range(1 if name in oracle.SMOOTH else 20):
        direction = rng.normal(size=SHAPE)
        _, slope, gradient, *curvature = derivatives(name)(z, g, direction)
        ahead, behind = (derivatives(name)(z + sign * eps * direction, g, direction) for sign in (1, -1))
        expected = (ahead[0] - behind[0]) / (2 * eps)
        scale = np.linalg.norm(gradient)  # a direction may happen to be nearly level
        np.testing.assert_allclose(slope, expected, rtol=rtol, atol=rtol * scale)
        np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-9, atol=1e-9 * scale)
        if curvature:
            bend = (ahead[2] - behind[2]) / (2 * eps)
            np.testing.assert_allclose(curvature[0], bend, rtol=1e-6, atol=1e-7 * np.abs(bend).max())


@pytest.mark.parametrize("name", LOSSES)
def test_float32_gradient_equals_float64_gradient(name):
    rtol, atol = oracle.GRADIENT_TOLERANCE.get(name, oracle.OTHER_GRADIENT_TOLERANCE)
    for case in ("random", "blob", "confident", "soft mask", "empty", "one pixel"):
        z, g = CASES[case]
        single = gradient(name)(z, g)
        assert single.dtype == jnp.float32
        double = derivatives(name)(z, g, np.ones(SHAPE))[2]
        rounding = 1e-7 / z.size if case == "soft mask" else 0  # a soft label may be all but the probability
        np.testing.assert_allclose(single, double, rtol=rtol, atol=max(atol, rounding), err_msg=case)


@pytest.mark.parametrize(
    "name", [name if name in DOCUMENTED else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_half_precision_logits_are_computed_in_float32(name):
    z, g = CASES["blob"]
    half = jnp.asarray(z, jnp.bfloat16)
    value = compiled(name)(half, g)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, compiled(name)(half.astype(jnp.float32), g), rtol=1e-5)
    np.testing.assert_allclose(value, oracle.ORACLES[name](z, g, None, "batch"), rtol=1e-2, atol=1e-2)


def test_documented_numbers_of_an_empty_mask():
    shape = (2, 64, 64, 1)
    z, g = np.full(shape, np.log(0.01 / 0.99), np.float32), np.zeros(shape, np.float32)
    assert float(compiled("bce")(z, g)) == pytest.approx(0.0100503, abs=1e-7)
    assert float(compiled("dice")(z, g)) == pytest.approx(0.9879402, abs=1e-6)
    assert float(compiled("ssim")(z, g)) == pytest.approx(0.5, abs=1e-5)
    # The documented Jaccard loss of an empty mask is 1 whatever is predicted; ours is sum(p) / (sum(p) + 1).
    assert float(compiled("jaccard")(z, g)) == pytest.approx(81.92 / 82.92, abs=1e-6)


def test_documented_numbers_of_an_inverse_prediction():
    g = np.asarray(np.random.default_rng(0).random((2, 64, 64, 1)) < 0.1, np.float32)
    z = np.where(g == 1, -100, 100).astype(np.float32)
    assert float(compiled("dice")(z, g)) == pytest.approx(0.9998779, abs=1e-7)
    assert float(compiled("jaccard")(z, g)) == 1
    assert float(compiled("bce")(z, g)) == 100  # where the documented system clips at 16.118
    assert 1 < float(compiled("ssim")(z, g)) < 2  # anticorrelated, so above 1


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_predicted_of_an_empty_mask_costs_nothing(name):
    empty = np.zeros(SHAPE, np.float32)
    if LOSSES[name].perfect == "zero":
        assert float(compiled(name)(empty - 1e4, empty)) == pytest.approx(0, abs=1e-7)
        assert not np.asarray(gradient(name)(empty - 1e4, empty)).any()  # saturated, but no NaN


def test_bce_gradient_is_probability_minus_label_over_count():
    z, g = CASES["random"]
    expected = (sigmoid(z) - g) / z.size
    np.testing.assert_allclose(gradient("bce")(z, g), expected, atol=1e-7)
    np.testing.assert_allclose(gradient("bce")(0 * z, g), (0.5 - g) / z.size, atol=1e-9)  # where branches meet


def test_ssim_of_constants_is_the_luminance_term():
    # Variances are differences of equal numbers here: float32 leaves 1e-7 of them, against a c2 of 9e-4.
    c1 = 1e-4
    for a, b, atol in [(0.01, 0.0, 1e-5), (0.3, 0.8, 1e-4), (0.5, 0.5, 1e-6), (0.9, 1.0, 3e-5), (0.99, 1.0, 3e-6)]:
        z, g = np.full(SHAPE, np.log(a / (1 - a)), np.float32), np.full(SHAPE, b, np.float32)
        expected = 1 - (2 * a * b + c1) / (a * a + b * b + c1)
        assert float(compiled("ssim")(z, g)) == pytest.approx(expected, abs=atol)


def test_overlap_of_identical_and_disjoint_sets():
    g = np.zeros(SHAPE, np.float32)
    g[:, :4] = 1
    identical, disjoint = 1e4 * (2 * g - 1), -1e4 * (2 * g - 1)
    size, both = g.sum(), g.size
    assert float(compiled("dice")(identical, g)) == 0
    assert float(compiled("jaccard")(identical, g)) == 0
    assert float(compiled("dice")(disjoint, g)) == pytest.approx(1 - 1 / (both + 1), rel=1e-6)
    assert float(compiled("jaccard")(disjoint, g)) == 1
    half = 1e4 * (2 * np.roll(g, 2, axis=1) - 1)  # half of each set is common
    assert float(compiled("jaccard")(half, g)) == pytest.approx(2 / 3, rel=1e-6)
    assert float(dice_loss(half, g, smooth=0.0)) == pytest.approx(1 / 2, rel=1e-6)
    assert float(dice_loss(half, g)) == pytest.approx(1 - (size + 1) / (2 * size + 1), rel=1e-6)


def test_dice_and_jaccard_are_one_function_of_each_other():
    for case in ("random", "blob", "one pixel", "soft mask"):
        z, g = CASES[case]
        dice, jaccard = 1 - dice_loss(z, g, smooth=1.0), 1 - jaccard_loss(z, g, smooth=0.5)
        assert float(dice) == pytest.approx(float(2 * jaccard / (1 + jaccard)), abs=1e-6)
        assert 1 - jaccard_loss(z, g) <= 1 - dice_loss(z, g, smooth=0.0) + 1e-6


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if entry.symmetric])
def test_masks_and_probabilities_may_change_places(name):
    z1, z2 = CASES["random"][0], CASES["blob"][0]
    p1, p2 = (sigmoid(z).astype(np.float32) for z in (z1, z2))
    np.testing.assert_allclose(compiled(name)(z1, p2), compiled(name)(z2, p1), atol=1e-5)


def test_bce_is_symmetric_in_the_two_classes():
    z, g = CASES["soft mask"]
    np.testing.assert_allclose(compiled("bce")(z, g), compiled("bce")(-z, 1 - g), rtol=1e-6)


@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_batch_loss_is_not_the_mean_of_its_parts(name):
    # Nobody may "simplify" a loss over the global batch to a mean over devices.
    g = np.zeros((2, 8, 8, 1), np.float32)
    g[0, :4] = 1
    z = np.stack([4 * g[0] - 2, np.full((8, 8, 1), -1)]).astype(np.float32)
    per_image = compiled(name)(z, g, reduce="image")
    assert abs(float(compiled(name)(z, g)) - float(per_image.mean())) > 0.05


def test_unsmoothed_dice_of_nothing_at_all_is_defined():
    loss = functools.partial(dice_loss, smooth=0.0)
    with jax.debug_nans(True):
        value, slope = jax.jit(jax.value_and_grad(loss))(np.full(SHAPE, -1e4, np.float32), np.zeros(SHAPE, np.float32))
    assert float(value) == 1
    assert not np.asarray(slope).any()


def test_jaccard_of_an_image_without_tumour_is_smoothed_by_one():
    z, g = CASES["one pixel"]
    p = sigmoid(z)
    expected = [1 - p[0, 5, 7, 0] / (p[0].sum() + 1 - p[0, 5, 7, 0]), p[1].sum() / (p[1].sum() + 1)]
    np.testing.assert_allclose(compiled("jaccard")(z, g, reduce="image"), expected, rtol=2e-6)


def test_jaccard_treats_a_batch_whose_only_tumour_has_no_weight_as_empty():
    z, g = CASES["one pixel"]
    p = sigmoid(z[1]).sum()
    np.testing.assert_allclose(compiled("jaccard")(z, g, weight=np.array([0.0, 1.0])), p / (p + 1), rtol=2e-6)


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("level", [-12.0, -4.0, 0.0, 4.0])
def test_hybrid_pushes_every_prediction_on_a_batch_without_tumour_down(level, spread):
    # The documented Jaccard has gradient zero there, and NaN once the sigmoid underflows.
    z = (level + spread * CASES["random"][0]).astype(np.float32)
    assert (gradient("hybrid")(z, 0 * z) > 0).all()
    assert (gradient("jaccard")(z, 0 * z) > 0).all()


def test_compound_losses_are_the_documented_means():
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


def test_an_average_counts_the_groups_that_count():
    z, g = (np.concatenate([a, a[:1] * 0.5, a[:1] * 0.25]) for a in CASES["blob"])
    g[1] = 0
    images = np.asarray(dice_loss(z, g, reduce="image"))
    mean = averaged(dice_loss, "image")
    assert float(mean(z, g)) == pytest.approx(images.mean(), rel=1e-6)
    assert float(mean(z, g, empty="skip")) == pytest.approx(np.delete(images, 1).mean(), rel=1e-6)
    assert float(mean(z, g, weight=np.array([1, 1, 1, 0]))) == pytest.approx(images[:3].mean(), rel=1e-6)
    assert float(mean(z, g, weight=np.zeros(4))) == 0
    patients = [float(dice_loss(z[rows], g[rows], smooth=2.0)) for rows in ([0, 3], [1, 2])]
    found = averaged(dice_loss, "patient")(z, g, patient=np.array([9, 4, 4, 9]), smooth=2.0)
    assert float(found) == pytest.approx(np.mean(patients), rel=1e-6)
    assert averaged(dice_loss, "batch") is dice_loss


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


def test_ssim_refuses_images_smaller_than_its_window():
    small = jnp.zeros((1, 10, 32, 1))
    with pytest.raises(ValueError, match="11x11 pixels, got 10x32"):
        ssim_loss(small, small)
    loss = jax.jit(functools.partial(ssim_loss, window=7))
    assert float(loss(small - 1e4, small)) == pytest.approx(0, abs=1e-6)
