"""The convolution has the values and gradients of Flax's, in every form that a CPU uses, and of the plain form."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet import convolution
from jaxunet.convolution import conv3x3
from jaxunet.layers import Conv3x3
from tests.helpers.convolution import check_second_derivatives, draw, without_bias


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((2, 8, 8, 64), 80),
        ((2, 4, 6, 128), 64),
        ((1, 16, 12, 64), 72),  # four rows at once
        ((1, 10, 12, 64), 64),  # no whole number of fours
        ((2, 8, 8, 5), 7),
        ((2, 8, 8, 3), 7),  # two pixels at once
        ((2, 6, 5, 3), 4),  # an odd number of pixels
        ((2, 2, 2, 64), 64),
        ((2, 16, 6, 32), 40),
        ((2, 14, 20, 16), 16),  # nine products for each strip
        ((2, 13, 20, 32), 32),  # no whole number of strips
        ((1, 6, 2048, 16), 16),  # strips of the least height
    ],
)
def test_convolution_is_flax_conv_in_value_and_gradient(shape, features):
    x, kernel = draw(shape), draw((3, 3, shape[-1], features), seed=1)
    bias, cotangent = draw((features,), seed=2), draw((*shape[:3], features), seed=3)

    def value(layer):
        def run(params, x):
            out = layer.apply({"params": params}, x)
            return jnp.sum(out * cotangent), out

        return jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))

    params = {"kernel": kernel, "bias": bias}
    ours, plain = value(Conv3x3(features))(params, x), value(nn.Conv(features, (3, 3)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(b).max()), ours, plain)


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 64), (1, 4, 4, 64), (1, 8, 6, 3), (1, 16, 6, 16), (1, 8, 10, 32), (1, 10, 8, 64)]
)
def test_convolution_and_relu_have_second_derivatives(shape, inputs):
    check_second_derivatives(shape, inputs)


def test_convolution_in_float64_is_not_rounded():
    with jax.enable_x64(True):
        x, kernel = draw((1, 16, 6, 16)).astype(np.float64), draw((3, 3, 16, 16), seed=1).astype(np.float64)
        slope = jax.grad(lambda k: jnp.sum(without_bias((x,), k) ** 2))(kernel)
        across = draw(kernel.shape, seed=2).astype(np.float64)
        two, one = (float(jnp.sum(without_bias((x,), kernel + t * across) ** 2)) for t in (1, -1))
        assert float((slope * across).sum()) == pytest.approx((two - one) / 2, rel=1e-12)  # a parabola


@pytest.mark.parametrize(
    ("shape", "features"), [((2, 8, 8, 3), 4), ((2, 4, 4, 64), 80), ((1, 16, 16, 32), 24), ((1, 16, 12, 32), 40)]
)
def test_convolution_of_several_inputs_is_that_of_their_concatenation(shape, features):
    images = (draw((*shape[:3], 2 * shape[3])), draw(shape, seed=1))
    params = {"kernel": draw((3, 3, 3 * shape[3], features), seed=2), "bias": draw((features,), seed=3)}
    cotangent = draw((*shape[:3], features), seed=4)

    def run(params, images, join):
        inputs = [jnp.concatenate(images, axis=-1)] if join else images
        out = Conv3x3(features).apply({"params": params}, *inputs)
        return jnp.sum(out * cotangent), out

    apart, joined = (jax.jit(jax.grad(partial(run, join=j), argnums=(0, 1), has_aux=True)) for j in (False, True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(b).max()),
        apart(params, images),
        joined(params, images),
    )


def test_a_large_kernel_is_cast_again_for_the_backward_pass_and_no_copy_waits_for_it(monkeypatch):
    monkeypatch.setattr(convolution, "MIN_SIZE_TO_CAST_AGAIN", 0)
    x, bias = jnp.asarray(draw((1, 4, 4, 8)), jnp.bfloat16), jnp.zeros(4, jnp.bfloat16)
    kernel, g = draw((3, 3, 8, 4), seed=1), jnp.asarray(draw((1, 4, 4, 4), seed=2), jnp.bfloat16)

    def gradient(dtype):
        return jax.vjp(lambda kernel: conv3x3((x,), kernel.astype(dtype), bias), kernel)

    (_, late), (_, early) = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert late(g)[0].dtype == jnp.float32
    np.testing.assert_array_equal(late(g)[0], early(g)[0])
    kept = [{leaf.dtype for leaf in jax.tree.leaves(f) if leaf.shape == kernel.shape} for f in (late, early)]
    assert kept == [{jnp.dtype("float32")}, {jnp.dtype("bfloat16")}]

    def barriers(dtype):
        return str(jax.make_jaxpr(lambda g: gradient(dtype)[1](g))(g)).count("optimization_barrier")

    assert (barriers(jnp.float32), barriers(jnp.bfloat16)) == (1, 0)  # without it, XLA would round once and keep that
    monkeypatch.setattr(convolution, "MIN_SIZE_TO_CAST_AGAIN", kernel.size + 1)
    assert barriers(jnp.float32) == 0


def test_a_kernel_of_wider_numbers_has_second_derivatives_and_batches(monkeypatch):
    monkeypatch.setattr(convolution, "MIN_SIZE_TO_CAST_AGAIN", 0)
    x, bias = jnp.asarray(draw((3, 2, 4, 4, 8)), jnp.bfloat16), jnp.zeros(4, jnp.bfloat16)
    kernel = draw((3, 3, 8, 4), seed=1)

    def size(kernel, x, dtype):
        slope = jax.grad(lambda k: jnp.sum(conv3x3((x,), k.astype(dtype), bias).astype(jnp.float32) ** 2))(kernel)
        return jnp.sum(slope**2)

    late, early = (
        jax.vmap(jax.grad(partial(size, dtype=dtype)), (None, 0))(kernel, x) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert late.shape == (3, *kernel.shape)
    np.testing.assert_allclose(late, early, rtol=2**-6, atol=1e-2 * np.abs(early).max())
