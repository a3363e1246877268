"""Convolution, ReLU with dropout, up-convolution and max-pooling: the reference's values, written for XLA.

On CPUs XLA is slow at the gradients of `flax.linen.ConvTranspose` (strided) and of `flax.linen.max_pool`
(select-and-scatter, which is also not deterministic on GPUs). Both layers are written in operations that are fast on
every backend. ReLU and dropout are one function to save memory. The 3x3 convolution is `jaxunet.convolution`. The tests
compare value and gradient of each layer with the plain form.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxunet.convolution import conv3x3

DRAWS = 2**16
"""Number of different values that dropout draws, of 16 bits each."""


class Conv3x3(nn.Module):
    """Convolution 3x3 with zero padding: `[B, H, W, C]` to `[B, H, W, features]`; parameters as in `flax.linen.Conv`.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """Returns `[B, H, W, features]` in `dtype`; several inputs are treated as concatenated along the channels."""
        channels = sum(image.shape[-1] for image in inputs)
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, channels, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        bias, *images = nn.dtypes.promote_dtype(bias, *inputs, dtype=self.dtype)
        return conv3x3(tuple(images), kernel, bias)


class ReluDropout(nn.Module):
    """ReLU, then dropout: `[B, H, W, C]` to the same shape.

    A value is kept with probability `1 - rate`, rounded to 16 bits, and divided by it. The random numbers depend only
    on the key named `"dropout"` and the shape; each word of 32 bits supplies two neighbouring channels.

    Attributes:
      rate: share of values that are set to zero, at least 0 and below 1.
      deterministic: no dropout.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns an array of the shape and dtype of `x`."""
        dropped = min(round(self.rate * DRAWS), DRAWS - 1)
        if self.deterministic or not dropped:
            return relu(x)
        words = jax.random.bits(self.make_rng("dropout"), (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
        draws = lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
        return relu(x, draws >= dropped, scale=DRAWS / (DRAWS - dropped))


@functools.partial(jax.custom_vjp, nondiff_argnames=("scale",))
def relu(x: Array, keep: Array | None = None, scale: float = 1.0) -> Array:
    """`max(x, 0) * scale` where `keep`, 0 elsewhere. The gradient at `x = 0` is 0.

    A positive result means a positive, kept input, so the backward pass needs only the result, which the next
    convolution keeps anyway. Separate `jax.nn.relu` and dropout would keep two inputs and a mask as well.
    """
    # cuDNN can fuse this maximum, and no other form of it, into a convolution. On a CPU, XLA would compute a maximum
    # again in the backward pass and keep `x` for that.
    y = lax.platform_dependent(x, cuda=lambda x: jnp.maximum(x, 0), default=lambda x: jnp.where(x < 0, 0, x)) * scale
    return y if keep is None else jnp.where(keep, y, 0)


def _relu_fwd(x: Array, keep: Array | None, scale: float) -> tuple[Array, Array]:
    y = relu(x, keep, scale)
    return y, y


def _relu_bwd(scale: float, y: Array, g: Array) -> tuple[Array, None]:
    return jnp.where(y > 0, g * scale, 0), None


relu.defvjp(_relu_fwd, _relu_bwd)


class Conv1x1(nn.Module):
    """Convolution 1x1: `[B, H, W, C]` to `[B, H, W, features]`; parameters as in `flax.linen.Conv`.

    Written as a matrix product: for a convolution, XLA's CPU backend would compute the kernel's gradient with a window
    as large as the image.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `[B, H, W, features]` in `dtype`."""
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (1, 1, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return _plus(x @ kernel[0, 0], bias)


class UpConv(nn.Module):
    """Transposed convolution, kernel 2x2, stride 2: `[B, H, W, C]` to `[B, 2H, 2W, features]`.

    Kernel and stride are equal, so windows do not overlap and the layer is one matrix product followed by a reshape.

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
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        matrix = kernel.transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
        blocks = (x.reshape(-1, c) @ matrix).reshape(b, h, w, 2, 2, self.features)
        return _plus(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features), bias)


def _plus(x: Array, bias: Array) -> Array:
    """`x + bias` in the dtype of `x`; the bias's gradient is summed in float32, as bfloat16 would lose most of it."""
    return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """Maximum over 2x2 windows, stride 2: `[B, H, W, C]` to `[B, H/2, W/2, C]`, H and W even.

    If values tie, the whole gradient goes to the first pixel of the window in row-major order, as in TensorFlow and
    `flax.linen.max_pool`. Ties are common, because the background of an MRI slice is constant.

    Raises:
      ValueError: H or W is odd.
    """
    return _max_and_place(x)[0]


def _max_and_place(x: Array) -> tuple[Array, Array]:
    """The maximum, and the index 0 to 3 of its pixel in the window, uint8."""
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"max_pool needs an even height and width, got images of {x.shape[1]}x{x.shape[2]}")
    rows = [[x[:, i::2, j::2] for j in range(2)] for i in range(2)]
    (top, right), (bottom, low_right) = (_first_max(*row) for row in rows)
    largest, low = _first_max(top, bottom)
    return largest, jnp.where(low, 2 + low_right.astype(jnp.uint8), right.astype(jnp.uint8))


def _first_max(a: Array, b: Array) -> tuple[Array, Array]:
    # jnp.maximum would split the gradient of a tie; a plain comparison would lose a NaN in `a`.
    first = (a >= b) | jnp.isnan(a)
    return jnp.where(first, a, b), ~first


def _max_pool_bwd(place: Array, g: Array) -> tuple[Array]:
    # The gradient is written at once, from the saved index: at least twice as fast as XLA's sum of four strided arrays.
    b, h, w, c = g.shape
    places = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)
    spread = jnp.where(place[:, :, None, :, None] == places, g[:, :, None, :, None], 0)
    return (spread.reshape(b, 2 * h, 2 * w, c),)


max_pool.defvjp(_max_and_place, _max_pool_bwd)
