"""The 3x3 convolution as one XLA operation, for platforms without a special form, and what all forms share."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

Inputs = tuple[Array, ...]
"""Images `[B, H, W, C_i]`, treated as concatenated along the channels."""


def forward(inputs: Inputs, kernel: Array, bias: Array) -> Array:
    """`[B, H, W, D]`."""
    return convolve(jnp.concatenate(inputs, axis=-1), kernel) + bias


def gradients(inputs: Inputs, kernel: Array, g: Array) -> tuple[Inputs, Array]:
    """Gradients of inputs and kernel, from that of the result, `[B, H, W, D]`."""
    return jax.vjp(lambda inputs, kernel: convolve(jnp.concatenate(inputs, axis=-1), kernel), inputs, kernel)[1](g)


def convolve(x: Array, kernel: Array) -> Array:
    """`[B, H, W, C]` with `[3, 3, C, D]` or `[1, 3, C, D]`, zero padding: `[B, H, W, D]`."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient(x: Array, g: Array) -> Array:
    """The kernel's gradient of `convolve`: `[3, 3, C, D]`."""
    kernel = varying_as(x, jnp.zeros((3, 3, x.shape[-1], g.shape[-1]), x.dtype))
    return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](g)[0]


def varying_as(x: Array, other: Array) -> Array:
    """Marks `other` as varying over the devices of `jax.shard_map` over which `x` varies.

    The gradient of a replicated array is summed over the devices; the mark decides where.
    """
    axes = tuple(jax.typeof(x).mat.varying - jax.typeof(other).mat.varying)
    return lax.pcast(other, axes, to="varying") if axes else other


def split(joined: Array, inputs: Sequence[Array], axis: int) -> list[Array]:
    """Splits an axis of C channels into the channels of each input."""
    ends = itertools.accumulate(image.shape[-1] for image in inputs)
    return jnp.split(joined, list(ends)[:-1], axis=axis)


def kernel_per_pixel(kernel: Array, pixels: int, before: int, after: int) -> Array:
    """One wide kernel for several neighbours in a row: for each of them the kernel at its position, zeros elsewhere.

    `[3, W, C, D]` becomes `[3, before + W + after, C, pixels, D]`; the kernel of the first pixel starts at `before`.
    """
    shifts = [jnp.pad(kernel, ((0, 0), (before + j, after - j), (0, 0), (0, 0))) for j in range(pixels)]
    return jnp.stack(shifts, axis=3)
