"""The network is the reference's: topology, parameter counts, value, dtypes and dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet import UNet
from tests.helpers import tiny

ENCODER = [  # the reference's summary: parameters of the two convolutions of each level
    (448, 2320),
    (4640, 9248),
    (18496, 36928),
    (73856, 147584),
    (295168, 590080),
    (1180160, 2359808),
    (4719616, 9438208),
]
DECODER = [  # up-convolution, then two convolutions
    (2064, 4624, 2320),
    (8224, 18464, 9248),
    (32832, 73792, 36928),
    (131200, 295040, 147584),
    (524544, 1179904, 590080),
    (2097664, 4719104, 2359808),
]
HEAD = 17

TINY = {"base_filters": 2, "num_layers": 2}


def count(model: UNet, shape: tuple[int, ...] = (1, 256, 256, 3)) -> dict[str, int]:
    """Parameters per layer, without computing any."""
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.uint8))["params"]
    return {name: sum(leaf.size for leaf in layer.values()) for name, layer in params.items()}


def draw_images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def params():
    """Of the tiny network on RGB images, drawn in NumPy, with biases that are far from zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32), tiny.params(UNet(**TINY))
    )


@pytest.fixture(scope="module")
def images():
    return draw_images((2, 8, 8, 3))


def infer(model: UNet, params: dict, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)({"params": params}, images))


def test_parameters_per_layer_are_those_of_the_reference():
    expected = {"head": HEAD}
    for level, numbers in enumerate(ENCODER):
        expected |= {f"encoder{level}_conv{i}": number for i, number in enumerate(numbers, 1)}
    for level, (up, first, second) in enumerate(DECODER):
        expected |= {f"decoder{level}_up": up, f"decoder{level}_conv1": first, f"decoder{level}_conv2": second}
    counted = count(UNet())
    assert counted == expected
    assert sum(counted.values()) == 31_110_001


def test_five_poolings_are_the_smaller_network_of_the_reference():
    assert sum(count(UNet(num_layers=5)).values()) == 7_775_601


def test_channels_and_classes_change_the_first_layer_and_the_head_only():
    plain, changed = count(UNet()), count(UNet(num_classes=4), (1, 64, 64, 1))
    assert {name: changed[name] for name in changed if changed[name] != plain[name]} == {
        "encoder0_conv1": 9 * 1 * 16 + 16,
        "head": 16 * 4 + 4,
    }


def convolve(x: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
    kernel = layer["kernel"].astype(float)
    h, w = x.shape[1:3]
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[-1])) + layer["bias"]
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out += np.einsum("bhwc,co->bhwo", padded[:, i : i + h, j : j + w], kernel[i, j])
    return out


