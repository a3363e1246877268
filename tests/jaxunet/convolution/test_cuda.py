"""The forms for NVIDIA GPUs have the values and gradients of Flax's, on any device."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxunet import UNet
from jaxunet.convolution import conv3x3
from tests.helpers.convolution import check_second_derivatives, draw


@pytest.fixture
def cuda(monkeypatch):
    """Takes the forms that are made for NVIDIA GPUs, on whatever device there is."""
    chosen = lambda *args, cuda=None, default, cpu=None: (cuda or default)(*args)  # noqa: E731
    monkeypatch.setattr(lax, "platform_dependent", chosen)


@pytest.mark.parametrize(
    ("inputs", "channels", "features"), [(1, 3, 16), (2, 16, 16), (1, 16, 32), (2, 32, 32), (1, 8, 80), (1, 4, 8)]
)
@pytest.mark.parametrize("width", [8, 6])  # of which four neighbours at once are two groups and not a whole number
def test_forms_for_gpus_are_flax_conv_in_value_and_gradient(cuda, inputs, channels, features, width):
    images = tuple(draw((2, 6, width, channels), seed=i) for i in range(inputs))
    kernel, bias = draw((3, 3, inputs * channels, features), seed=8), draw((features,), seed=9)
    g = draw((2, 6, width, features), seed=10)

    def plain(images, kernel, bias):
        x = jnp.concatenate(images, axis=-1)
        return nn.Conv(features, (3, 3)).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    ours, expected = (
        (value, slopes(g)) for value, slopes in (jax.vjp(conv, images, kernel, bias) for conv in (conv3x3, plain))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * abs(b).max()), ours, expected)


def test_forms_for_gpus_have_second_derivatives(cuda):
    check_second_derivatives((1, 8, 8, 16), inputs=2)


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
