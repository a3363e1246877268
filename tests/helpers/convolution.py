"""Random arrays, and the check of second derivatives, for the tests of layers and convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunet.convolution import conv3x3
from jaxunet.layers import relu


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def without_bias(inputs, kernel):
    return conv3x3(inputs, kernel, jnp.zeros(kernel.shape[-1], kernel.dtype))


def check_second_derivatives(shape: tuple[int, ...], inputs: int) -> None:
    """Of convolution and ReLU together, against Flax's."""
    images = tuple(draw(shape, seed=i) for i in range(inputs))
    kernel = draw((3, 3, inputs * shape[3], shape[3]), seed=9) / shape[3]

    def slope(convolve, activate):
        energy = lambda k: jnp.sum(activate(convolve(images, k)) ** 3)  # noqa: E731
        return jax.jit(jax.grad(lambda k: jnp.sum(jax.grad(energy)(k) ** 2)))(kernel)

    def plain(images, k):
        x = jnp.concatenate(images, axis=-1)
        return nn.Conv(shape[3], (3, 3), use_bias=False).apply({"params": {"kernel": k}}, x)

    ours, expected = slope(without_bias, relu), slope(plain, nn.relu)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
