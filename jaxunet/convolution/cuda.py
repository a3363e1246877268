"""The 3x3 convolution on NVIDIA GPUs: where channels are few, several neighbours of a row are one pixel of more.

cuDNN's tiles are made for 64 channels and more: on an H200, 16 took three times as long as 4 x 16, though most of the
kernel is zeros then. In memory, nothing moves.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxunet.convolution.plain import Parts, convolve, kernel_gradient, one_kernel_a_pixel, split

TILE = 64
"""Channels that are computed at once, of one pixel or of up to `NEIGHBOURS`."""

NEIGHBOURS = 4
"""Pixels that are taken as one at most; the multiplications grow with their number, and four are worth it."""


def forward(parts: Parts, kernel: Array, bias: Array) -> Array:
    """`[B, H, W, D]`."""
    pixels = _pixels_at_once(parts, kernel)
    wide = convolve(_joined(parts, pixels), _wide(kernel, parts, pixels)) + jnp.tile(bias, pixels)
    return wide.reshape(*parts[0].shape[:3], -1)


def gradients(parts: Parts, kernel: Array, g: Array) -> tuple[Parts, Array]:
    """Those of the parts and of the kernel, from that of the result, `[B, H, W, D]`."""
    pixels = _pixels_at_once(parts, kernel)
    g = _grouped(g, pixels)
    slopes = jax.vjp(lambda parts: convolve(_joined(parts, pixels), _wide(kernel, parts, pixels)), parts)[1]
    # As if `g` were convolved, with the kernel turned. cuDNN's result then has the last axis where parameters have it,
    # and the optimizer reads it as it lies; otherwise it transposes 31 million numbers, in twice the time.
    turned = kernel_gradient(g, _joined(parts, pixels))
    narrow = jax.linear_transpose(lambda kernel: _wide(kernel, parts, pixels), kernel)
    return *slopes(g), *narrow(turned[::-1, ::-1].swapaxes(2, 3))


def _pixels_at_once(parts: Parts, kernel: Array) -> int:
    pixels = max(1, min(NEIGHBOURS, TILE // kernel.shape[-1]))
    return pixels if parts[0].shape[2] % pixels == 0 else 1


def _grouped(x: Array, pixels: int) -> Array:
    """`[B, H, W, C]` as `[B, H, W / pixels, pixels * C]`."""
    return x.reshape(*x.shape[:2], x.shape[2] // pixels, -1)


def _joined(parts: Parts, pixels: int) -> Array:
    return jnp.concatenate([_grouped(part, pixels) for part in parts], axis=-1)


def _wide(kernel: Array, parts: Parts, pixels: int) -> Array:
    """`[3, 3, C, D]` to `[3, 3, pixels * C, pixels * D]`: from groups of pixels to groups of pixels."""
    if pixels == 1:
        return kernel
    unseen = pixels - 1  # pixels of the group before, or of the one behind, that none of this group sees

    def widen(rows: Array) -> Array:
        return one_kernel_a_pixel(rows, pixels, unseen, 2 * unseen).reshape(3, 3, pixels * rows.shape[2], -1)

    return jnp.concatenate([widen(rows) for rows in split(kernel, parts, axis=2)], axis=2)
