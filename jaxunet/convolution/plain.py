"""The 3x3 convolution as XLA has it, for every platform without a form of its own, and what the other forms share."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

Parts = tuple[Array, ...]
"""Images `[B, H, W, C_i]`, whose channels are taken as concatenated."""


def forward(parts: Parts, kernel: Array, bias: Array) -> Array:
    """`[B, H, W, D]`."""
    return convolve(jnp.concatenate(parts, axis=-1), kernel) + bias


def gradients(parts: Parts, kernel: Array, g: Array) -> tuple[Parts, Array]:
    """Those of the parts and of the kernel, from that of the result, `[B, H, W, D]`."""
    return jax.vjp(lambda parts, kernel: convolve(jnp.concatenate(parts, axis=-1), kernel), parts, kernel)[1](g)


def convolve(x: Array, kernel: Array) -> Array:
    """`[B, H, W, C]` with `[3, 3, C, D]` or `[1, 3, C, D]`, zero padding: `[B, H, W, D]`."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient(x: Array, g: Array) -> Array:
    """The kernel's gradient of `convolve`: `[3, 3, C, D]`."""
    kernel = varying_as(x, jnp.zeros((3, 3, x.shape[-1], g.shape[-1]), x.dtype))
    return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](g)[0]


def varying_as(x: Array, other: Array) -> Array:
    """`other` as something that differs between the devices, where `x` does inside of `jax.shard_map`.

    What arrives the same on all devices gets the sum of their gradients; this says where that sum is taken.
    """
    axes = tuple(jax.typeof(x).mat.varying - jax.typeof(other).mat.varying)
    return lax.pcast(other, axes, to="varying") if axes else other


def split(joined: Array, parts: Sequence[Array], axis: int) -> list[Array]:
    """Cuts an axis of C channels into as many as each part has."""
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    return jnp.split(joined, list(ends)[:-1], axis=axis)


def one_kernel_a_pixel(kernel: Array, pixels: int, before: int, after: int) -> Array:
    """What several neighbours of a row are convolved with at once: zeros, and the kernel where each of them sees it.

    `[3, W, C, D]` becomes `[3, before + W + after, C, pixels, D]`; the kernel of the first pixel begins at `before`.
    """
    shifts = [jnp.pad(kernel, ((0, 0), (before + j, after - j), (0, 0), (0, 0))) for j in range(pixels)]
    return jnp.stack(shifts, axis=3)
