"""The 3x3 convolution of the network, in the fastest form for the device.

`plain` is one XLA operation; `cpu` and `cuda` are faster forms of the same values. Each has `forward` and `gradients`;
a program contains only those of its platform.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxunet.convolution import cpu, cuda, plain
from jaxunet.convolution.plain import Inputs

__all__ = ["conv3x3"]

MIN_SIZE_TO_CAST_AGAIN = 2**20
"""Kernels with at least this many elements are cast again in the backward pass instead of being kept.

Seven kernels of the reference's network have 92 % of the elements; for the others a copy costs less than another cast.
"""


def conv3x3(inputs: Inputs, kernel: Array, bias: Array) -> Array:
    """Convolution with zero padding, plus a bias; differentiable in reverse mode, any number of times.

    Args:
      inputs: images `[B, H, W, C_i]` with C channels in total, treated as concatenated.
      kernel: `[3, 3, C, D]`, of any floating dtype; it is cast to that of the images.
      bias: `[D]`, of the dtype of the images.

    Returns:
      `[B, H, W, D]`, of the dtype of the images. The gradients of kernel and bias have their dtypes and are summed in
      at least float32.
    """
    return _conv3x3(inputs, plain.varying_as(inputs[0], kernel), plain.varying_as(inputs[0], bias))


@jax.custom_vjp
def _conv3x3(inputs: Inputs, kernel: Array, bias: Array) -> Array:
    kernel = kernel.astype(bias.dtype)
    return lax.platform_dependent(inputs, kernel, bias, cpu=cpu.forward, cuda=cuda.forward, default=plain.forward)


def _fwd(inputs: Inputs, kernel: Array, bias: Array) -> tuple[Array, tuple[Inputs, Array]]:
    return _conv3x3(inputs, kernel, bias), (inputs, kernel)


def _bwd(residuals: tuple[Inputs, Array], g: Array) -> tuple[Inputs, Array, Array]:
    inputs, kernel = residuals
    rounded, g = _cast_late(kernel, g)
    input_gradients, kernel_gradient = lax.platform_dependent(
        inputs, rounded, g, cpu=cpu.gradients, cuda=cuda.gradients, default=plain.gradients
    )
    return input_gradients, kernel_gradient.astype(kernel.dtype), jnp.sum(g, (0, 1, 2))


def _cast_late(kernel: Array, g: Array) -> tuple[Array, Array]:
    """The kernel in the dtype of `g`, and `g`."""
    if kernel.dtype != g.dtype and kernel.size >= MIN_SIZE_TO_CAST_AGAIN:
        # The cast has to wait for `g`: otherwise XLA keeps the copy of the forward pass in memory until here.
        kernel, g = lax.optimization_barrier((kernel, g))
    return kernel.astype(g.dtype), g


_conv3x3.defvjp(_fwd, _bwd)
