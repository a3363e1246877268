"""Convolution, up-convolution and max-pooling with the documented values, written for XLA.

XLA's CPU backend does the gradients of `flax.linen.ConvTranspose` (strided) and of `flax.linen.max_pool`
(select-and-scatter) slowly, and select-and-scatter has no deterministic form on GPUs. Both layers are small enough to
be said in operations that every backend does well. The 3x3 convolution has a form of its own on CPUs only. The tests
compare value and gradient of each with the plain forms.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

WIDE = 64
"""Channels from which a matrix product is worth the copies that it needs."""

STRIP = 8
"""Rows of an image that are worked on at once where the channels are too few for one large product."""

TINY = 8 * 8
"""Pixels up to which XLA's CPU convolution loses to a matrix product, forward too."""


class Conv3x3(nn.Module):
    """Convolution 3x3 with zero padding: `[B, H, W, C]` to `[B, H, W, features]`; parameters as in `flax.linen.Conv`.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `[B, H, W, features]` in `dtype`."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return conv3x3(x, kernel) + bias


@jax.custom_vjp
def conv3x3(x: Array, kernel: Array) -> Array:
    """`x` `[B, H, W, C]` convolved with `kernel` `[3, 3, C, D]`, zero padding: `[B, H, W, D]`.

    On CPUs the gradient of a wide kernel, and everything on tiny images, is a matrix product: XLA hands those to a
    routine made for large images and small kernels, at a half to a tenth of what the processor can do. Elsewhere it is
    `lax.conv_general_dilated`. Differentiable in reverse mode, any number of times.
    """
    return lax.platform_dependent(x, kernel, cpu=_forward_cpu, default=_conv)


def _conv3x3_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv3x3(x, kernel), (x, kernel)


def _conv3x3_bwd(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dx = lax.platform_dependent(x, kernel, g, cpu=_input_gradient_cpu, default=_input_gradient)
    dkernel = lax.platform_dependent(x, kernel, g, cpu=_kernel_gradient_cpu, default=_kernel_gradient)
    return dx, dkernel


conv3x3.defvjp(_conv3x3_fwd, _conv3x3_bwd)


def _conv(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _input_gradient(x: Array, kernel: Array, g: Array) -> Array:
    return jax.vjp(lambda x: _conv(x, kernel), x)[1](g)[0]


def _kernel_gradient(x: Array, kernel: Array, g: Array) -> Array:
    return jax.vjp(lambda kernel: _conv(x, kernel), kernel)[1](g)[0]


def _forward_cpu(x: Array, kernel: Array) -> Array:
    if not _is_tiny(x):
        return _conv(x, kernel)
    patches = _neighbours(_neighbours(x, 2), 1)  # [B, H, W, 3, 3, C]
    return jnp.tensordot(patches, kernel, 3)


def _input_gradient_cpu(x: Array, kernel: Array, g: Array) -> Array:
    if not _is_tiny(x):
        return _input_gradient(x, kernel, g)
    h, w = x.shape[1:3]
    # The kernel first: as it lies, it is the left side of a product, and as the right side it would be transposed.
    parts = lax.dot_general(kernel, g, (((3,), (3,)), ((), ()))).transpose(3, 4, 5, 0, 1, 2)
    parts = jnp.pad(parts, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
    return sum((parts[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w, i, j] for i in range(3) for j in range(3)), start=0 * x)


def _kernel_gradient_cpu(x: Array, kernel: Array, g: Array) -> Array:
    if _is_tiny(x):  # no other form leaves the large result in its order
        return jnp.einsum("bhwijc,bhwd->ijcd", _neighbours(_neighbours(x, 2), 1), g)
    channels = min(kernel.shape[2:])
    if channels < WIDE:
        in_strips = channels >= WIDE // 2 and x.shape[1] % STRIP == 0
        return _kernel_gradient_in_strips(x, kernel, g) if in_strips else _kernel_gradient(x, kernel, g)
    # Three copies of each side do for nine offsets: `x` is shifted along the rows, `g` across them, the other way.
    return jnp.einsum("bhwjc,bhwid->ijcd", _neighbours(x, 2), _neighbours(g, 1, order=(2, 1, 0)))


def _kernel_gradient_in_strips(x: Array, kernel: Array, g: Array) -> Array:
    """A product for each of the nine offsets, strip by strip, so that the copies of `x` stay in the cache."""
    w = x.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add_strip(sums: Array, top: Array) -> tuple[Array, None]:
        rows = lax.dynamic_slice_in_dim(padded, top, STRIP + 2, axis=1)
        slopes = lax.dynamic_slice_in_dim(g, top, STRIP, axis=1)
        offsets = [[rows[:, i : i + STRIP, j : j + w] for j in range(3)] for i in range(3)]
        products = [[jnp.einsum("bhwc,bhwd->cd", part, slopes) for part in parts] for parts in offsets]
        return sums + jnp.stack([jnp.stack(row) for row in products]), None

    return lax.scan(add_strip, jnp.zeros_like(kernel), jnp.arange(0, x.shape[1], STRIP))[0]


def _is_tiny(x: Array) -> bool:
    return x.shape[1] * x.shape[2] <= TINY and x.shape[3] >= WIDE


def _neighbours(x: Array, axis: int, order: tuple[int, ...] = (0, 1, 2)) -> Array:
    """Each pixel beside the one before and after it along `axis`, zero outside: a new axis of 3 after the third."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
    return jnp.stack([lax.slice_in_dim(padded, i, i + size, axis=axis) for i in order], axis=3)


class UpConv(nn.Module):
    """Transposed convolution, kernel 2x2, stride 2: `[B, H, W, C]` to `[B, 2H, 2W, features]`.

    Kernel and stride are equal, so no two windows overlap and the layer is one matrix product followed by a reshape.

    The kernel is `[2, 2, C, features]` in unflipped order, `out[2i+a, 2j+b] = x[i, j] @ kernel[a, b] + bias`. Keras
    stores the same numbers as `[2, 2, features, C]`; `flax.linen.ConvTranspose` flips the two spatial axes.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `[B, 2H, 2W, features]` in `dtype`."""
        b, h, w, c = x.shape
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (2, 2, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        matrix = kernel.transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
        blocks = (x.reshape(-1, c) @ matrix).reshape(b, h, w, 2, 2, self.features)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features) + bias


def max_pool(x: Array) -> Array:
    """Maximum over 2x2 windows, stride 2: `[B, H, W, C]` to `[B, H/2, W/2, C]`, H and W even.

    Where values tie, the whole gradient goes to the first pixel of the window in row-major order, as in TensorFlow and
    `flax.linen.max_pool`. Ties are the common case, because the background of an MRI slice is constant.
    """
    top = _first_max(x[:, 0::2, 0::2], x[:, 0::2, 1::2])
    bottom = _first_max(x[:, 1::2, 0::2], x[:, 1::2, 1::2])
    return _first_max(top, bottom)


def _first_max(a: Array, b: Array) -> Array:
    # jnp.maximum would split the gradient of a tie; a comparison alone would lose a NaN in `a`.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
