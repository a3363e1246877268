"""Each loss against float64, and against numbers of the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet.losses import LOSSES
from tests.helpers.float64 import sigmoid
from tests.helpers.loss_cases import CASES, SHAPE, compiled, gradient
from tests.oracles import losses as oracle

WEIGHTS = {
    "none": None,
    "sample": np.array([0.25, 1.0], np.float32),
    "pixel": np.random.default_rng(1).random((*SHAPE[:3], 1)).astype(np.float32),
}


OF_THE_REFERENCE = ("bce", "dice", "jaccard", "ssim", "bce_dice", "bce_jaccard", "hybrid")


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
    "name", [name if name in OF_THE_REFERENCE else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
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
    "name", [name if name in OF_THE_REFERENCE else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_half_precision_logits_are_computed_in_float32(name):
    z, g = CASES["blob"]
    half = jnp.asarray(z, jnp.bfloat16)
    value = compiled(name)(half, g)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, compiled(name)(half.astype(jnp.float32), g), rtol=1e-5)
    np.testing.assert_allclose(value, oracle.ORACLES[name](z, g, None, "batch"), rtol=1e-2, atol=1e-2)


def test_reference_numbers_of_an_empty_mask():
    shape = (2, 64, 64, 1)
    z, g = np.full(shape, np.log(0.01 / 0.99), np.float32), np.zeros(shape, np.float32)
    assert float(compiled("bce")(z, g)) == pytest.approx(0.0100503, abs=1e-7)
    assert float(compiled("dice")(z, g)) == pytest.approx(0.9879402, abs=1e-6)
    assert float(compiled("ssim")(z, g)) == pytest.approx(0.5, abs=1e-5)
    # The reference's Jaccard loss of an empty mask is 1 for any prediction; here it is sum(p) / (sum(p) + 1).
    assert float(compiled("jaccard")(z, g)) == pytest.approx(81.92 / 82.92, abs=1e-6)


def test_reference_numbers_of_an_inverse_prediction():
    g = np.asarray(np.random.default_rng(0).random((2, 64, 64, 1)) < 0.1, np.float32)
    z = np.where(g == 1, -100, 100).astype(np.float32)
    assert float(compiled("dice")(z, g)) == pytest.approx(0.9998779, abs=1e-7)
    assert float(compiled("jaccard")(z, g)) == 1
    assert float(compiled("bce")(z, g)) == 100  # where the reference clips at 16.118
    assert 1 < float(compiled("ssim")(z, g)) < 2  # anticorrelated, so above 1


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_predicted_of_an_empty_mask_costs_nothing(name):
    empty = np.zeros(SHAPE, np.float32)
    if LOSSES[name].perfect == "zero":
        assert float(compiled(name)(empty - 1e4, empty)) == pytest.approx(0, abs=1e-7)
        assert not np.asarray(gradient(name)(empty - 1e4, empty)).any()  # saturated, but no NaN


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if entry.symmetric])
def test_masks_and_probabilities_may_change_places(name):
    z1, z2 = CASES["random"][0], CASES["blob"][0]
    p1, p2 = (sigmoid(z).astype(np.float32) for z in (z1, z2))
    np.testing.assert_allclose(compiled(name)(z1, p2), compiled(name)(z2, p1), atol=1e-5)
