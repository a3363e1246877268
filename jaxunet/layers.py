"""Up-convolution and max-pooling with the documented values, written for XLA.

XLA's CPU backend does the gradients of `flax.linen.ConvTranspose` (strided) and of `flax.linen.max_pool`
(select-and-scatter) slowly, and select-and-scatter has no deterministic form on GPUs. Both layers are small enough to
be said in operations that every backend does well; the tests compare value and gradient with the plain forms.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


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
