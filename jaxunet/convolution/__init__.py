"""The 3x3 convolution of the network, in the form that is fastest on the device it runs on.

`plain` says it in one operation of XLA's, `cpu` and `cuda` in others that give the same values sooner. Each has
`forward` and `gradients`, of which a program contains those of its platform only.
"""

import jax
from jax import Array, lax

from jaxunet.convolution import cpu, cuda, plain
from jaxunet.convolution.plain import Parts

__all__ = ["conv3x3"]


@jax.custom_vjp
def conv3x3(parts: Parts, kernel: Array, bias: Array) -> Array:
    """Images convolved with a kernel, zero padding, plus a bias; differentiable in reverse mode, any number of times.

    Args:
      parts: images `[B, H, W, C_i]` with C channels in all, taken as concatenated.
      kernel: `[3, 3, C, D]`, of the same dtype.
      bias: `[D]`, of the same dtype.

    Returns:
      `[B, H, W, D]`, of the same dtype.
    """
    return lax.platform_dependent(parts, kernel, bias, cpu=cpu.forward, cuda=cuda.forward, default=plain.forward)


def _fwd(parts: Parts, kernel: Array, bias: Array) -> tuple[Array, tuple[Parts, Array]]:
    return conv3x3(parts, kernel, bias), (parts, kernel)


def _bwd(residuals: tuple[Parts, Array], g: Array) -> tuple[Parts, Array, Array]:
    gradients = lax.platform_dependent(*residuals, g, cpu=cpu.gradients, cuda=cuda.gradients, default=plain.gradients)
    return *gradients, lax.reduce_sum(g, (0, 1, 2))


conv3x3.defvjp(_fwd, _bwd)
