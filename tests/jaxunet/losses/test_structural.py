"""MS-SSIM at all its scales, and what a centreline says that an overlap does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet.losses import cl_dice_loss, dice_loss, ms_ssim_loss, ssim_loss
from tests.helpers import loss_cases
from tests.oracles import structural as oracle_structural


def smooth_images(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks of a disc that is found a little beside its place."""
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    distance = [np.hypot(rows - shape[1] / 2, columns - shape[2] / 2 - shift) - shape[1] / 4 for shift in (6, 0)]
    noise = np.random.default_rng(seed).normal(size=shape)
    z = noise - distance[0][None, :, :, None] / 3
    return z.astype(np.float32), np.broadcast_to(distance[1][None, :, :, None] < 0, shape).astype(np.float32)


@functools.cache
def compiled(loss, **options):
    return jax.jit(jax.value_and_grad(functools.partial(loss, **options)))


def value(loss, z: np.ndarray, g: np.ndarray, **options) -> float:
    return float(compiled(loss, **options)(z.astype(np.float32), g)[0])


@pytest.mark.parametrize(("shape", "every"), [((2, 176, 187, 1), 0), ((1, 93, 101, 1), 0), ((1, 93, 101, 1), 20)])
def test_ms_ssim_equals_float64_at_five_scales_and_at_four_of_odd_sizes(shape, every):
    """With a corner left out, or so many pixels that the coarse scales have no window left."""
    z, g = smooth_images(shape)
    weight = np.ones((*shape[:3], 1), np.float32)
    weight[(np.s_[:], np.s_[::every], np.s_[::every]) if every else np.s_[:, :5, -60:]] = 0
    found = compiled(ms_ssim_loss)(z, g, weight=weight)
    assert float(found[0]) == pytest.approx(float(oracle_structural.ms_ssim(z, g, weight)), abs=1e-5)
    junk = compiled(ms_ssim_loss)(np.where(weight == 0, np.nan, z).astype(np.float32), g, weight=weight)
    for one, another in zip(found, junk, strict=True):
        np.testing.assert_array_equal(one, another)


def test_one_scale_of_ms_ssim_is_ssim():
    z, g = smooth_images((1, 44, 44, 1))
    expected = value(ssim_loss, z, g)
    assert value(ms_ssim_loss, z, g, powers=(1.0,)) == pytest.approx(expected, abs=1e-6)
    assert abs(value(ms_ssim_loss, z, g) - expected) > 0.01


def test_ms_ssim_of_what_is_anticorrelated_is_below_one_and_has_a_gradient():
    """Elsewhere a negative similarity is cut to zero, and a prediction that is wrong at one scale never learns."""
    z, g = smooth_images((1, 44, 44, 1))
    found, gradient = compiled(ms_ssim_loss)(-z, g)
    assert 0.9 < float(found) <= 1
    assert np.isfinite(gradient).all()
    assert float((np.asarray(gradient) * (2 * g - 1)).sum()) < -1e-6  # towards the mask


def test_ms_ssim_refuses_images_smaller_than_its_window():
    small = np.zeros((1, 10, 32, 1), np.float32)
    with pytest.raises(ValueError, match="11x11 pixels, got 10x32"):
        ms_ssim_loss(small, small)


def crossed_lines() -> np.ndarray:
    g = np.zeros((1, 40, 40, 1), np.float32)
    g[:, 19:22], g[:, :, 19:22] = 1, 1
    return g


def test_centreline_dice_sees_a_gap_that_hardly_changes_the_overlap():
    g = crossed_lines()
    broken, thin = g.copy(), np.zeros_like(g)
    broken[:, 18:23, 5:8] = 0
    thin[:, 20], thin[:, :, 20] = 1, 1
    centreline, overlap = (functools.partial(value, loss, g=g) for loss in (cl_dice_loss, dice_loss))
    g_logits, thin, broken = (1e4 * (2 * mask - 1) for mask in (g, thin, broken))
    assert centreline(g_logits) == centreline(thin) == 0  # the same lines, of another width
    assert overlap(thin) > 0.4
    assert centreline(broken) > 0.01
    assert overlap(broken) < 0.03


def test_centreline_dice_counts_the_pixels_of_the_skeletons():
    g = np.zeros((1, 40, 40, 1), np.float32)
    g[:, 9, :30] = 1
    z = np.where(g == 1, 1e4, -1e4)
    z[:, 9, 10:16] = -1e4  # 24 of 30
    z[:, 3, :4] = 1e4  # 4 where there is nothing
    precision, sensitivity = (24 + 1) / (28 + 1), (24 + 1) / (30 + 1)
    expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    assert value(cl_dice_loss, z, g) == pytest.approx(expected, rel=1e-6)
    unsmoothed = 1 - 2 / (28 / 24 + 30 / 24)
    assert value(cl_dice_loss, z, g, smooth=0.0) == pytest.approx(unsmoothed, rel=1e-6)


def test_centreline_dice_of_an_empty_mask_has_a_gradient_where_the_prediction_has_ridges():
    g = np.zeros((1, 40, 40, 1), np.float32)
    flat, lines = compiled(cl_dice_loss)(g + 1, g), compiled(cl_dice_loss)(4 * crossed_lines() - 2, g)
    assert flat[0] == 0
    assert not np.asarray(flat[1]).any()
    assert lines[0] > 0.5
    assert np.asarray(lines[1]).sum() > 0
    assert value(cl_dice_loss, 4 * crossed_lines() - 2, g, smooth=0.0) == lines[0]  # smoothed by 1 all the same


def test_ssim_of_constants_is_the_luminance_term():
    # Variances are differences of equal numbers here: float32 leaves 1e-7 of them, against a c2 of 9e-4.
    c1 = 1e-4
    for a, b, atol in [(0.01, 0.0, 1e-5), (0.3, 0.8, 1e-4), (0.5, 0.5, 1e-6), (0.9, 1.0, 3e-5), (0.99, 1.0, 3e-6)]:
        z, g = np.full(loss_cases.SHAPE, np.log(a / (1 - a)), np.float32), np.full(loss_cases.SHAPE, b, np.float32)
        expected = 1 - (2 * a * b + c1) / (a * a + b * b + c1)
        assert float(loss_cases.compiled("ssim")(z, g)) == pytest.approx(expected, abs=atol)


def test_ssim_refuses_images_smaller_than_its_window():
    small = jnp.zeros((1, 10, 32, 1))
    with pytest.raises(ValueError, match="11x11 pixels, got 10x32"):
        ssim_loss(small, small)
    loss = jax.jit(functools.partial(ssim_loss, window=7))
    assert float(loss(small - 1e4, small)) == pytest.approx(0, abs=1e-6)
