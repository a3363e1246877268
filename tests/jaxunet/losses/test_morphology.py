"""Erosion, dilation and skeleton against SciPy, and where a tie sends its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.ndimage import maximum_filter, minimum_filter

from jaxunet.losses.morphology import dilate, erode, skeleton
from tests.oracles import structural as oracle_structural

CROSS = oracle_structural.CROSS[None, :, :, None]
SQUARE = np.ones((1, 3, 3, 1), bool)


@pytest.mark.parametrize("shape", [(2, 7, 9, 3), (1, 1, 1, 1), (2, 1, 5, 1)])
@pytest.mark.parametrize("outside", [0.0, 0.4, np.inf])
def test_they_are_the_minimum_and_maximum_of_the_neighbours(shape, outside):
    images = np.random.default_rng(0).random(shape).astype(np.float32)
    images.flat[0] = 0.5
    eroded = minimum_filter(images, footprint=CROSS, mode="constant", cval=outside)
    dilated = maximum_filter(images, footprint=SQUARE, mode="constant", cval=-outside)
    np.testing.assert_array_equal(erode(images, outside=outside), eroded)
    np.testing.assert_array_equal(dilate(images, outside=-outside), dilated)


def test_their_gradient_is_that_of_a_windowed_minimum_where_nothing_ties():
    rng = np.random.default_rng(1)
    images, cotangent = rng.random((2, 11, 9, 2)), rng.normal(size=(2, 11, 9, 2))

    def windowed(reduce, start, window):
        return lambda x: lax.reduce_window(x, start, reduce, window, (1, 1, 1, 1), "SAME")

    def eroded(x):
        return jnp.minimum(*(windowed(lax.min, jnp.inf, window)(x) for window in ((1, 3, 1, 1), (1, 1, 3, 1))))

    pairs = [(functools.partial(erode, outside=jnp.inf), eroded)]
    pairs += [(functools.partial(dilate, outside=-jnp.inf), windowed(lax.max, -jnp.inf, (1, 3, 3, 1)))]
    for ours, plain in pairs:
        np.testing.assert_allclose(
            *(jax.vjp(f, images.astype(np.float32))[1](cotangent.astype(np.float32))[0] for f in (ours, plain)),
            atol=1e-6,
        )


def test_a_tie_keeps_its_gradient_in_place():
    flat = np.full((1, 5, 6, 1), 0.5, np.float32)
    cotangent = np.random.default_rng(2).normal(size=flat.shape).astype(np.float32)
    for f in (functools.partial(erode, outside=jnp.inf), functools.partial(dilate, outside=-jnp.inf)):
        np.testing.assert_array_equal(jax.vjp(f, flat)[1](cotangent)[0], cotangent)


def test_among_equal_neighbours_the_first_gets_the_gradient():
    image = np.ones((1, 3, 3, 1), np.float32)
    above, below, left, right = (0, 1), (2, 1), (1, 0), (1, 2)
    for low in ([above, below, left, right], [below, left, right], [left, right], [right]):
        lowered = image.copy()
        for place in low:
            lowered[0, *place, 0] = 0
        slope = jax.grad(lambda x: erode(x, outside=jnp.inf)[0, 1, 1, 0])(lowered)
        assert [tuple(place) for place in np.argwhere(slope[0, :, :, 0])] == [low[0]]
        assert slope.sum() == 1


def test_a_skeleton_is_that_of_the_formula_and_thins_what_is_wide():
    image = np.random.default_rng(3).random((1, 24, 30, 2)).astype(np.float32)
    expected = [oracle_structural.skeleton(image[0, :, :, k].astype(np.float64)) for k in range(2)]
    np.testing.assert_allclose(skeleton(image, iterations=3)[0], np.stack(expected, -1), atol=1e-6)
    line, bar = np.zeros((2, 1, 15, 40, 1), np.float32)
    line[:, 7], bar[:, 5:10] = 1, 1
    np.testing.assert_array_equal(skeleton(line, iterations=3), line)
    np.testing.assert_array_equal(skeleton(bar, iterations=3), line)  # the border of the image ends no region
    assert not skeleton(bar, iterations=1).any()  # needs two erosions
    assert not skeleton(np.ones_like(bar), iterations=3).any()
