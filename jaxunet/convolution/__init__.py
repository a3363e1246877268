"""The 3x3 convolution of the network, in the form that is fastest on the device it runs on.

`plain` says it in one operation of XLA's, `cpu` and `cuda` in others that give the same values sooner. Each has
`forward` and `gradients`, of which a program contains those of its platform only.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxunet.convolution import cpu, cuda, plain
from jaxunet.convolution.plain import Parts

__all__ = ["conv3x3"]

LARGE = 2**20
"""Numbers of a kernel from which it is rounded anew for the backward pass, so that no copy waits there.

Seven kernels of the documented network have 92 % of the numbers; for the others a copy costs less than another pass.
"""


def conv3x3(parts: Parts, kernel: Array, bias: Array) -> Array:
    """Images convolved with a kernel, zero padding, plus a bias; differentiable in reverse mode, any number of times.

    Args:
      parts: images `[B, H, W, C_i]` with C channels in all, taken as concatenated.
      kernel: `[3, 3, C, D]`, of any floating dtype; it is rounded to that of the images.
      bias: `[D]`, of the dtype of the images.

    Returns:
      `[B, H, W, D]`, of the dtype of the images. The gradients of kernel and bias have their dtypes, and are summed in
      float32 at least.
    """
    return _conv3x3(parts, plain.varying_as(parts[0], kernel), plain.varying_as(parts[0], bias))


@jax.custom_vjp
def _conv3x3(parts: Parts, kernel: Array, bias: Array) -> Array:
    kernel = kernel.astype(bias.dtype)
    return lax.platform_dependent(parts, kernel, bias, cpu=cpu.forward, cuda=cuda.forward, default=plain.forward)


def _fwd(parts: Parts, kernel: Array, bias: Array) -> tuple[Array, tuple[Parts, Array]]:
    return _conv3x3(parts, kernel, bias), (parts, kernel)


def _bwd(residuals: tuple[Parts, Array], g: Array) -> tuple[Parts, Array, Array]:
    parts, kernel = residuals
    rounded, g = _rounded_late(kernel, g)
    slopes, slope = lax.platform_dependent(
        parts, rounded, g, cpu=cpu.gradients, cuda=cuda.gradients, default=plain.gradients
    )
    return slopes, slope.astype(kernel.dtype), jnp.sum(g, (0, 1, 2))


def _rounded_late(kernel: Array, g: Array) -> tuple[Array, Array]:
    """The kernel in the dtype of `g`; a large one once `g` is there: XLA would keep the forward pass' copy of it."""
    if kernel.dtype != g.dtype and kernel.size >= LARGE:
        kernel, g = lax.optimization_barrier((kernel, g))
    return kernel.astype(g.dtype), g


_conv3x3.defvjp(_fwd, _bwd)