def up_convolve(x: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
    b, h, w, _ = x.shape
    out = np.zeros((b, 2 * h, 2 * w, layer["kernel"].shape[-1]))
    for i in range(2):
        for j in range(2):
            out[:, i::2, j::2] = np.einsum("bhwc,co->bhwo", x, layer["kernel"][i, j].astype(float)) + layer["bias"]
    return out


def reference(params: dict, images: np.ndarray, num_layers: int) -> np.ndarray:
    """The reference's forward pass in float64 NumPy."""

    def block(x, name):
        for number in (1, 2):
            x = np.maximum(convolve(x, params[f"{name}_conv{number}"]), 0)
        return x

    x, skips = images.astype(float) / 255, []
    for level in range(num_layers):
        x = block(x, f"encoder{level}")
        skips.append(x)
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    x = block(x, f"encoder{num_layers}")
    for level in reversed(range(num_layers)):
        x = np.concatenate([up_convolve(x, params[f"decoder{level}_up"]), skips[level]], -1)
        x = block(x, f"decoder{level}")
    return convolve(x, params["head"])


def test_forward_pass_equals_a_float64_reference(params, images):
    logits = infer(UNet(**TINY), params, images)
    expected = reference(params, images, TINY["num_layers"])
    assert np.ptp(expected) > 1  # else the comparison would say little
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_forward_pass_takes_images_that_are_not_square(params):
    images = draw_images((1, 4, 12, 3))
    logits = infer(UNet(**TINY), params, images)
    expected = reference(params, images, TINY["num_layers"])
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_uint8_and_float_images_give_the_same_logits(params, images):
    model = UNet(**TINY)
    np.testing.assert_array_equal(infer(model, params, images), infer(model, params, images.astype(np.float32)))


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_logits_float32(params, images):
    half = UNet(**TINY, dtype=jnp.bfloat16)
    logits = infer(half, params, images)
    expected = reference(params, images, TINY["num_layers"])
    assert logits.dtype == jnp.float32
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.05  # above zero: it did compute in bfloat16
    shapes = jax.eval_shape(half.init, jax.random.key(0), images)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("shape", [(1, 8, 10, 3), (1, 6, 8, 3), (8, 8, 3)])
def test_images_that_cannot_be_halved_are_refused_with_the_numbers(shape):
    with pytest.raises(ValueError, match=r"multiples of 4.*num_layers=2") as error:
        UNet(**TINY).init(jax.random.key(0), jnp.zeros(shape))
    assert str(shape) in str(error.value)


def test_dropout_rate_grows_with_the_level_and_is_zero_at_full_resolution(params, images):
    rates = {}

    def record(next_fun, args, kwargs, context):
        if type(context.module).__name__ == "ReluDropout":
            rates[context.module.name] = (context.module.rate, context.module.deterministic)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda: UNet(**TINY, dropout_rate=0.08).apply(
                {"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)}
            )
        )
    assert {name: rate for name, (rate, _) in rates.items()} == pytest.approx(
        {
            "encoder0_dropout": 0,
            "encoder1_dropout": 0.08,
            "encoder2_dropout": 0.16,
            "decoder1_dropout": 0.08,
            "decoder0_dropout": 0,
        }
    )
    assert not any(deterministic for _, deterministic in rates.values())


def test_dropout_is_a_function_of_its_key_and_absent_from_inference(images):
    model, plain = (UNet(base_filters=2, num_layers=1, dropout_rate=rate) for rate in (0.3, 0.0))
    params = tiny.params(model)

    @jax.jit
    def train(key):
        return model.apply({"params": params}, images, train=True, rngs={"dropout": key})

    first = train(jax.random.key(1))
    np.testing.assert_array_equal(first, train(jax.random.key(1)))
    assert (first != train(jax.random.key(2))).any()
    inference = infer(model, params, images)
    assert (first != inference).any()
    np.testing.assert_array_equal(inference, infer(plain, params, images))


def test_levels_computed_twice_give_the_same_values_and_gradients_under_the_same_names(images):
    kept, again = (UNet(base_filters=2, num_layers=1, dropout_rate=0.3, remat=remat) for remat in (False, True))
    params = tiny.params(kept)

    def gradient(model):
        def loss(params):
            logits = model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(5)})
            return jnp.mean(logits**2)

        convolutions = str(jax.make_jaxpr(jax.grad(loss))(params)).count("conv_general_dilated")
        return *jax.jit(jax.value_and_grad(loss))(params), convolutions

    assert jax.tree.structure(tiny.params(again)) == jax.tree.structure(params)
    (value, grads, more), (expected, expected_grads, convolutions) = gradient(again), gradient(kept)
    assert more > convolutions
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads, expected_grads)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-3


def test_kernels_start_as_in_the_reference():
    key = jax.random.key(0, impl="rbg")  # compiles in a fifth of the time
    params = jax.jit(UNet(num_layers=1, num_classes=64).init)(key, jnp.zeros((1, 16, 16, 3)))["params"]
    assert not any(layer["bias"].any() for layer in params.values())
    for name in ("encoder0_conv2", "encoder1_conv2", "decoder0_conv1"):
        kernel = params[name]["kernel"]
        he_normal = np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert np.std(kernel) == pytest.approx(he_normal, rel=0.06)
        assert np.abs(kernel).max() <= 2 * he_normal / 0.8796 + 1e-6  # truncated at two deviations
    for name, limit in {"decoder0_up": np.sqrt(6 / (4 * 48)), "head": np.sqrt(6 / (16 + 64))}.items():
        largest = np.abs(params[name]["kernel"]).max()
        assert 0.9 * limit < largest <= limit
