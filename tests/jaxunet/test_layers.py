"""Each layer has the values and gradients of the plain form, including ties and NaN."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet.layers import Conv1x1, Conv3x3, ReluDropout, UpConv, max_pool, relu
from tests.helpers.convolution import draw

SHAPES = [(1, 3, 5, 4), (2, 8, 6, 1)]


def up_params(channels: int, features: int) -> dict[str, np.ndarray]:
    return {"kernel": draw((2, 2, channels, features), seed=1), "bias": draw((features,), seed=2)}


@pytest.mark.parametrize("shape", SHAPES)
def test_up_convolution_is_its_definition(shape):
    x, params = draw(shape), up_params(shape[-1], 3)
    out = UpConv(3).apply({"params": params}, x)
    expected = np.empty((shape[0], 2 * shape[1], 2 * shape[2], 3))
    for i, j, a, b in itertools.product(range(shape[1]), range(shape[2]), range(2), range(2)):
        product = x[:, i, j].astype(float) @ params["kernel"][a, b].astype(float)
        expected[:, 2 * i + a, 2 * j + b] = product + params["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_up_convolution_is_flax_conv_transpose_with_the_kernel_flipped(shape):
    x, params = draw(shape), up_params(shape[-1], 3)
    cotangent = draw((shape[0], 2 * shape[1], 2 * shape[2], 3), seed=3)

    def value(layer, flip):
        def run(kernel, bias, x):
            kernel = kernel[::-1, ::-1] if flip else kernel
            out = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
            return jnp.sum(out * cotangent), out

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))

    ours = value(UpConv(3), flip=False)(params["kernel"], params["bias"], x)
    flax = value(nn.ConvTranspose(3, (2, 2), strides=(2, 2)), flip=True)(params["kernel"], params["bias"], x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, flax)


def test_up_convolution_computes_in_its_dtype_and_keeps_float32_parameters():
    x = draw((1, 2, 2, 4))
    layer = UpConv(3, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    params = up_params(4, 3)
    out = layer.apply({"params": params}, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), UpConv(3).apply({"params": params}, x), atol=0.05)


def test_up_convolution_starts_with_zero_bias_and_glorot_uniform_kernels():
    key = jax.random.key(0, impl="rbg")  # compiles in a fifth of the time
    params = jax.jit(UpConv(64).init)(key, draw((1, 2, 2, 32)))["params"]
    limit = np.sqrt(6 / (4 * 32 + 4 * 64))
    assert not params["bias"].any()
    assert np.abs(params["kernel"]).max() <= limit
    assert np.std(params["kernel"]) == pytest.approx(limit / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("values", ["random", "few levels", "constant"])
def test_max_pool_equals_flax_in_value_and_gradient(values):
    x = draw((2, 8, 6, 3))
    if values == "few levels":
        x = np.round(x)  # most windows tie
    elif values == "constant":
        x = np.full_like(x, 0.25)
    cotangent = draw((2, 4, 3, 3), seed=1)

    def flax_pool(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    def value_and_gradient(pool):
        out, vjp = jax.vjp(pool, x)
        return out, vjp(cotangent)[0]

    jax.tree.map(np.testing.assert_array_equal, value_and_gradient(max_pool), value_and_gradient(flax_pool))


@pytest.mark.parametrize("high", list(itertools.product([False, True], repeat=4)))
def test_max_pool_gives_a_tie_to_the_first_pixel_in_row_major_order(high):
    window = np.where(high, 1.0, 0.0).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(window.reshape(1, 2, 2, 1)).reshape(-1)
    first = high.index(True) if any(high) else 0
    assert gradient.tolist() == [float(i == first) for i in range(4)]


@pytest.mark.parametrize("position", range(4))
def test_max_pool_propagates_nan_from_every_position_and_gives_it_the_gradient(position):
    window = np.ones(4, np.float32)
    window[position] = np.nan
    value, slopes = jax.vjp(max_pool, jnp.asarray(window.reshape(1, 2, 2, 1)))
    assert np.isnan(value).all()
    assert np.isnan(slopes(value)[0]).reshape(-1).tolist() == [i == position for i in range(4)]


def test_max_pool_has_second_derivatives():
    x = draw((1, 4, 6, 2))

    def slope(pool):
        energy = jax.grad(lambda x: jnp.sum(pool(x) ** 3))
        return jax.jit(jax.grad(lambda x: jnp.sum(energy(x) ** 2)))(x)

    np.testing.assert_allclose(slope(max_pool), slope(lambda x: nn.max_pool(x, (2, 2), (2, 2))), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 4, 1), (1, 4, 5, 1)])
def test_max_pool_of_an_odd_number_of_rows_or_columns_is_refused(shape):
    with pytest.raises(ValueError, match="needs an even height and width, got images of"):
        max_pool(jnp.zeros(shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_keeps_the_dtype(dtype):
    assert max_pool(jnp.zeros((1, 2, 2, 1), dtype)).dtype == dtype


def test_convolution_1x1_is_flax_conv_in_value_and_gradient():
    x, params = draw((2, 6, 4, 5)), {"kernel": draw((1, 1, 5, 3), seed=1), "bias": draw((3,), seed=2)}

    def value(layer):
        return jax.value_and_grad(lambda p, x: jnp.sum(layer.apply({"params": p}, x) ** 3), argnums=(0, 1))

    ours, plain = value(Conv1x1(3))(params, x), value(nn.Conv(3, (1, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)
    assert Conv1x1(3, dtype=jnp.bfloat16).apply({"params": params}, x).dtype == jnp.bfloat16


def test_relu_is_that_of_jax_in_value_gradient_and_where_the_input_is_zero():
    x = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf])
    ours, plain = (jax.vjp(f, x) for f in (relu, nn.relu))
    np.testing.assert_array_equal(ours[0], plain[0])
    np.testing.assert_array_equal(ours[1](x + 7)[0], plain[1](x + 7)[0])
    assert np.isnan(relu(jnp.array(jnp.nan)))
    assert relu(jnp.zeros(3, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_keeps_the_share_and_the_mean_and_the_gradient_passes_where_it_kept(dtype):
    x = jnp.ones((4, 64, 64, 5), dtype)  # an odd number of channels
    layer = ReluDropout(0.3, deterministic=False)

    def run(x):
        return layer.apply({}, x, rngs={"dropout": jax.random.key(3)})

    out, slope = jax.vjp(run, x)
    kept = np.asarray(out, np.float32) > 0
    assert out.dtype == dtype
    assert kept.mean() == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / kept.size))
    np.testing.assert_allclose(
        np.unique(np.asarray(out, np.float32)), [0, 1 / 0.7], rtol=1e-5 if dtype == jnp.float32 else 4e-3
    )
    np.testing.assert_array_equal(slope(jnp.ones_like(out))[0], out)
    # Neighbours of a word, of a row, and images of a batch are drawn on their own.
    for axis in range(4):
        a, b = np.delete(kept, 0, axis), np.delete(kept, -1, axis)
        assert np.mean(a & b) == pytest.approx(0.49, abs=5 * np.sqrt(0.25 / a.size))


def test_dropout_is_left_out_where_it_is_told_so_or_has_no_rate():
    x = draw((2, 4, 4, 3))
    for layer in (ReluDropout(0.5, deterministic=True), ReluDropout(0.0, deterministic=False)):
        np.testing.assert_array_equal(layer.apply({}, x), nn.relu(x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("layer", [Conv3x3, Conv1x1, UpConv])
def test_gradients_of_biases_are_summed_in_float32(layer, dtype):
    x = draw((1, 64, 64, 2))
    params = jax.tree.map(jnp.asarray, layer(3).init(jax.random.key(0), x)["params"])

    def gradient(dtype):  # that of a sum: one for each pixel
        total = lambda params: layer(3, dtype=dtype).apply({"params": params}, x).astype(jnp.float32).sum()  # noqa: E731
        return jax.grad(total)(params)["bias"]

    np.testing.assert_array_equal(gradient(dtype), gradient(jnp.float32))


def test_a_rate_close_to_one_still_keeps_something():
    x = jnp.ones((4, 64, 64, 64))
    out = ReluDropout(1 - 1e-6, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert 0 < np.count_nonzero(out) < 64  # one of 65 536 values, so 16
    assert np.isfinite(out).all()
