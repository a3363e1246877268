"""The 3x3 convolution on NVIDIA GPUs: with few channels, neighbours in a row become one pixel with more channels.

cuDNN's tiles are made for at least 64 channels: on an H200, 16 channels took three times as long as 4 x 16, although
most of that kernel is zeros. The data in memory stays in place.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxunet.convolution.plain import Inputs, convolve, kernel_gradient, kernel_per_pixel, split

TILE = 64
"""Channels computed at once, of one pixel or of up to `MAX_NEIGHBOURS`."""

MAX_NEIGHBOURS = 4
"""Most pixels merged into one; the number of multiplications grows with theirs, and four are worth it."""


def forward(inputs: Inputs, kernel: Array, bias: Array) -> Array:
    """`[B, H, W, D]`."""
    pixels = _pixels_at_once(inputs, kernel)
    wide = convolve(_joined(inputs, pixels), _wide(kernel, inputs, pixels)) + jnp.tile(bias, pixels)
    return wide.reshape(*inputs[0].shape[:3], -1)


def gradients(inputs: Inputs, kernel: Array, g: Array) -> tuple[Inputs, Array]:
    """Gradients of inputs and kernel, from that of the result, `[B, H, W, D]`."""
    pixels = _pixels_at_once(inputs, kernel)
    g = _grouped(g, pixels)
    input_gradients = jax.vjp(lambda inputs: convolve(_joined(inputs, pixels), _wide(kernel, inputs, pixels)), inputs)[
        1
    ]
    # As if `g` were convolved, with the kernel rotated: cuDNN's result then has the memory layout of the parameters.
    # Otherwise the optimizer would transpose 31 million numbers, in twice the time.
    turned = kernel_gradient(g, _joined(inputs, pixels))
    narrow = jax.linear_transpose(lambda kernel: _wide(kernel, inputs, pixels), kernel)
    return *input_gradients(g), *narrow(turned[::-1, ::-1].swapaxes(2, 3))


def _pixels_at_once(inputs: Inputs, kernel: Array) -> int:
    pixels = max(1, min(MAX_NEIGHBOURS, TILE // kernel.shape[-1]))
    return pixels if inputs[0].shape[2] % pixels == 0 else 1


def _grouped(x: Array, pixels: int) -> Array:
    """`[B, H, W, C]` as `[B, H, W / pixels, pixels * C]`."""
    return x.reshape(*x.shape[:2], x.shape[2] // pixels, -1)


def _joined(inputs: Inputs, pixels: int) -> Array:
    return jnp.concatenate([_grouped(image, pixels) for image in inputs], axis=-1)


def _wide(kernel: Array, inputs: Inputs, pixels: int) -> Array:
    """`[3, 3, C, D]` to `[3, 3, pixels * C, pixels * D]`: from groups of pixels to groups of pixels."""
    if pixels == 1:
        return kernel
    unseen = pixels - 1  # pixels of the previous, and of the next, group that no pixel of this group sees

    def widen(rows: Array) -> Array:
        return kernel_per_pixel(rows, pixels, unseen, 2 * unseen).reshape(3, 3, pixels * rows.shape[2], -1)

    return jnp.concatenate([widen(rows) for rows in split(kernel, inputs, axis=2)], axis=2)
