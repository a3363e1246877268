"""The forms for CPUs: four rows at once, tiny images and strips are as exact as the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet.convolution import plain
from tests.helpers.convolution import draw, without_bias


@pytest.mark.parametrize(("channels", "factor"), [(32, 1.75), (128, 1.75), (512, 2.5)])
def test_four_rows_at_once_lose_about_one_bit_of_exactness_at_most(channels, factor):
    x, kernel, g = (
        draw((1, 16, 16, channels)),
        draw((3, 3, channels, channels), seed=1),
        draw((1, 16, 16, channels), seed=2),
    )

    def distance(convolve, exact):
        value, slopes = jax.vjp(lambda x: convolve(x, kernel), x)
        return [float(np.std(found - right)) for found, right in zip((value, slopes(g)[0]), exact, strict=True)]

    with jax.enable_x64(True):
        exact, slopes = jax.vjp(lambda x: plain.convolve(x, kernel.astype(np.float64)), x.astype(np.float64))
        exact = [np.asarray(exact), np.asarray(slopes(g.astype(np.float64))[0])]
    ours, direct = distance(lambda x, k: without_bias((x,), k), exact), distance(plain.convolve, exact)
    assert not np.array_equal(without_bias((x,), kernel), plain.convolve(x, kernel)), "another form than the plain one"
    assert all(a <= factor * b for a, b in zip(ours, direct, strict=True))


def test_four_rows_at_once_in_bfloat16_are_those_of_one():
    x, kernel = (jnp.asarray(draw(shape), jnp.bfloat16) for shape in ((1, 16, 16, 64), (3, 3, 64, 64)))
    np.testing.assert_array_equal(without_bias((x,), kernel), plain.convolve(x, kernel))


def test_gradients_in_bfloat16_are_rounded_once():
    x, g = (jnp.asarray(draw((2, 64, 8, 16), seed=seed), jnp.bfloat16) for seed in (0, 1))  # eight strips
    kernel = jnp.zeros((3, 3, 16, 16), jnp.bfloat16)
    found = jax.vjp(lambda k: without_bias((x,), k), kernel)[1](g)[0]
    exact = jax.vjp(lambda k: without_bias((x.astype(jnp.float32),), k), kernel.astype(jnp.float32))[1](
        g.astype(jnp.float32)
    )[0]
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)


def test_the_gradient_of_tiny_images_does_not_depend_on_them():
    x, kernel, g = jnp.full((1, 4, 4, 64), jnp.inf), draw((3, 3, 64, 64)), draw((1, 4, 4, 64), seed=1)
    gradient = jax.vjp(lambda x: without_bias((x,), kernel), x)[1](g)[0]
    np.testing.assert_allclose(gradient, jax.vjp(lambda x: plain.convolve(x, kernel), 0 * g)[1](g)[0], atol=1e-4)
