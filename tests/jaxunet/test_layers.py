"""The up-convolution and the max-pooling give the values and gradients of the plain forms, ties and NaN included."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxunet import UNet, convolution
from jaxunet.convolution import conv3x3, plain
from jaxunet.layers import Conv1x1, Conv3x3, ReluDropout, UpConv, max_pool, relu

SHAPES = [(1, 3, 5, 4), (2, 8, 6, 1)]


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def up_params(channels: int, features: int) -> dict[str, np.ndarray]:
    return {"kernel": draw((2, 2, channels, features), seed=1), "bias": draw((features,), seed=2)}


def without_bias(parts, kernel):
    return conv3x3(parts, kernel, jnp.zeros(kernel.shape[-1], kernel.dtype))


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


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 64), (1, 4, 4, 64), (1, 8, 6, 3), (1, 16, 6, 16), (1, 8, 10, 32), (1, 10, 8, 64)]
)
def test_convolution_and_relu_have_second_derivatives(shape, parts):
    images = tuple(draw(shape, seed=i) for i in range(parts))
    kernel = draw((3, 3, parts * shape[3], shape[3]), seed=9) / shape[3]

    def slope(convolve, activate):
        energy = lambda k: jnp.sum(activate(convolve(images, k)) ** 3)  # noqa: E731
        return jax.jit(jax.grad(lambda k: jnp.sum(jax.grad(energy)(k) ** 2)))(kernel)

    def plain(images, k):
        x = jnp.concatenate(images, axis=-1)
        return nn.Conv(shape[3], (3, 3), use_bias=False).apply({"params": {"kernel": k}}, x)

    ours, expected = slope(without_bias, relu), slope(plain, nn.relu)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


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
def test_convolution_of_parts_is_that_of_their_concatenation(shape, features):
    parts = (draw((*shape[:3], 2 * shape[3])), draw(shape, seed=1))
    params = {"kernel": draw((3, 3, 3 * shape[3], features), seed=2), "bias": draw((features,), seed=3)}
    cotangent = draw((*shape[:3], features), seed=4)

    def run(params, parts, join):
        inputs = [jnp.concatenate(parts, axis=-1)] if join else parts
        out = Conv3x3(features).apply({"params": params}, *inputs)
        return jnp.sum(out * cotangent), out

    apart, joined = (jax.jit(jax.grad(partial(run, join=j), argnums=(0, 1), has_aux=True)) for j in (False, True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(b).max()),
        apart(params, parts),
        joined(params, parts),
    )


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


def test_gradients_in_bfloat16_are_rounded_once():
    x, g = (jnp.asarray(draw((2, 64, 8, 16), seed=seed), jnp.bfloat16) for seed in (0, 1))  # eight strips
    kernel = jnp.zeros((3, 3, 16, 16), jnp.bfloat16)
    found = jax.vjp(lambda k: without_bias((x,), k), kernel)[1](g)[0]
    exact = jax.vjp(lambda k: without_bias((x.astype(jnp.float32),), k), kernel.astype(jnp.float32))[1](
        g.astype(jnp.float32)
    )[0]
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("layer", [Conv3x3, Conv1x1, UpConv])
def test_gradients_of_biases_are_summed_in_float32(layer, dtype):
    x = draw((1, 64, 64, 2))
    params = jax.tree.map(jnp.asarray, layer(3).init(jax.random.key(0), x)["params"])

    def gradient(dtype):  # that of a sum: one for each pixel
        total = lambda params: layer(3, dtype=dtype).apply({"params": params}, x).astype(jnp.float32).sum()  # noqa: E731
        return jax.grad(total)(params)["bias"]

    np.testing.assert_array_equal(gradient(dtype), gradient(jnp.float32))


def test_the_gradient_of_tiny_images_does_not_depend_on_them():
    x, kernel, g = jnp.full((1, 4, 4, 64), jnp.inf), draw((3, 3, 64, 64)), draw((1, 4, 4, 64), seed=1)
    gradient = jax.vjp(lambda x: without_bias((x,), kernel), x)[1](g)[0]
    np.testing.assert_allclose(gradient, jax.vjp(lambda x: plain.convolve(x, kernel), 0 * g)[1](g)[0], atol=1e-4)


def test_a_large_kernel_is_rounded_anew_for_the_backward_pass_and_no_copy_waits_for_it(monkeypatch):
    monkeypatch.setattr(convolution, "LARGE", 0)
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
    monkeypatch.setattr(convolution, "LARGE", kernel.size + 1)
    assert barriers(jnp.float32) == 0


def test_a_kernel_of_wider_numbers_has_second_derivatives_and_batches(monkeypatch):
    monkeypatch.setattr(convolution, "LARGE", 0)
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


def test_a_rate_close_to_one_still_keeps_something():
    x = jnp.ones((4, 64, 64, 64))
    out = ReluDropout(1 - 1e-6, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert 0 < np.count_nonzero(out) < 64  # one of 65 536 values, so 16
    assert np.isfinite(out).all()


@pytest.fixture
def cuda(monkeypatch):
    """Takes the forms that are made for NVIDIA GPUs, on whatever device there is."""
    chosen = lambda *args, cuda=None, default, cpu=None: (cuda or default)(*args)  # noqa: E731
    monkeypatch.setattr(lax, "platform_dependent", chosen)


@pytest.mark.parametrize(
    ("parts", "channels", "features"), [(1, 3, 16), (2, 16, 16), (1, 16, 32), (2, 32, 32), (1, 8, 80), (1, 4, 8)]
)
@pytest.mark.parametrize("width", [8, 6])  # of which four neighbours at once are two groups and not a whole number
def test_forms_for_gpus_are_flax_conv_in_value_and_gradient(cuda, parts, channels, features, width):
    images = tuple(draw((2, 6, width, channels), seed=i) for i in range(parts))
    kernel, bias = draw((3, 3, parts * channels, features), seed=8), draw((features,), seed=9)
    g = draw((2, 6, width, features), seed=10)

    def plain(images, kernel, bias):
        x = jnp.concatenate(images, axis=-1)
        return nn.Conv(features, (3, 3)).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    ours, expected = (
        (value, slopes(g)) for value, slopes in (jax.vjp(conv, images, kernel, bias) for conv in (conv3x3, plain))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * abs(b).max()), ours, expected)


def test_forms_for_gpus_have_second_derivatives(cuda):
    test_convolution_and_relu_have_second_derivatives((1, 8, 8, 16), parts=2)


def test_a_network_of_forms_for_gpus_learns_the_same(monkeypatch):
    model = UNet(base_filters=16, num_layers=1, dropout_rate=0.1)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    params = model.init(jax.random.key(0), images)["params"]

    def energy(params):
        logits = model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.mean(logits**2)

    def with_forms_for(platform):
        take = lambda *args, default, **forms: forms.get(platform, default)(*args)  # noqa: E731
        monkeypatch.setattr(lax, "platform_dependent", take)
        return jax.jit(lambda params: jax.value_and_grad(energy)(params))(params)

    expected, found = with_forms_for("tpu"), with_forms_for("cuda")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * abs(b).max()), found, expected)
